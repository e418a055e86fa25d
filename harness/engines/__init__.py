"""Engines start and stop hosts. `docker` is the fidelity engine, `sandbox` the embedded default."""

from __future__ import annotations

from harness.engines.base import Engine, Host, open_engine

__all__ = ["Engine", "Host", "open_engine"]

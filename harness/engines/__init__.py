"""Engines start and stop hosts. `docker` is the fidelity engine, `sandbox` the embedded default."""

from __future__ import annotations

from pathlib import Path

from harness.engines.base import Engine, Host, open_engine

__all__ = ["Engine", "Host", "open_engine", "remove_tree"]


def remove_tree(path: Path) -> None:
    """Remove what a host left, whatever modes its directories have; nothing when it isn't there."""
    from harness.engines.sandbox.inner import remove

    remove.remove_tree(str(path))

"""Warm hosts: kept from job to job, with the script's heavy modules imported. `WarmEngine` wraps another engine."""

from __future__ import annotations

from harness.engines.warm._engine import Expectation, WarmEngine, clean_up
from harness.engines.warm._match import code_version
from harness.engines.warm._place import Place, places

__all__ = ["Expectation", "Place", "WarmEngine", "clean_up", "code_version", "places"]

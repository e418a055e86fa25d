"""The life of a job: its supervisor, its state machine, what it shares with other jobs."""

from __future__ import annotations

from harness.lifecycle._clean import LEFT, clean_left
from harness.lifecycle._describe import describe
from harness.lifecycle._entries import HostEntry, host_entries
from harness.lifecycle._owner import owned, recover, spawn
from harness.lifecycle._supervisor import supervise

__all__ = [
    "LEFT",
    "HostEntry",
    "clean_left",
    "describe",
    "host_entries",
    "owned",
    "recover",
    "spawn",
    "supervise",
]

"""The one durable truth: SQLite for what is asked for often, a directory per job for the rest.

`Store` is opened by every process that needs it (command line, supervisors); SQLite's write-ahead log
lets readers follow a running job while its supervisor writes. Each change of a job's state is one
transaction, so a reader, or a recovery after `kill -9`, sees the state before it or after it.
"""

from __future__ import annotations

from harness.store._codec import from_json, to_json
from harness.store._records import TERMINAL, HostRecord, JobRecord, Progress, StopRequest
from harness.store._store import Store

__all__ = [
    "TERMINAL",
    "HostRecord",
    "JobRecord",
    "Progress",
    "StopRequest",
    "Store",
    "from_json",
    "to_json",
]

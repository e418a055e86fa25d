"""What the store gives back: frozen rows."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from harness._values import dataclass, field
from harness.model import JsonObject, Transition

TERMINAL = frozenset({"Completed", "Failed", "Stopped"})
"""TrainingJobStatus values that never change again (contract: G1)."""


class StopRequest(IntEnum):
    """What somebody asked of a running job; only ever grows."""

    NONE = 0
    STOP = 1
    """As StopTrainingJob: SIGTERM, grace, SIGKILL (contract: G9)."""
    KILL = 2
    """SIGKILL now."""


@dataclass(frozen=True, kw_only=True)
class HostRecord:
    """One host of a job, in its present attempt."""

    name: str
    stream: str
    """Log stream name, `<job>/algo-N-<epoch>` (contract: I2)."""
    gpus: tuple[int, ...] = ()
    exit_code: int | None = None
    oom_killed: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a long phase is; `total` 0 when unknown."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as it stands. Times are epoch seconds."""

    name: str
    arn: str
    status: str
    secondary_status: str
    failure_reason: str | None
    created: float
    modified: float
    training_start: float | None
    training_end: float | None
    ended: float | None
    attempt: int
    stop_request: StopRequest
    engine: str
    instance_type: str
    instance_count: int
    result: Mapping[str, Any] = field(default_factory=dict)
    """What the end of the job left: artifacts, archive sizes, durations, notes."""
    request: JsonObject = field(default_factory=dict)
    """Empty in listings."""
    spec: JsonObject = field(default_factory=dict)
    """`model.Spec` as JSON; empty in listings."""
    plan: JsonObject = field(default_factory=dict)
    """`model.Plan` as JSON; empty in listings."""
    transitions: tuple[Transition, ...] = ()
    hosts: tuple[HostRecord, ...] = ()

    @property
    def ended_for_good(self) -> bool:
        return self.status in TERMINAL

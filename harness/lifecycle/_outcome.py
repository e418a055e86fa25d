"""The ends that a job can have, as SageMaker tells them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from harness import contract
from harness._values import dataclass
from harness.errors import InternalServerError, JobError
from harness.lifecycle._owner import LOG
from harness.lifecycle._watch import StopCause

__all__ = ["COMPLETED", "STOPPED", "Outcome", "failed", "failed_by", "unforeseen"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the job will end once its outputs are up."""

    status: str
    secondary: str
    message: str
    reason: str | None = None
    retryable: bool = False


COMPLETED: Final = Outcome(status="Completed", secondary="Completed", message=contract.messages.COMPLETED)
STOPPED: Final[Mapping[str | None, Outcome]] = {
    StopCause.USER: Outcome(status="Stopped", secondary="Stopped", message=contract.messages.STOPPED),
    StopCause.MAX_RUNTIME: Outcome(
        status="Stopped",
        secondary="MaxRuntimeExceeded",
        message=contract.messages.MAX_RUNTIME_EXCEEDED,
    ),
    StopCause.MAX_WAIT: Outcome(
        status="Stopped",
        secondary="MaxWaitTimeExceeded",
        message=contract.messages.MAX_WAIT_TIME_EXCEEDED,
    ),
}
"""By what stopped it (contract: G7, G8, G12); a failed peer is none of these."""


def failed(reason: str, *, retryable: bool = False) -> Outcome:
    """`reason`: the FailureReason."""
    return Outcome(
        status="Failed",
        secondary="Failed",
        message=contract.messages.FAILED,
        reason=reason,
        retryable=retryable,
    )


def failed_by(error: JobError) -> Outcome:
    """RetryStrategy is for what the platform did (contract: G21)."""
    return failed(error.failure_reason, retryable=isinstance(error, InternalServerError))


def unforeseen(error: Exception, directory: Path) -> Outcome:
    """Our own mistake; `directory`: the job's."""
    return failed_by(
        InternalServerError(
            f"the harness failed: {type(error).__name__}: {error} (traceback in {directory / LOG})"
        )
    )

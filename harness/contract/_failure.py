"""FailureReason of a job, from how a host ended and what it left in /opt/ml/output/failure."""

from __future__ import annotations

from typing import Final

from harness.errors import AlgorithmError, InternalServerError
from harness.model import ExitStatus

__all__ = ["failure_reason"]

_LIMIT: Final = 1024
"""Characters, of the failure file and of the whole (contract: F21, G19)."""


def failure_reason(exit: ExitStatus, failure_file: bytes | None) -> str:  # noqa: A002
    """The job's FailureReason, `<class>: <text>, exit code: <n>` (contract: G17–G20, F21).

    The class is AlgorithmError, or InternalServerError for a host that vanished. `failure_file` is the
    content of /opt/ml/output/failure, None or empty when there is none; bytes that aren't UTF-8 are
    replaced. A command that couldn't be executed is told in the engine's words (contract: A2, A3). Memory
    ending a process is told after the exit code, where the cloud says nothing.
    """
    if exit.vanished:
        gone = exit.error or "a host was gone without an exit status"
        return InternalServerError(gone).failure_reason
    text = (failure_file or b"").decode("utf-8", "replace")[:_LIMIT]
    tail = f", exit code: {exit.code}"
    if exit.oom_killed:
        tail += " (the kernel killed a process of this host: it needed more memory than the host has)"
    return AlgorithmError((text or exit.error or "") + tail).failure_reason

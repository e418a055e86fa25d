"""Every error the harness raises on purpose.

The tree, with the exit code that the command line gives each family::

    HarnessError                      1
    ├── SpecError                     2   the spec, the request or the command's words are wrong
    │   ├── UsageError                2   a command-line word, an unknown job, an unknown option
    │   ├── ValidationError           2   the request breaks AWS's model; worded as AWS words it
    │   ├── StrictError               2   --strict and a field that would have no effect here
    │   └── JobExistsError            2   the job name is taken (AWS: ResourceInUse)
    ├── MachineError                  3   the spec is right, this machine can't
    │   ├── EngineError               3   no engine, daemon gone, image missing, namespaces forbidden
    │   ├── GpuError                  3   fewer GPUs than the spec insists on
    │   ├── DiskError                 3   no space, read-only, not writable
    │   └── StoreError                3   the state directory can't be used
    └── JobError                      1   the job itself: what happens after it was accepted
        ├── AlgorithmError            1   the container's fault         (contract: G20)
        ├── ClientError               1   request, data or permissions  (contract: G20)
        └── InternalServerError       1   the platform's fault: ours    (contract: G20)

A message says what happened, where, and what to do, in one or two sentences. `JobError`s are written
into the job's FailureReason with their class name as the prefix, as SageMaker does.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlgorithmError",
    "ClientError",
    "DiskError",
    "EngineError",
    "GpuError",
    "HarnessError",
    "InternalServerError",
    "JobError",
    "JobExistsError",
    "MachineError",
    "SpecError",
    "StoreError",
    "StrictError",
    "UsageError",
    "ValidationError",
]

COMPLETED = 0
FAILED = 1
BAD_SPEC = 2
MACHINE_CANNOT = 3
STOPPED = 4
INTERRUPTED = 130


class HarnessError(Exception):
    """Anything the harness raises on purpose; catch this to catch them all."""

    exit_code: ClassVar[int] = FAILED


class SpecError(HarnessError):
    """The spec or the request is wrong: nothing was started, nothing was written."""

    exit_code = BAD_SPEC


class UsageError(SpecError):
    """A word on the command line is wrong: an unknown job, a bad option value."""


class ValidationError(SpecError):
    """The request breaks AWS's service model; `str()` is AWS's own ValidationException text."""


class StrictError(SpecError):
    """`--strict` was asked for and a field of the request would have no effect here."""


class JobExistsError(SpecError):
    """A job of this name exists; names can't be used again (contract: G35)."""


class MachineError(HarnessError):
    """The spec is right, but this machine can't run it."""

    exit_code = MACHINE_CANNOT


class EngineError(MachineError):
    """No engine answers, the image is missing, or the kernel forbids what the engine needs."""


class GpuError(MachineError):
    """The spec insists on GPUs that this machine doesn't have."""


class DiskError(MachineError):
    """A disk is full, read-only or not writable."""


class StoreError(MachineError):
    """The state directory ($HARNESS_HOME) can't be read or written."""


class JobError(HarnessError):
    """A job failed after it was accepted; becomes its FailureReason."""

    @property
    def failure_reason(self) -> str:
        """`<Class>: <message>`, at most 1024 characters (contract: G19, G20)."""
        return f"{type(self).__name__}: {self}"[:1024]


class AlgorithmError(JobError):
    """The container's own fault: a non-zero exit (contract: G17, G18)."""


class ClientError(JobError):
    """The user's data, request or permissions: a channel that can't be read (contract: E7, E32)."""


class InternalServerError(JobError):
    """The platform's fault; the only class that RetryStrategy retries (contract: G21)."""

"""Run the exact SageMaker training job on the machine in front of you.

::

    import harness

    spec = harness.load("job.toml")                       # or harness.TrainingSpec(entry_point=…, …).compile()
    job = harness.run(spec)                               # returns when the job has ended
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from harness.cloud import sagemaker_session
    from harness.errors import (
        AlgorithmError,
        ClientError,
        DiskError,
        EngineError,
        GpuError,
        HarnessError,
        InternalServerError,
        JobError,
        JobExistsError,
        MachineError,
        SpecError,
        StoreError,
        StrictError,
        UsageError,
        ValidationError,
    )
    from harness.home import Home
    from harness.model import LocalOptions, Plan, Spec
    from harness.notebook import Job, job, jobs
    from harness.spec import TrainingSpec, load
    from harness.store import JobRecord

__version__ = "0.1.0"

__all__ = [
    "AlgorithmError",
    "ClientError",
    "DiskError",
    "EngineError",
    "GpuError",
    "HarnessError",
    "Home",
    "InternalServerError",
    "Job",
    "JobError",
    "JobExistsError",
    "JobRecord",
    "LocalOptions",
    "MachineError",
    "Plan",
    "Spec",
    "SpecError",
    "StoreError",
    "StrictError",
    "TrainingSpec",
    "UsageError",
    "ValidationError",
    "job",
    "jobs",
    "load",
    "run",
    "sagemaker_session",
]

_ELSEWHERE = {
    "Home": "harness.home",
    "Job": "harness.notebook",
    "JobRecord": "harness.store",
    "LocalOptions": "harness.model",
    "Plan": "harness.model",
    "Spec": "harness.model",
    "TrainingSpec": "harness.spec",
    "job": "harness.notebook",
    "jobs": "harness.notebook",
    "load": "harness.spec",
    "sagemaker_session": "harness.cloud",
}


def run(spec: Spec | TrainingSpec | str | Path, **options: Any) -> JobRecord:
    """Run a job here and wait for its end.

    Args:
        spec: a compiled spec, a `TrainingSpec`, or the path of a spec file.
        options: those of `harness.targets.local.run`: `home`, `plan`, and for a path the overrides.

    Raises:
        SpecError: the spec is wrong. MachineError: this machine can't run it.
    """
    from harness.spec import TrainingSpec
    from harness.targets import local

    return local.run(spec.compile() if isinstance(spec, TrainingSpec) else spec, **options)


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext harness`: the magics `%harness` and `%%harness`; see `%harness --help`."""
    from harness.notebook import load_ipython_extension as load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext harness`"""
    from harness.notebook import unload_ipython_extension as unload

    unload(shell)


def __getattr__(name: str) -> Any:
    # Imported at first use: `harness --help` needs none of them.
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    value = getattr(importlib.import_module(_ELSEWHERE.get(name, "harness.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

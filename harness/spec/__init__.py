"""What the user writes, compiled to one CreateTrainingJob request.

A spec is `job.toml` in the words of the SageMaker SDK's estimator, the same words in Python
(`TrainingSpec`), or a raw request as JSON or YAML. All of them give a `model.Spec`.
"""

from __future__ import annotations

from harness.spec._check import check
from harness.spec._load import compile_table, load, parse_set, read
from harness.spec._names import timestamped
from harness.spec._source import is_editor_lock
from harness.spec._training import TrainingSpec

__all__ = [
    "TrainingSpec",
    "check",
    "compile_table",
    "is_editor_lock",
    "load",
    "parse_set",
    "read",
    "timestamped",
]

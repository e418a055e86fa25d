"""Places below /opt/ml that the request decides."""

from __future__ import annotations

import json
import posixpath
from pathlib import PurePosixPath
from typing import Final

from harness.errors import ClientError
from harness.model import JsonObject

__all__ = ["CODE", "ML", "PROGRAM", "SUBMIT_DIRECTORY", "checkpoint_path", "decoded", "submit_directory"]

ML: Final = PurePosixPath("/opt/ml")
CODE: Final = ML / "code"
SUBMIT_DIRECTORY: Final = "sagemaker_submit_directory"
PROGRAM: Final = "sagemaker_program"


def checkpoint_path(request: JsonObject) -> PurePosixPath | None:
    """Where the host sees its checkpoints; None without CheckpointConfig (contract: F11, C23).

    A place that isn't below /opt/ml needs a mount of its own. Raises ClientError for a LocalPath that is
    relative or would hide the whole of /opt/ml or /.
    """
    config = request.get("CheckpointConfig")
    if config is None:
        return None
    given = config.get("LocalPath") or "/opt/ml/checkpoints"
    # normpath keeps two leading slashes, which POSIX lets mean something else.
    path = PurePosixPath("/" + posixpath.normpath(given).lstrip("/"))
    if not given.startswith("/") or path == ML or path in ML.parents:
        raise ClientError(
            f"CheckpointConfig.LocalPath {given!r} can't be a checkpoint directory: give an absolute path "
            "like /opt/ml/checkpoints"
        )
    return path


def submit_directory(request: JsonObject) -> str | None:
    """The URI of the job's sourcedir.tar.gz, or None when it brings no code (contract: A22).

    It is the hyperparameter `sagemaker_submit_directory`, which SDKs write as JSON (contract: C6).
    """
    value = request.get("HyperParameters", {}).get(SUBMIT_DIRECTORY)
    return None if value is None else decoded(value)


def decoded(value: str) -> str:
    """A hyperparameter's text: `"\\"x\\""` and `"x"` both mean x (contract: D24)."""
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, str) else value

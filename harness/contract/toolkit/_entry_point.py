"""The user's code: where it comes from, of which kind it is, how it is installed and started."""

from __future__ import annotations

import os
import re
import sys

from . import _process
from ._errors import ClientError, InstallModuleError, InstallRequirementsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._log import Log

__all__ = ["COMMAND", "PACKAGE", "PROGRAM", "command", "fetch", "install", "kind", "validate"]

PACKAGE = "package"
PROGRAM = "program"
COMMAND = "command"

_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._+-]*(?:/[A-Za-z0-9._+-]+)*")
_REQUIREMENTS = "requirements.txt"


def validate(name: object) -> str:
    """The entry point's name, if it is a plain path inside the code directory; ClientError otherwise."""
    if not name:
        raise ClientError(
            "The training entry point name is empty. Set the hyperparameter 'sagemaker_program' to the name "
            "of the script to run, relative to your source directory, for example 'train.py'."
        )
    if not isinstance(name, str):
        raise TypeError(f"expected string or bytes-like object, got {type(name).__name__!r}")
    if not _NAME.fullmatch(name) or {".", ".."} & set(name.split("/")):
        raise ClientError(
            f"The training entry point {name!r} cannot be used: it may contain only letters, digits and "
            "'.', '_', '+', '-', '/', may not start with '-' or '/', and must lie inside your source "
            "directory. Rename the script and set the hyperparameter 'sagemaker_program' to its new name."
        )
    return name


def kind(code_dir: str, name: str) -> str:
    """contract: A23"""
    if name.endswith(".sh"):
        return COMMAND
    if "setup.py" in os.listdir(code_dir):
        return PACKAGE
    return PROGRAM if name.endswith(".py") else COMMAND


def fetch(uri: str, code_dir: str, log: Log) -> None:
    """The code into `code_dir`, unless something is there: it was put there, or baked in (contract: A22)."""
    if os.listdir(code_dir):
        log.info(f"Provided path: {code_dir} is not empty, abandoning unzipping sourcedir.tar.gz")
        return
    log.info(f"Provided path: {code_dir}  is empty, unzipping")
    if uri.startswith("s3://"):
        raise ClientError(
            f"The code directory {code_dir} is empty, and {uri} can't be downloaded from inside this host: "
            "the harness puts the code there before the host starts. Is the archive empty?"
        )
    import shutil
    import tarfile

    if os.path.isdir(uri):
        if uri != code_dir:
            shutil.rmtree(code_dir)
            shutil.copytree(uri, code_dir)
    elif tarfile.is_tarfile(uri):
        with tarfile.open(uri, "r:gz") as archive:
            # Where there is no such filter, what is unsafe is refused here.
            if hasattr(tarfile, "data_filter"):
                archive.extractall(code_dir, filter="data")
            else:
                archive.extractall(code_dir, members=[m for m in archive if _safe(m, code_dir)])
    else:
        shutil.copy2(uri, code_dir)


def _safe(member: object, code_dir: str) -> bool:
    name = getattr(member, "name", "")
    plain = any(getattr(member, test)() for test in ("isreg", "isdir"))
    root = os.path.realpath(code_dir)
    return plain and os.path.commonpath([root, os.path.realpath(os.path.join(root, name))]) == root


def install(name: str, code_dir: str, *, capture: bool, log: Log) -> None:
    """What the code needs before it runs: its requirements, itself, the execute bit (contract: A24, A25)."""
    validate(name)
    found = kind(code_dir, name)
    listed = os.path.exists(os.path.join(code_dir, _REQUIREMENTS))
    requirements = ["-r", _REQUIREMENTS] if listed else []
    if found == PACKAGE:
        log.info("Installing module.")
        _pip([".", *requirements], code_dir, InstallModuleError, capture, log)
    elif found == PROGRAM and listed:
        log.info("Installing dependencies from requirements.txt")
        _pip(requirements, code_dir, InstallRequirementsError, capture, log)
    elif found == COMMAND:
        root = os.path.realpath(code_dir)
        target = os.path.realpath(os.path.join(root, name))
        if os.path.commonpath([root, target]) != root:
            raise ClientError(
                f"The training entry point {name!r} resolves to a location outside your source directory: "
                "set the hyperparameter 'sagemaker_program' to a path inside that directory."
            )
        os.chmod(target, 0o777)


def _pip(
    arguments: Sequence[str],
    code_dir: str,
    failure: type[InstallModuleError] | type[InstallRequirementsError],
    capture: bool,
    log: Log,
) -> None:
    if os.environ.get("CA_REPOSITORY_ARN"):
        raise RuntimeError(
            "failed to configure pip to use codeartifact: there is no CodeArtifact here; "
            "remove CA_REPOSITORY_ARN from Environment to install from pip's own index"
        )
    # A distribution's Python refuses pip (PEP 668). As process 1 we are in a namespace, with a writable
    # layer of the host's own over that Python: nothing of the machine's is changed.
    allow = "PIP_BREAK_SYSTEM_PACKAGES"
    lift = os.getpid() == 1 and allow not in os.environ
    if lift:
        os.environ[allow] = "1"
    try:
        _process.run(
            [sys.executable, "-m", "pip", "install", *arguments],
            log=log,
            cwd=code_dir,
            failure=failure,
            capture=capture,
        )
    finally:
        if lift:
            del os.environ[allow]


def command(name: str, arguments: Sequence[str], code_dir: str, *, shell: bool) -> list[str]:
    """The words that start the script once (contract: A23, A25, D30, D31).

    `shell`: as toolkits up to 5.1.1 write them, for `through_shell`.
    """
    found = kind(code_dir, validate(name))
    if found == PACKAGE:
        module = name[:-3] if name.endswith(".py") else name
        return [sys.executable, "-m", module, *arguments]
    if found == PROGRAM:
        return [sys.executable, *([] if shell else ["--"]), name, *arguments]
    import shlex

    line = f"./{shlex.quote(name)} {' '.join(map(shlex.quote, arguments))}"
    return ["/bin/sh", "-c", f'"{line}"' if shell else line]


def through_shell(words: Sequence[str]) -> list[str]:
    """All words as one line of a shell, unquoted: toolkits up to 5.1.1 do so (contract: D29, D31)."""
    return ["/bin/sh", "-c", " ".join(words)]

"""What an interpreter has, without importing it: its version, and PyTorch's."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from harness._values import dataclass
from harness.errors import EngineError

__all__ = ["OLDEST", "Cuda", "Python", "inspect", "try_cuda"]

OLDEST: Final = (3, 8)
"""The oldest that runs our stand-in for the training toolkit."""
_SECONDS: Final = 30

_QUESTION: Final = """
import importlib.util, json, platform, sys
found = {"executable": sys.executable, "version": platform.python_version()}
for name in ("torch", "torchvision"):
    spec = importlib.util.find_spec(name)
    found[name] = None if spec is None else spec.origin
print(json.dumps(found))
"""


_CUDA_SECONDS: Final = 120
"""A first `import torch` from a slow disk can take a minute."""
_CUDA_QUESTION: Final = """
import json, torch, torch.cuda.nccl
try:
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
except AttributeError:
    nccl = None
try:
    torch.cuda.init()
    problem = ""
except Exception as error:
    problem = str(error).strip().splitlines()[0]
print(json.dumps({"nccl": nccl, "problem": problem}))
"""


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """What an interpreter's PyTorch makes of this machine's GPUs."""

    nccl: str | None
    """NCCL that it was built with or comes with; None: a build without."""
    problem: str
    """Why it can't use them; empty when it can."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """An interpreter and its PyTorch."""

    executable: str
    version: str
    torch: str | None
    """`torch.__version__`, with its local part (`2.6.0+cpu`); None: not installed."""
    cuda: str | None
    """CUDA that this PyTorch was built with; None for a CPU build."""
    torchvision: str | None


def inspect(executable: str | None = None) -> Python:
    """The interpreter at this path or of this name; None: the one that runs us.

    Raises:
        EngineError: there is no such interpreter, or it doesn't run, or it is too old.
    """
    if executable is None:
        origins = {name: _origin(name) for name in ("torch", "torchvision")}
        return _python(sys.executable, platform.python_version(), origins)
    path = shutil.which(str(Path(executable).expanduser()))
    if path is None:
        raise EngineError(
            f"there is no interpreter {executable}: set [local] python to one that is on this machine"
        )
    try:
        done = subprocess.run(
            [path, "-c", _QUESTION],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        if isinstance(error, subprocess.CalledProcessError):
            said = (error.stderr.strip().splitlines() or [""])[-1]
            reason = f"it ends with exit code {error.returncode}" + (f": {said[:100]}" if said else "")
        else:
            reason = (isinstance(error, OSError) and error.strerror) or "it doesn't answer as one"
        raise EngineError(f"{path} is no Python that runs ({reason}): set [local] python") from error
    # Not the link's target: a virtual environment is known by the name it is started with.
    return _python(path, found["version"], found)


def try_cuda(executable: str) -> Cuda:
    """Import that interpreter's PyTorch, in a process of its own, and start CUDA: some seconds.

    Raises:
        EngineError: it has no PyTorch that can be imported, or gives no answer.
    """
    try:
        done = subprocess.run(
            [executable, "-c", _CUDA_QUESTION],
            capture_output=True,
            text=True,
            check=True,
            timeout=_CUDA_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise EngineError(f"PyTorch of {executable} can't be imported: {said[:200]}") from error
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise EngineError(f"{executable} doesn't tell what its PyTorch makes of the GPUs: {error}") from error
    return Cuda(nccl=found["nccl"], problem=found["problem"])


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin


def _python(executable: str, version: str, origins: dict[str, str | None]) -> Python:
    if tuple(int(number) for number in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineError(
            f"{executable} is Python {version}; scripts need {oldest} or newer here: set [local] python"
        )
    torch, cuda = _versions(origins["torch"])
    return Python(
        executable=executable,
        version=version,
        torch=torch,
        cuda=cuda,
        torchvision=_versions(origins["torchvision"])[0],
    )


def _versions(origin: str | None) -> tuple[str | None, str | None]:
    """`__version__` and `cuda` of a package's version.py, which PyTorch and torchvision have."""
    if origin is None:
        return None, None
    try:
        text = (Path(origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown", None
    found = dict(re.findall(r"^(__version__|cuda)\b[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE))
    return found.get("__version__", "unknown"), found.get("cuda")

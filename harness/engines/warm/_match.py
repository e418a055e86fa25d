"""Whether a warm host is what a job would get anew, told fact by fact.

A fingerprint is a plain mapping of named facts, so that it can be shown, compared, and explained in a
sentence. Only what a running host can't change any more is in it: hyperparameters, the job's name, metric
definitions and most of the environment come with each run.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from harness.model import HostLaunch, Mount

__all__ = [
    "Fingerprint",
    "code_version",
    "difference",
    "fingerprint",
    "is_own",
    "is_start_relevant",
    "start_environment",
]

Fingerprint = Mapping[str, Any]
"""Fact → its value, as JSON has it."""

_STARTS: Final = (
    *("PYTHON", "LD_", "LC_", "MALLOC_", "CUDA", "NVIDIA"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "NUMEXPR_", "VECLIB_", "DNNL_", "ONEDNN_"),
    *("TORCH_", "PYTORCH_", "ATEN_", "TF_", "XLA_", "JAX_", "KERAS_", "HF_", "TRANSFORMERS_", "MPL"),
    *("TORCHDYNAMO_", "TORCHINDUCTOR_", "TRITON_", "XFORMERS_", "ACCELERATE_", "DGL", "NUMBA_", "NLTK_"),
    *("NPY_", "NUMPY_", "SCIPY_", "SKLEARN_", "JOBLIB_", "POLARS_"),
)
_NAMES: Final = frozenset({"LANG", "LANGUAGE", "TZ", "PATH", "HOME", "TMPDIR", "SAGEMAKER_BASE_DIR"})
_AFTERWARDS: Final = frozenset({"CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_ORDER"})
"""Read when CUDA starts, which is after a fork: a script may set them after its imports."""
_PACKAGE: Final = Path(__file__).parent.parent.parent


def is_start_relevant(name: str, *, by_script: bool = True) -> bool:
    """Whether modules read this variable while the interpreter starts or while they are imported.

    `by_script`: it is set by the script itself, when the interpreter runs already.
    """
    if by_script and (name in _AFTERWARDS or name in ("PATH", "HOME", "TMPDIR") or name.startswith("PYTHON")):
        return False
    return name in _NAMES or name.startswith(_STARTS)


def start_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of a host's environment that it must have from its start."""
    return {name: value for name, value in environment.items() if is_start_relevant(name, by_script=False)}


def fingerprint(
    launches: Sequence[HostLaunch],
    *,
    engine: str,
    surroundings: Mapping[str, str],
    preload: Sequence[str],
) -> Fingerprint:
    """What hosts of these launches are, as far as it stays the same for their whole life.

    `surroundings`: what else the engine makes of this machine and of the user's environment. `preload`: the
    modules to import beforehand.
    """
    first = launches[0]
    return {
        "harness": code_version(),
        "engine": engine,
        **surroundings,
        "image name": first.image,
        "hosts": {launch.host: launch.hostname for launch in launches},
        "GPUs": {launch.host: [gpu.uuid or str(gpu.index) for gpu in launch.gpus] for launch in launches},
        "size of /dev/shm": first.shm_bytes,
        "memory limit": first.memory_bytes,
        "network isolation": first.network_isolated,
        "network interface": first.network_interface,
        "interpreter": first.python,
        "command": [[*(launch.entrypoint or ("",)), *launch.command] for launch in launches],
        "environment": {launch.host: start_environment(launch.environment) for launch in launches},
        "what the debugger needs": [dict(launch.prepend) for launch in launches],
        "mounts": {
            launch.host: {str(each.target): _mount(launch, each) for each in launch.mounts}
            for launch in launches
        },
        "requirements.txt": {
            launch.host: _digest(launch.ml / "code/requirements.txt") for launch in launches
        },
        "preload": list(preload),
    }


def difference(old: Fingerprint, new: Fingerprint) -> str | None:
    """Why hosts with the fingerprint `old` don't fit `new`, as the end of "cold: …"; None when they do."""
    for fact in (*new, *(fact for fact in old if fact not in new)):
        before, now = old.get(fact), new.get(fact)
        if before != now:
            return f"{_sentence(fact, before, now)} since the warm host was made"
    return None


@functools.cache
def code_version() -> str:
    """A digest of this package's files as they were at the first call: names, sizes and times of change."""
    digest = hashlib.sha256()
    pending = [str(_PACKAGE)]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    pending.append(entry.path)
            elif entry.name.endswith(".py"):
                info = entry.stat()
                digest.update(f"{entry.path}\0{info.st_size}\0{info.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _sentence(fact: str, before: Any, now: Any) -> str:
    if fact == "harness":
        return "the harness itself changed"
    if fact == "preload":
        added, gone = [m for m in now if m not in before], [m for m in before if m not in now]
        changes = [f"{', '.join(names)} {what}" for names, what in ((added, "came"), (gone, "went")) if names]
        return f"what the script imports changed ({'; '.join(changes) or 'another order'})"
    if fact == "environment":
        names = {
            name
            for host in {*before, *now}
            for name in {*before.get(host, {}), *now.get(host, {})}
            if before.get(host, {}).get(name) != now.get(host, {}).get(name)
        }
        return f"{', '.join(sorted(names))} in the environment changed"
    if fact == "mounts":
        return _mounts_sentence(before, now)
    if fact in ("hosts", "GPUs"):
        return f"the job's {fact} changed"
    article = "" if fact == "requirements.txt" or fact.startswith("what ") else "the "
    return f"{article}{fact} changed"


def _mounts_sentence(before: Any, now: Any) -> str:
    for host in {*before, *now}:
        old, new = before.get(host, {}), now.get(host, {})
        for target in sorted({*old, *new}):
            if old.get(target) == new.get(target):
                continue
            if target not in new or target not in old:
                return f"{target} {'came' if target in new else 'went'}"
            same = old[target][:2] == new[target][:2]
            return f"the files of {target} changed" if same else f"{target} is mounted from another place"
    return "what is mounted changed"


def _mount(launch: HostLaunch, mount: Mount) -> list[str]:
    if is_own(launch, mount):
        return ["its own", mount.mode, ""]
    real = mount.source.resolve()
    return [str(real), mount.mode, _names(real) if mount.mode == "overlay" else _identity(real)]


def is_own(launch: HostLaunch, mount: Mount) -> bool:
    """Whether the mount's source is a directory of the host's own, made anew for each job."""
    return mount.mode == "rw" and mount.source.is_relative_to(launch.ml.parent)


def _identity(path: Path) -> str:
    """Which directory or file it is: one that was made anew under the old name isn't seen by an old mount."""
    info = path.stat()
    return f"{info.st_dev}:{info.st_ino}"


def _names(path: Path) -> str:
    """A digest that changes when a name below `path` comes, goes, or stands for another file.

    An overlay remembers what it found under a name: a file that was replaced under it would stay the old one.
    What is written into a file without replacing it is seen, and doesn't count. Costs one listing, no look at
    the files.
    """
    if not path.is_dir():
        return f"{_identity(path)}:{path.stat().st_mtime_ns}"
    digest = hashlib.sha256()
    pending = [path]
    while pending:
        folder = pending.pop()
        told = f"{folder}\0{_identity(folder)}\0{folder.stat().st_mtime_ns}\0"
        digest.update(told.encode(errors="surrogateescape"))
        with os.scandir(folder) as entries:
            pending += sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return None

"""A cell as the entry point of a job."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness.errors import UsageError
from harness.home import Home
from harness.model import Spec
from harness.spec import compile_table, read

__all__ = ["compiled"]

_ENTRY: Final = "train.py"
_ROLE: Final = f"arn:aws:iam::{Spec.account}:role/SageMakerRole"
_IMAGE: Final = f"763104351884.dkr.ecr.{Spec.region}.amazonaws.com/pytorch-training:1.13.1-gpu-py39"
_TYPES: Final = ((0, "ml.m5.xlarge"), (1, "ml.g5.xlarge"), (4, "ml.g5.12xlarge"), (8, "ml.p4d.24xlarge"))
"""GPUs of this machine, and the instance type that a cell without a spec asks for."""


@contextlib.contextmanager
def compiled(
    code: str,
    spec: Path | None,
    *,
    overrides: Mapping[str, Any],
    local: Mapping[str, Any],
    job_name: str | None,
) -> Iterator[Spec]:
    """The spec of a job that runs the cell; its source_dir is there as long as the `with` block.

    With a spec file, the cell takes the place of the entry point, beside everything else that the spec's
    source_dir has. Without one, the cell is the whole source, and it runs in the sandbox with this kernel's
    Python: what can be imported here can be imported there.

    Raises:
        SpecError, ValidationError: as `spec.load`. UsageError: the spec is a raw request.
    """
    origin, base = ("%%harness", Path.cwd()) if spec is None else (str(spec), spec.absolute().parent)
    with _source_dir(spec) as root:
        if spec is None:
            table = {**_defaults(), "entry_point": _ENTRY, "source_dir": str(root)}
            _write(root / _ENTRY, code)
        else:
            if spec.suffix in (".json", ".yaml", ".yml"):
                raise UsageError(
                    f"{spec} is a raw request, whose code is an archive already: a cell needs a spec "
                    "in the SDK's words, a .toml"
                )
            given = read(spec)
            table = {**given, **_beside(code, spec, given, root)}
        yield compile_table(
            table, origin=origin, base=base, overrides=overrides, local=local, job_name=job_name
        )


@contextlib.contextmanager
def _source_dir(spec: Path | None) -> Iterator[Path]:
    """An empty directory, removed in the end. That of one spec always has the same name: it is by the name of
    its source that a job finds the warm host of the one before. Cells are submitted one after the other."""
    place = Home.find().ensure().cache / "cells"
    place.mkdir(exist_ok=True)
    told = str(Path.cwd() if spec is None else spec.absolute())
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        root = place / hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        shutil.rmtree(root, ignore_errors=True)  # of a kernel that was killed
        root.mkdir()
        try:
            yield root
        finally:
            shutil.rmtree(root)
    finally:
        os.close(descriptor)


def _defaults() -> dict[str, Any]:
    from harness.machine import Machine

    gpus = len(Machine.probe(Home.find()).gpus)
    return {
        "name": "cell",
        "role": _ROLE,
        "instance_type": next((name for most, name in _TYPES if gpus <= most), _TYPES[-1][1]),
        "instance_count": 1,
        "region": Spec.region,
        "image_uri": _IMAGE,
        "local": {"engine": "sandbox", "images": {"*": "harness-pytorch"}},
    }


def _beside(code: str, spec: Path, table: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Lay the cell over the spec's source; what the spec's words become."""
    entry = table.get("entry_point")
    entry = entry if isinstance(entry, str) and entry else _ENTRY
    given = table.get("source_dir")
    if given is None:
        script = root / Path(entry).name
        _write(script, code)
        return {"entry_point": str(script)}
    if not isinstance(given, str) or given.lower().startswith("s3://"):
        raise UsageError(
            f"{spec}: a cell can't be laid over source_dir {given!r}: it must be a directory here"
        )
    source = (spec.absolute().parent / Path(given).expanduser()).resolve()
    if not source.is_dir():
        raise UsageError(f"{spec}: source_dir {given} is no directory ({source})")
    if Path(entry).is_absolute() or ".." in Path(entry).parts:
        raise UsageError(f"{spec}: entry_point {entry} must be a path inside source_dir {given}")
    _overlay(source, root, Path(entry).parts, code)
    return {"source_dir": str(root), "entry_point": entry}


def _overlay(source: Path, target: Path, entry: tuple[str, ...], code: str) -> None:
    """Links to everything in `source` but the entry point: the archive follows them, nothing is copied."""
    first, *rest = entry
    if source.is_dir():
        for each in source.iterdir():
            if each.name != first:
                (target / each.name).symlink_to(each)
    if not rest:
        _write(target / first, code)
        return
    (target / first).mkdir()
    _overlay(source / first, target / first, tuple(rest), code)


def _write(path: Path, code: str) -> None:
    path.write_text(code if code.endswith("\n") else f"{code}\n", encoding="utf-8")

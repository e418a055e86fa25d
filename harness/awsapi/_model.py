"""SageMaker's service model from the installed botocore, read as data and cut to one operation.

Importing botocore and loading its 2.6 MB model costs some 100 ms at every start of the command line.
We read the model file ourselves and keep the few shapes that one operation reaches in a small file
under the state directory, named by botocore's version.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import MachineError, SpecError
from harness.home import Home

Shape = dict[str, Any]
Shapes = dict[str, Shape]

_FORMAT = 2  # of the cache file: raise it when _trim keeps something else
_KEPT = ("type", "required", "key", "value", "member", "members", "min", "max", "pattern", "enum", "union")


def nodes(operation: str = "CreateTrainingJob") -> list[str]:
    """Every member that `operation`'s input can have, as dotted paths in the model's order.

    A list's items are `X[]`, a map's values `X{}`; an item or value that is a plain string or number is
    no node of its own. CreateTrainingJob has 146 in botocore 1.44.5.
    """
    root, shapes = load(operation)
    return list(_walk(shapes, root, "", ()))


def _walk(shapes: Shapes, name: str, path: str, above: tuple[str, ...]) -> Iterator[str]:
    if name in above:  # a recursive shape: its nodes are already counted
        return
    for member, shape_name in shapes[name]["members"].items():
        here = f"{path}.{member}" if path else member
        yield here
        while shapes[shape_name]["type"] in ("list", "map"):
            is_list = shapes[shape_name]["type"] == "list"
            here += "[]" if is_list else "{}"
            shape_name = shapes[shape_name]["member" if is_list else "value"]
        if shapes[shape_name]["type"] == "structure":
            yield from _walk(shapes, shape_name, here, (*above, name))


@cache
def load(operation: str) -> tuple[str, Shapes]:
    """The name of `operation`'s input shape, and all shapes that it reaches.

    Raises:
        SpecError: the installed botocore's SageMaker has no such operation.
        MachineError: botocore or its SageMaker model is not installed.
    """
    cache = _cache_file(operation)
    try:
        kept = json.loads(cache.read_bytes())
        return kept["input"], kept["shapes"]
    except (OSError, ValueError, KeyError):
        pass  # not there, unreadable or damaged: made again
    model = json.loads(_read(_model_file()))
    try:
        root = model["operations"][operation]["input"]["shape"]
    except KeyError:
        known = ", ".join(sorted(name for name in model["operations"] if name.endswith("TrainingJob")))
        raise SpecError(
            f"SageMaker in botocore {botocore_version()} has no operation {operation!r} with input "
            f"(it has {known} and {len(model['operations'])} in all)"
        ) from None
    shapes = _closure(model["shapes"], root)
    _keep(cache, {"input": root, "shapes": shapes})
    return root, shapes


def allowed_values(operation: str, shape: str) -> tuple[str, ...]:
    """The enumeration of a shape that `operation`'s input reaches; empty when it has none."""
    return tuple(load(operation)[1][shape].get("enum", ()))


def _closure(every: Shapes, root: str) -> Shapes:
    found: Shapes = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name not in found:
            shape = found[name] = _trim(every[name])
            waiting += shape.get("members", {}).values()
            waiting += [shape[role] for role in ("member", "key", "value") if role in shape]
    return found


def _trim(shape: Shape) -> Shape:
    kept = {key: shape[key] for key in _KEPT if key in shape}
    for role in ("member", "key", "value"):
        if role in kept:
            kept[role] = kept[role]["shape"]
    if shape["type"] == "structure":
        kept["members"] = {name: ref["shape"] for name, ref in shape.get("members", {}).items()}
    return kept


def _keep(path: Path, content: object) -> None:
    """Write the cache whole or not at all; a place that can't be written is no error."""
    import tempfile  # with what it imports, half of a warm validate

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    except OSError:
        return
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, separators=(",", ":"))
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)


def _cache_file(operation: str) -> Path:
    return Home.find().cache / f"sagemaker-{operation}-botocore-{botocore_version()}-{_FORMAT}.json"


@cache
def botocore_version() -> str:
    """The installed botocore's version, read without importing it."""
    text = (_package() / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__ = ['\"]([^'\"]+)", text, re.MULTILINE)
    if found:
        return found[1]
    from importlib.metadata import version

    return version("botocore")


def _package() -> Path:
    spec = importlib.util.find_spec("botocore")
    if spec is None or spec.origin is None:
        raise MachineError("botocore is not installed in this Python; run `pip install botocore`")
    return Path(spec.origin).parent


def _model_file() -> Path:
    # Newest API version last, as botocore's own loader picks it.
    files = sorted((_package() / "data" / "sagemaker").glob("*/service-2.json*"))
    if not files:
        raise MachineError(f"botocore {botocore_version()} has no SageMaker model; reinstall botocore")
    return files[-1]


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    import gzip

    return gzip.decompress(data)

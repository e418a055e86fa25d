"""Which local image stands in for the one that was asked for, and how they differ."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Final

from harness._values import dataclass
from harness.machine import Image, Machine, Python
from harness.model import Spec

__all__ = ["BUILT_IN", "Choice", "choose", "compare", "compare_python"]

BUILT_IN: Final = "harness-pytorch"
"""What `harness image build` makes: it stands in for AWS's PyTorch training images without being named."""
_BUILT_IN_FOR: Final = "*pytorch-training*"

_TORCH: Final = re.compile(r"pytorch[a-z-]*training[a-z-]*:(\d+(?:\.\d+)*)")
_PYTHON: Final = re.compile(r"-py(\d)(\d+)\b")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The local image that a request means on this machine."""

    asked: str
    name: str
    image: Image | None
    """None: it isn't on this machine."""
    because: str
    """For a sentence: how `name` came about; empty when it is what was asked for."""


def choose(spec: Spec, machine: Machine) -> Choice | None:
    """`[local.images]` first, then the very image, then the built-in mapping; None: no image is asked for."""
    asked = spec.request["AlgorithmSpecification"].get("TrainingImage")
    if asked is None:
        return None
    for pattern, name in spec.local.images.items():
        if fnmatchcase(asked, pattern):
            return Choice(asked=asked, name=name, image=machine.image(name), because="by [local.images]")
    image = machine.image(asked)
    if image is None and fnmatchcase(asked, _BUILT_IN_FOR):
        return Choice(asked=asked, name=BUILT_IN, image=machine.image(BUILT_IN), because="built-in mapping")
    return Choice(asked=asked, name=asked, image=image, because="")


def compare(choice: Choice) -> str:
    """How the local image differs from the one that was asked for; empty when it is that one."""
    if choice.name == choice.asked or choice.image is None:
        return ""
    labels = choice.image.labels
    told = _difference(choice.asked, labels.get("harness.torch"), labels.get("harness.python"))
    return f"{choice.name} stands in for {choice.asked}: {told}"


def compare_python(asked: str | None, python: Python) -> str:
    """How this machine's interpreter differs from the image that was asked for."""
    if asked is None:
        return ""
    told = _difference(asked, python.torch, python.version)
    return f"{python.executable} stands in for {asked}: {told}"


def _difference(asked: str, torch: str | None, python: str | None) -> str:
    wanted_torch, wanted_python = _TORCH.search(asked), _PYTHON.search(asked)
    parts = [_part("PyTorch", torch, wanted_torch[1] if wanted_torch else None)]
    parts.append(_part("Python", python, f"{wanted_python[1]}.{wanted_python[2]}" if wanted_python else None))
    return "; ".join(parts)


def _part(what: str, here: str | None, asked: str | None) -> str:
    if here is None:
        return f"{what} here is not known" + (f", {asked} asked for" if asked else "")
    if asked is None:
        return f"{what} {here} here"
    if _numbers(here)[: len(_numbers(asked))] == _numbers(asked):
        return f"{what} {here} here, as asked for"
    return f"{what} {here} here, {asked} asked for"


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in found[0].split(".")] if found else []

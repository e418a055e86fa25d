"""Our dataclasses against the standard library's: nothing but the cost may differ."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from harness import _values
from harness.model import LocalOptions


def define(decorate: Callable[..., Any]) -> Any:
    @decorate(frozen=True, kw_only=True)
    class Thing:
        """A thing."""

        size: int
        name: str = "x"
        tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
        seen: dict[str, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)

        @property
        def double(self) -> int:
            return self.size * 2

    return Thing


OURS = define(_values.dataclass)
STANDARD = define(dataclasses.dataclass)

USES: dict[str, Callable[[Any], object]] = {
    "defaults": lambda kind: vars(kind(size=1)),
    "repr": lambda kind: repr(kind(size=1, name="a", seen={"b": 2})),
    "property": lambda kind: kind(size=3).double,
    "asdict": lambda kind: dataclasses.asdict(kind(size=1, tags={"a": "b"})),
    "fields": lambda kind: [each.name for each in dataclasses.fields(kind)],
    "is one": lambda kind: dataclasses.is_dataclass(kind) and dataclasses.is_dataclass(kind(size=1)),
    "replace": lambda kind: repr(dataclasses.replace(kind(size=1, name="a"), size=2)),
    "copy": lambda kind: copy.deepcopy(kind(size=1, tags={"a": "b"})) == kind(size=1, tags={"a": "b"}),
    "equal but for what isn't compared": lambda kind: kind(size=1, seen={"a": 1}) == kind(size=1),
    "unequal": lambda kind: kind(size=1) == kind(size=2) or kind(size=1) == 1,
    "doc": lambda kind: kind.__doc__,
    "match": lambda kind: kind.__match_args__,
    "parameters": lambda kind: [
        (each.name, each.kind, each.annotation) for each in inspect.signature(kind).parameters.values()
    ],
    "no positional": lambda kind: error(lambda: kind(1)),
    "set": lambda kind: error(lambda: setattr(kind(size=1), "size", 2)),
    "delete": lambda kind: error(lambda: delattr(kind(size=1), "size")),
    "missing": lambda kind: error(kind),
    "unknown": lambda kind: error(lambda: kind(size=1, nme="a")),
    "no hash of what has none": lambda kind: error(lambda: hash(kind(size=1))),
}


def error(call: Callable[[], object]) -> type[BaseException]:
    with pytest.raises((TypeError, AttributeError)) as caught:
        call()
    return caught.type


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_as_the_standard_one(use: Callable[[Any], object]) -> None:
    assert use(OURS) == use(STANDARD)


def test_what_defaults_are_made_of_is_not_shared() -> None:
    first, second = OURS(size=1), OURS(size=1)
    first.tags["a"] = "b"
    assert second.tags == {}


def test_equal_values_are_one_key() -> None:
    options = LocalOptions(gpus=1, images=(), file_systems=())  # type: ignore[arg-type]
    assert {options: 1}[pickle.loads(pickle.dumps(options))] == 1


def test_the_words_of_an_error_name_class_and_field() -> None:
    with pytest.raises(
        TypeError, match=r"LocalOptions.__init__\(\) got an unexpected keyword argument 'gpu'"
    ):
        LocalOptions(gpu=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Thing.__init__\(\) is missing 'size'"):
        OURS(name="a")


def test_a_class_that_is_not_frozen_is_refused() -> None:
    with pytest.raises(TypeError, match="frozen"):
        _values.dataclass(frozen=False, kw_only=True)


def test_methods_of_the_class_itself_stay() -> None:
    @_values.dataclass(frozen=True, kw_only=True)
    class Named:
        """It says its name."""

        name: str

        def __repr__(self) -> str:
            return self.name

    assert repr(Named(name="a")) == "a"

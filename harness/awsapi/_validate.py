"""A request against the shapes of its operation, worded as AWS words it.

The forms are those that the service answers with, e.g. `1 validation error detected: Value 'my_job' at
'trainingJobName' failed to satisfy constraint: Member must satisfy regular expression pattern: …`:
camelCase paths, list items as `.1.member`, scalar items and map entries reported once for the whole
list or map. AWS does not say which entry of a map broke the rule; we add that in parentheses.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from harness._values import dataclass
from harness.awsapi._model import Shape, Shapes, load
from harness.errors import ValidationError
from harness.model import JsonObject

_SHOWN = 512  # AWS echoes the whole value, however long; we cut it here

_TYPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "structure": ("a structure", (Mapping,)),
    "map": ("a map", (Mapping,)),
    "list": ("a list", (list, tuple)),
    "string": ("a string", (str,)),
    "integer": ("an integer", (int,)),
    "long": ("an integer", (int,)),
    "float": ("a number", (int, float)),
    "double": ("a number", (int, float)),
    "boolean": ("a boolean", (bool,)),
    "timestamp": ("a timestamp", (str, int, float, datetime.datetime)),
    "blob": ("bytes", (str, bytes)),
}


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One constraint of the model that the request breaks."""

    path: str
    """AWS's own: `inputDataConfig.1.member.channelName`."""
    constraint: str
    """`Member must …`."""
    value: str | None
    """As AWS prints it; None prints as `null`."""
    note: str = ""
    """What AWS leaves out: which entry it was, what was meant."""

    def __str__(self) -> str:
        value = "null" if self.value is None else f"'{self.value}'"
        note = f" ({self.note})" if self.note else ""
        return f"Value {value} at '{self.path}' failed to satisfy constraint: {self.constraint}{note}"


def validate(operation: str, request: JsonObject) -> None:
    """Check `request` against the installed botocore's model of `operation`.

    Raises:
        ValidationError: with every violation in one text, worded as AWS words it.
        SpecError: no such operation.
    """
    found = violations(operation, request)
    if found:
        raise ValidationError(message(found))


def violations(operation: str, request: JsonObject) -> list[Violation]:
    """What `validate` would raise about, item by item; empty when the request keeps the model."""
    root, shapes = load(operation)
    return list(_structure(shapes, shapes[root], request, ""))


def message(found: Sequence[Violation]) -> str:
    """AWS's ValidationException text for these violations."""
    plural = "" if len(found) == 1 else "s"
    return f"{len(found)} validation error{plural} detected: " + "; ".join(map(str, found))


def closest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str | None:
    """The known word that was probably meant; letter case and underscores don't count."""
    import difflib

    plain: dict[str, str] = {}
    for name in known:  # of two spellings of one name the first is offered
        plain.setdefault(name.replace("_", "").lower(), name)
    near = difflib.get_close_matches(word.replace("_", "").lower(), plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def _visit(shapes: Shapes, name: str, value: Any, path: str) -> Iterator[Violation]:
    shape = shapes[name]
    kind = shape["type"]
    wrong = _wrong_type(kind, value)
    if wrong:
        yield Violation(path=path, constraint=wrong, value=show(value))
    elif kind == "structure":
        yield from _structure(shapes, shape, value, path)
    elif kind == "list":
        yield from _list(shapes, shape, value, path)
    elif kind == "map":
        yield from _map(shapes, shape, value, path)
    else:
        for constraint in _broken(shape, value):
            yield Violation(path=path, constraint=constraint, value=show(value))


def _structure(shapes: Shapes, shape: Shape, value: Mapping[str, Any], path: str) -> Iterator[Violation]:
    members = shape["members"]
    required = shape.get("required", ())
    for name in value:
        if name not in members:
            meant = closest(name, members)
            yield Violation(
                path=_join(path, name),
                constraint="Member is unknown",
                value=show(value[name]),
                note=f"did you mean '{meant}'?" if meant else f"it has {', '.join(members)}",
            )
    for name, shape_name in members.items():
        here = _join(path, name)
        if value.get(name) is not None:
            yield from _visit(shapes, shape_name, value[name], here)
        elif name in required:
            yield Violation(path=here, constraint="Member must not be null", value=None)
        elif name in value:
            yield Violation(path=here, constraint="Member must not be null", value=None, note="leave it out")


def _list(shapes: Shapes, shape: Shape, value: Sequence[Any], path: str) -> Iterator[Violation]:
    for constraint in _broken(shape, value):
        yield Violation(path=path, constraint=constraint, value=show(value))
    item = shapes[shape["member"]]
    if item["type"] in ("structure", "list", "map"):
        for number, each in enumerate(value, start=1):
            yield from _visit(shapes, shape["member"], each, f"{path}.{number}.member")
    else:
        bad = [str(n) for n, each in enumerate(value, start=1) if _wrong(item, each)]
        yield from _entries(item, value, path, "Member must satisfy constraint", bad, "item")


def _map(shapes: Shapes, shape: Shape, value: Mapping[Any, Any], path: str) -> Iterator[Violation]:
    for constraint in _broken(shape, value):
        yield Violation(path=path, constraint=constraint, value=show(value))
    key, item = shapes[shape["key"]], shapes[shape["value"]]
    bad = [repr(k) for k in value if _wrong(key, k)]
    yield from _entries(key, value, path, "Map keys must satisfy constraint", bad, "key")
    if item["type"] in ("structure", "list", "map"):
        for k, each in value.items():
            yield from _visit(shapes, shape["value"], each, f"{path}.{k}.member")
        return
    for k, each in value.items():
        wrong = _wrong_type(item["type"], each)
        if wrong:
            yield Violation(path=f"{path}.{k}", constraint=wrong, value=show(each))
    sized = {k: each for k, each in value.items() if not _wrong_type(item["type"], each)}
    bad = [f"{k!r}{_length(each)}" for k, each in sized.items() if any(_broken(item, each))]
    yield from _entries(item, value, path, "Map value must satisfy constraint", bad, "value of")


def _entries(
    item: Shape, whole: Any, path: str, words: str, bad: Sequence[str], what: str
) -> Iterator[Violation]:
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        every = (
            ", ".join(text for text, _ in _constraints(item)) or f"Member must be {_TYPES[item['type']][0]}"
        )
        yield Violation(
            path=path, constraint=f"{words}: [{every}]", value=show(whole), note=f"{what} {shown}"
        )


def _length(value: Any) -> str:
    return f": {len(value)} characters" if isinstance(value, str) and len(value) > 60 else ""


def _wrong(shape: Shape, value: Any) -> bool:
    return bool(_wrong_type(shape["type"], value)) or any(_broken(shape, value))


def _wrong_type(kind: str, value: Any) -> str:
    words, types = _TYPES[kind]
    # bool is an int to Python, never to AWS.
    if isinstance(value, types) and (kind == "boolean" or not isinstance(value, bool)):
        return ""
    return f"Member must be {words}"


def _broken(shape: Shape, value: Any) -> Iterator[str]:
    return (text for text, keeps in _constraints(shape) if not keeps(value))


def _constraints(shape: Shape) -> Iterator[tuple[str, Callable[[Any], bool]]]:
    """Each constraint of a shape in AWS's words and order, and the test for it."""
    number = shape["type"] in ("integer", "long", "float", "double")
    what = "value" if number else "length"

    def measure(value: Any) -> Any:
        return value if number else len(value)

    if "max" in shape and shape["type"] != "timestamp":
        top = shape["max"]
        yield f"Member must have {what} less than or equal to {top}", lambda v: measure(v) <= top
    if "min" in shape and shape["type"] != "timestamp":
        low = shape["min"]
        yield f"Member must have {what} greater than or equal to {low}", lambda v: measure(v) >= low
    if "pattern" in shape:
        pattern = shape["pattern"]
        yield (
            f"Member must satisfy regular expression pattern: {pattern}",
            lambda v: _matcher(pattern)(v) is not None,
        )
    if "enum" in shape:
        values = shape["enum"]
        yield f"Member must satisfy enum value set: [{', '.join(values)}]", lambda v: v in values


@cache
def _matcher(pattern: str) -> Callable[[str], object]:
    """Java's `matches()` for a pattern of the model."""
    try:
        return re.compile(pattern).fullmatch
    except re.error:
        pass
    import regex  # \p{L} and its like, which `re` doesn't know; 20 ms, so only when a request has them

    try:
        matcher: Callable[[str], object] = regex.compile(pattern).fullmatch
    except regex.error:
        # Two patterns of the model are no regular expression in any dialect: only the service can tell.
        return lambda _: True
    return matcher


def show(value: Any) -> str | None:
    """A value as AWS echoes it (Java's toString), but on one line and cut at 512 characters."""
    if value is None:
        return None
    text = _java(value).replace("\r", "\\r").replace("\n", "\\n")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _java(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}={_java(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_java, value)) + "]"
    return str(value)


def _join(path: str, member: str) -> str:
    lower = member[:1].lower() + member[1:]
    return f"{path}.{lower}" if path else lower

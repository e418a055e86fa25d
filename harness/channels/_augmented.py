"""Augmented manifests: a JSON object per line, some attributes of which are streamed (contract: E20, E21)."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final, NamedTuple

from harness.errors import ClientError

__all__ = ["Reference", "check", "offsets", "values"]

_REFERENCE: Final = "-ref"


class Reference(NamedTuple):
    """The value of an attribute that is replaced by an object's bytes."""

    uri: str


def offsets(file: IO[bytes]) -> array[int]:
    """Where each line begins that isn't blank."""
    found = array("Q")
    at = 0
    for line in file:
        if not line.isspace():
            found.append(at)
        at += len(line)
    return found


def check(file: IO[bytes], attributes: Sequence[str], uri: str, channel: str) -> None:
    """Raise ClientError unless the first line is one: a wrong name in AttributeNames is seen before the start."""
    first = next((line for line in file if not line.isspace()), None)
    if first is None:
        raise ClientError(f"Data download failed: channel {channel}: the augmented manifest {uri} is empty")
    for _ in values(first, attributes, f"the first line of {uri}", channel):
        pass


def values(line: bytes, attributes: Sequence[str], where: str, channel: str) -> Iterator[bytes | Reference]:
    """What goes into the stream for one line, in the order of AttributeNames.

    A text goes as it is, anything else as JSON. Raises ClientError: `where` has no such attribute, or is no
    JSON object.
    """

    def wrong(what: str) -> ClientError:
        return ClientError(f"Data download failed: channel {channel}: {where} {what}")

    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise wrong(f"is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise wrong("is no JSON object, as a line of an augmented manifest is")
    for name in attributes:
        if name not in row:
            raise wrong(f"has no attribute {name!r}, which AttributeNames asks for; it has {', '.join(row)}")
        value = row[name]
        if name.endswith(_REFERENCE):
            if not isinstance(value, str):
                raise wrong(f"has no S3 URI in {name!r}")
            yield Reference(value)
        elif isinstance(value, str):
            yield value.encode("utf-8", "surrogatepass")
        else:
            yield json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

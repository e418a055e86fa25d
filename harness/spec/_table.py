"""Tables whose keys may be the SDK's words or AWS's member names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.awsapi import closest
from harness.spec._draft import Words

_NO_ALIASES: Mapping[str, str] = {}


def spelled(
    words: Words, table: Any, where: str, members: Sequence[str], aliases: Mapping[str, str] = _NO_ALIASES
) -> dict[str, Any]:
    """`table` with AWS's member names.

    A key may be the AWS name itself, the same in snake_case, or one of `aliases` (SDK word → AWS name).
    SDK objects that know their request form (`DebuggerHookConfig(…)`) are asked for it.

    Raises:
        SpecError: it is no table, a key is unknown (with the one that was meant), or a member comes twice.
    """
    if hasattr(table, "_to_request_dict"):
        table = table._to_request_dict()
    if not isinstance(table, Mapping):
        raise words.error(f"{where} must be a table, not {kind(table)}")
    known = {
        **{snake(member): member for member in members},
        **{member: member for member in members},
        **aliases,
    }
    result: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            # Offered in the spelling that the writer uses.
            offered = members if key[:1].isupper() else sorted({*map(snake, members), *aliases})
            raise words.error(unknown(key, where, offered, offered))
        if known[key] in result:
            raise words.error(f"{where} has {known[key]} twice, in two spellings")
        result[known[key]] = value
    return result


def unknown(key: str, where: str, offered: Sequence[str], known: Mapping[str, Any] | Sequence[str]) -> str:
    """The sentence about a key that nobody knows."""
    meant = closest(key, known)
    hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(offered)}"
    return f"unknown key {key!r} in {where}; {hint}"


def snake(member: str) -> str:
    """`S3OutputPath` → `s3_output_path`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[0-9])(?=[A-Z][a-z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", member)
    return spaced.lower()


def kind(value: Any) -> str:
    """A value's type in the words of a spec file."""
    names: tuple[tuple[type, str], ...] = (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number"),
        (str, "a string"),
        (Mapping, "a table"),
        (list, "a list"),
        (tuple, "a list"),
    )
    return next((name for cls, name in names if isinstance(value, cls)), f"a {type(value).__name__}")

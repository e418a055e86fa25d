"""The `[local]` table: how this machine stands in for the cloud."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from harness.model import ALWAYS_STRICT, ENGINES, STRICT, LocalOptions
from harness.spec._draft import Words
from harness.spec._table import kind, unknown

_INTERNAL = ("debug", "evidence", "strict_contract")
_FIELDS = tuple(f.name for f in dataclasses.fields(LocalOptions) if f.name not in _INTERNAL)
_SIZE = re.compile(r"\d+(\.\d+)?[kmgt]?i?b?", re.IGNORECASE)
_SWITCHES = ("offline", "strict", "warm")
_SECONDS = ("stop_grace", "checkpoint_interval", "warm_idle", "hang_after")
_NUMBERS = {
    "s3_latency_ms": "milliseconds, 0 or more",
    "s3_throughput_mbps": "megabits per second, or 0 for no limit",
}
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_TABLES = ("images", "file_systems")


def local_options(words: Words, options: Mapping[str, Any]) -> LocalOptions:
    """`[local]` of the spec with the command line's `options` over it; None means not given.

    Raises:
        SpecError: an unknown key, or a value that makes no sense.
    """
    table = words.get("local", {})
    if not isinstance(table, Mapping):
        raise words.error(f"local must be a table, not {kind(table)}")
    options = {key: value for key, value in options.items() if value is not None}
    everything = bool(options.pop("strict_contract", False))
    switches: Mapping[str, Any] = {}
    if isinstance(table.get("strict"), Mapping):  # [local.strict]; true or false is --strict's word
        switches = table["strict"]
        table = {key: value for key, value in table.items() if key != "strict"}
    strict_contract = _strict_contract(words, switches, everything=everything)
    values: dict[str, Any] = {**table, **options}
    for key in _TABLES:
        if isinstance(table.get(key), Mapping) and isinstance(options.get(key), Mapping):
            values[key] = {**table[key], **options[key]}
    for key, value in values.items():
        if key not in _FIELDS:
            raise words.error(unknown(key, "[local]", _FIELDS, _FIELDS))
        values[key] = _checked(words, key, value)
    return LocalOptions(**values, strict_contract=strict_contract)


def _strict_contract(words: Words, given: Mapping[str, Any], *, everything: bool) -> tuple[str, ...]:
    """Names of STRICT that are on: those that `[local.strict]` says, with `everything` all that it doesn't deny."""
    known = (*STRICT, *ALWAYS_STRICT)
    for key, value in given.items():
        if key not in known:
            raise words.error(unknown(key, "[local.strict]", known, known))
        if not isinstance(value, bool):
            raise words.error(f"[local.strict] {key} must be true or false, not {reprlib.repr(value)}")
        if key in ALWAYS_STRICT and not value:
            raise words.error(
                f"[local.strict] {key} can't be switched off: {ALWAYS_STRICT[key]}, as in the cloud"
            )
    return tuple(name for name in STRICT if given.get(name, everything))


def _checked(words: Words, key: str, value: Any) -> Any:
    def wrong(must: str) -> Exception:
        return words.error(f"[local] {key} must be {must}, not {reprlib.repr(value)}")

    if key == "engine":
        if value not in (*ENGINES, "fake"):
            raise wrong(f"one of {', '.join(ENGINES)}")
    elif key == "gpus":
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not number and not (isinstance(value, str) and re.fullmatch(r"all|none|\d+(,\d+)*", value)):
            raise wrong('"all", a number, or indices such as "0,2"')
    elif key == "ranks":
        if value not in ("cloud", "local"):
            raise wrong('"cloud" or "local"')
    elif key in _TABLES:
        if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
            raise wrong("a table of strings")
        if key == "file_systems":
            return {name: str(words.path(path)) for name, path in value.items()}
        return dict(value)
    elif key in ("shm_size", "memory", "warm_memory"):
        text = str(value)
        if isinstance(value, bool) or not _SIZE.fullmatch(text):
            raise wrong('a size in bytes, or one such as "64m" or "2g"')
        return text
    elif key in _SECONDS:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise wrong("a number of seconds")
        return float(value)
    elif key in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise wrong(_NUMBERS[key])
        return float(value)
    elif key in _SWITCHES:
        if not isinstance(value, bool):
            raise wrong("true or false")
    elif key == "preload":
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(each, str) and _MODULE.fullmatch(each) for each in value
        ):
            raise wrong('a list of module names such as ["torch", "torchvision.models"]')
        return tuple(value)
    elif not isinstance(value, str):
        raise wrong("a string")
    return value

"""Spec files: `job.toml`, or a raw CreateTrainingJob request as `.json` or `.yaml`."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final

from harness.errors import SpecError
from harness.model import Spec
from harness.spec._compile import compile_request, compile_words, is_word
from harness.spec._draft import Words

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NOTHING: Mapping[str, Any] = {}
_DEEPEST: Final = 40
_MOST: Final = 100_000
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def load(
    path: Path | str,
    *,
    overrides: Mapping[str, Any] = _NOTHING,
    local: Mapping[str, Any] = _NOTHING,
    job_name: str | None = None,
    now: datetime | None = None,
) -> Spec:
    """Read a spec file and compile it.

    Args:
        path: `.toml` in the SDK's words; `.json`, `.yaml` or `.yml` with a raw request.
        overrides: dotted word → value, over what the file says (`hyperparameters.lr` → 0.1; in a raw
            request `ResourceConfig.InstanceType`). A word that is none of the spec's, but the name of a
            hyperparameter that the file has, stands for that hyperparameter.
        local: `[local]` keys from the command line, over the file's; None counts as not given.
        job_name: the exact job name.
        now: the moment in a generated job name.

    Raises:
        SpecError: the file can't be read or a word is wrong.
        ValidationError: the request breaks AWS's model or rules, in AWS's words.
    """
    file = Path(path)
    return compile_table(
        read(file),
        origin=str(file),
        base=file.absolute().parent,
        raw=file.suffix != ".toml",
        overrides=overrides,
        local=local,
        job_name=job_name,
        now=now,
    )


def read(path: Path | str) -> dict[str, Any]:
    """The words of a spec file as they stand there, unchecked.

    Raises:
        SpecError: the file can't be read, or is no table.
    """
    given = _read(Path(path))
    if not isinstance(given, dict):
        raise SpecError(f"{path}: a spec must be a table of words at its top")
    return given


def compile_table(
    table: Mapping[str, Any],
    *,
    origin: str,
    base: Path,
    raw: bool = False,
    overrides: Mapping[str, Any] = _NOTHING,
    local: Mapping[str, Any] = _NOTHING,
    job_name: str | None = None,
    now: datetime | None = None,
) -> Spec:
    """Compile a table that may have come from anywhere; `load` is `read` and this.

    Args:
        table: the words of a `job.toml`, or with `raw` a CreateTrainingJob request.
        origin: where it came from, for messages and provenance.
        base: what relative paths are relative to.

    Raises:
        SpecError, ValidationError: as `load`.
    """
    given = copy.deepcopy(dict(table))
    named = {_spelled_out(given, dotted, raw=raw): (dotted, value) for dotted, value in overrides.items()}
    for dotted, (_, value) in named.items():
        _override(given, dotted, value)
    words = Words(
        given=given,
        origin=origin,
        base=base,
        overridden={dotted: f"--set {asked}" for dotted, (asked, _) in named.items()},
    )
    compile_ = compile_request if raw else compile_words
    return compile_(words, local=local, job_name=job_name, now=now)


def _spelled_out(given: Mapping[str, Any], word: str, *, raw: bool) -> str:
    """`epochs` → `hyperparameters.epochs`, where the spec has no such word and has that hyperparameter.

    Only one that is there: a misspelt word of the spec must not become a new hyperparameter.
    """
    table = "HyperParameters" if raw else "hyperparameters"
    known = given.get(table)
    if not isinstance(known, Mapping) or word not in known or is_word(word):
        return word
    return f"{table}.{word}" if _PLAIN_KEY.fullmatch(word) else f"{table}.{json.dumps(word)}"


def parse_set(text: str) -> tuple[str, Any]:
    """`hyperparameters.lr=0.1` → ("hyperparameters.lr", 0.1); what is no TOML value is a string.

    Values of environment variables are text, whatever they look like.

    Raises:
        SpecError: there is no `=` in it.
    """
    dotted, equals, value = text.partition("=")
    if not equals or not dotted.strip():
        raise SpecError(f"{text!r} is no assignment; write it as word=value, such as hyperparameters.lr=0.1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    textual = dotted.strip().lower().startswith("environment.") and not isinstance(parsed, str)
    return dotted.strip(), value if textual or isinstance(parsed, (date, time)) else parsed


def _read(file: Path) -> Any:
    readers = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
    if file.is_dir():
        raise SpecError(f"{file} is a directory: give the spec in it, such as {file / 'job.toml'}")
    if file.suffix not in readers:
        raise SpecError(f"{file}: a spec is a .toml, .json, .yaml or .yml file")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"the spec {file} can't be read: {reason}") from error
    try:
        found = readers[file.suffix](file, text)
    except RecursionError:
        raise _too_deep(file) from None
    _check_extent(file, found)
    return found


def _check_extent(file: Path, found: Any) -> None:
    """A few lines of YAML can stand for more values than a machine holds, or for themselves."""
    seen = 0
    left = [(found, 0)]
    while left:
        value, depth = left.pop()
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        seen += 1 + len(inside)
        if seen > _MOST:
            raise SpecError(f"{file} holds more than {_MOST:,} values: no request is that big")
        if depth > _DEEPEST:
            raise _too_deep(file)
        left += [(each, depth + 1) for each in inside]


def _too_deep(file: Path) -> SpecError:
    return SpecError(f"{file} is nested more than {_DEEPEST} levels deep: no request is that deep")


def _toml(file: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{file} is not valid TOML: {error}") from error


def _json(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{file} is not valid JSON: {error.msg} (at line {error.lineno}, column {error.colno})"
        ) from error


def _yaml(file: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SpecError(f"{file} is not valid YAML: {error.problem}{place}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{file} is not valid YAML: {error}") from error


def _override(given: dict[str, Any], dotted: str, value: Any) -> None:
    try:  # TOML's own dotted keys: a key with a dot in it is quoted
        tree: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{dotted!r} is no word of a spec: {error}") from error
    parts = []
    while isinstance(tree, dict):
        ((part, tree),) = tree.items()
        parts.append(part)
    place: Any = given
    for number, part in enumerate(parts, start=1):
        last = number == len(parts)
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            if last:
                place[int(part)] = value
            else:
                place = place[int(part)]
        elif not isinstance(place, dict):
            raise SpecError(f"{dotted} can't be set: {'.'.join(parts[: number - 1])} is no table")
        elif last:
            place[part] = value
        else:
            place = place.setdefault(part, {})

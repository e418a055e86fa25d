"""How an editor attaches to a debugged job: for VS Code a launch configuration, for others the words to enter."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from harness.errors import DiskError, SpecError
from harness.model import JsonObject, Spec

__all__ = ["CODE", "launch_configuration", "path_mappings", "project_of", "write_vscode"]

CODE: Final = "/opt/ml/code"
_NAME: Final = "SageMaker job (harness debug)"
_COMMENT: Final = re.compile(r'"(?:\\.|[^"\\])*"|(//[^\r\n]*|/\*.*?\*/)', re.DOTALL)
_COMMA: Final = re.compile(r'"(?:\\.|[^"\\])*"|(,)(?=\s*[}\]])')
_DECODER: Final = json.JSONDecoder()


def path_mappings(spec: Spec) -> list[tuple[Path, str]]:
    """Which directories and files of this machine lie where in /opt/ml/code, the most particular first.

    None for code that comes as an archive.
    """
    found: list[tuple[Path, str]] = []
    for upload in spec.uploads:
        if upload.kind != "source":
            continue
        found += [(path.absolute(), f"{CODE}/{path.name}") for path in upload.dependencies]
        path = upload.path.absolute()
        if path.is_dir():
            found.append((path, CODE))
        elif upload.entry_point is not None:  # one script; else it is an archive, which nobody edits
            found.append((path.parent, CODE))
    return found


def project_of(spec_file: Path) -> Path:
    """The folder that an editor has open, most likely: the nearest with .vscode or .git, else the spec's."""
    place = spec_file.absolute().parent
    for folder in (place, *place.parents):
        if (folder / ".vscode").is_dir() or (folder / ".git").exists():
            return folder
    return place


def launch_configuration(mappings: list[tuple[Path, str]], *, port: int, project: Path) -> JsonObject:
    """VS Code's `attach` configuration, with paths relative to the project where they are inside it."""
    return {
        "name": _NAME,
        "type": "debugpy",
        "request": "attach",
        "connect": {"host": "127.0.0.1", "port": port},
        "pathMappings": [
            {"localRoot": _relative(local, project), "remoteRoot": remote} for local, remote in mappings
        ],
        "justMyCode": False,
    }


def _relative(path: Path, project: Path) -> str:
    if not path.is_relative_to(project):
        return str(path)
    inside = path.relative_to(project).as_posix()
    return "${workspaceFolder}" if inside == "." else f"${{workspaceFolder}}/{inside}"


def write_vscode(configuration: JsonObject, project: Path) -> tuple[Path, bool]:
    """Put the configuration into the project's .vscode/launch.json; the file, and whether it was changed.

    Everything else in that file stays, comments too. Raises SpecError when it can't be understood, DiskError
    when it can't be written.
    """
    path = project / ".vscode" / "launch.json"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} can't be read ({error}): nothing was written to it") from error
    try:
        new = _merged(text, configuration)
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"{path} isn't a launch.json that can be added to ({error}): nothing was written to it"
        ) from error
    if new == text:
        return path, False
    if "\r\n" in text:
        new = new.replace("\r\n", "\n").replace("\n", "\r\n")
    try:
        path.parent.mkdir(exist_ok=True)
        target = Path(os.path.realpath(path))
        trial = target.with_name(f".{target.name}.{os.getpid()}")
        trial.write_text(new, encoding="utf-8", newline="")
        if target.exists():
            trial.chmod(target.stat().st_mode & 0o7777)
        trial.replace(target)
    except OSError as error:
        raise DiskError(f"{path} can't be written ({error.strerror})") from error
    return path, True


def _merged(text: str, configuration: JsonObject) -> str:
    if not text.strip():
        return json.dumps({"version": "0.2.0", "configurations": [configuration]}, indent=2) + "\n"
    plain = _blank(_COMMA, _blank(_COMMENT, text))
    whole = json.loads(plain)
    if not isinstance(whole, dict) or not isinstance(whole.get("configurations", []), list):
        raise TypeError("it has no list of configurations")
    members = dict(_members(plain, plain.index("{")))
    if "configurations" not in members:
        at = plain.index("{") + 1
        added = f'\n  "configurations": [{_indented(configuration, 4)}\n  ]'
        return text[:at] + added + ("," if members else "\n") + text[at:]
    start, _ = members["configurations"]
    items = list(_items(plain, start))
    for first, end in items:
        item = json.loads(plain[first:end])
        if isinstance(item, dict) and item.get("name") == configuration["name"]:
            return text[:first] + _updated(text[first:end], plain[first:end], configuration) + text[end:]
    added = _indented(configuration, 4) + ("," if items else "\n  ")
    return text[: start + 1] + added + text[start + 1 :]


def _updated(text: str, plain: str, configuration: JsonObject) -> str:
    """An object with our words in it; what else it has, and its comments, stay."""
    members = dict(_members(plain, 0))
    missing = {key: value for key, value in configuration.items() if key not in members}
    for key, (start, end) in sorted(members.items(), key=lambda each: -each[1][0]):
        if key in configuration and json.loads(plain[start:end]) != configuration[key]:
            text = text[:start] + _json(configuration[key], 6) + text[end:]
    for key, value in missing.items():
        text = f"{{\n      {json.dumps(key)}: {_json(value, 6)},{text[1:]}"
    return text


def _json(value: Any, indent: int) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n" + " " * indent)


def _indented(value: Any, indent: int) -> str:
    return "\n" + " " * indent + _json(value, indent)


def _blank(pattern: re.Pattern[str], text: str) -> str:
    """What the pattern's group finds as spaces: everything else stays where it is."""

    def blank(match: re.Match[str]) -> str:
        return match[0] if match[1] is None else re.sub(r"[^\r\n]", " ", match[0])

    return pattern.sub(blank, text)


def _skip(text: str, at: int) -> int:
    while text[at].isspace():
        at += 1
    return at


def _members(text: str, at: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and place of each value of the object that begins at `at`."""
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, at = _DECODER.raw_decode(text, start)
        yield name, (start, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _items(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Place of each item of the list that begins at `at`."""
    at = _skip(text, at + 1)
    while text[at] != "]":
        start = at
        _, at = _DECODER.raw_decode(text, start)
        yield start, at
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)

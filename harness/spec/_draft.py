"""The words that were given and the request that grows from them, each value with where it came from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.model import JsonObject

DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Words:
    """A spec as read: top-level words and tables, not yet checked."""

    given: Mapping[str, Any]
    origin: str
    """The file, or "python": for messages and provenance."""
    base: Path
    """What relative paths are relative to."""
    overridden: Mapping[str, str] = field(default_factory=dict)
    """Dotted word → the option that set it."""

    def get(self, word: str, default: Any = None) -> Any:
        value = self.given.get(word)
        return default if value is None else value

    def __contains__(self, word: str) -> bool:
        return self.given.get(word) is not None

    def source(self, word: str) -> str:
        """Where the value of a dotted word came from."""
        parts = word.split(".")
        for end in range(len(parts), 0, -1):
            option = self.overridden.get(".".join(parts[:end]))
            if option:
                return option
        return self.origin if parts[0] in self else DEFAULT

    def error(self, sentence: str) -> SpecError:
        """A value with a line break in it doesn't make two lines of the sentence."""
        return SpecError(f"{self.origin}: {sentence}".replace("\r", "\\r").replace("\n", "\\n"))

    def path(self, text: str) -> Path:
        """A path of the spec: absolute, `~`, or relative to the spec file.

        Raises:
            SpecError: nothing can have that path.
        """
        try:
            path = (self.base / Path(text).expanduser()).absolute()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                path.lstat()
        except (ValueError, RuntimeError, OSError) as error:
            shown = text if len(text) <= 100 else f"{text[:100]}…"
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise self.error(f"{shown!r} is no path ({reason})") from error
        return path


@dataclass(kw_only=True)
class Draft:
    """A request under construction."""

    request: JsonObject = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def put(self, path: str, value: Any, source: str) -> None:
        """Set the member at a dotted path of structures."""
        *above, last = path.split(".")
        place = self.request
        for member in above:
            place = place.setdefault(member, {})
        place[last] = value
        self._note(path, value, source)

    def put_entry(self, member: str, key: str, value: Any, source: str) -> None:
        """Set one entry of a map; its key may have dots."""
        self.request.setdefault(member, {})[key] = value
        self._note(f"{member}.{key}", value, source)

    def merge(self, member: str, value: Any, source: str) -> None:
        """Lay an AWS member over what the words gave: structures join, everything else replaces."""
        self._merge(self.request, member, value, member, source)

    def note_overrides(self, words: Words) -> None:
        """Name the option at each member that was overridden by its AWS path."""
        for dotted, option in words.overridden.items():
            for path in self.provenance:
                if path == dotted or path.startswith(f"{dotted}."):
                    self.provenance[path] = option

    def _merge(self, place: JsonObject, name: str, value: Any, path: str, source: str) -> None:
        if isinstance(value, Mapping) and isinstance(place.get(name), dict):
            for key, each in value.items():
                self._merge(place[name], key, each, f"{path}.{key}", source)
        else:
            place[name] = value
            self._note(path, value, source)

    def _note(self, path: str, value: Any, source: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, each in value.items():
                self._note(f"{path}.{key}", each, source)
        else:
            self.provenance[path] = source

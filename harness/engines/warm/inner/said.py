"""What a module says while it is imported, kept, and said again where the script imports it.

As in a new process: text comes at the script's `import`, warnings go through the filters that the script has set
until then, and what the module filters itself comes in front of those. Before Python 3.11 `importlib.import_module` doesn't ask, and so nothing comes there.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["Said", "await_imports"]


class Said:
    """Around an import: nothing that it writes comes out."""

    def __init__(self, name: str) -> None:
        self._top = name.partition(".")[0]
        self._texts: dict[str, bytes] = {}
        self._warnings: list[Any] = []
        self._in_front: list[Any] = []
        """Filters of warnings that it put before all others."""
        self._behind: list[Any] = []
        self._specs: list[Any] = []

    def __enter__(self) -> Said:
        # The one that the imported modules will have: see `child.hide`.
        warnings: Any = __import__("warnings")
        self._module = warnings
        self._show = warnings._showwarnmsg
        warnings._showwarnmsg = self._warnings.append
        self._before = list(warnings.filters)
        self._streams = [(name, number, os.dup(number), _file()) for name, number in _NUMBERS.items()]
        for name, number, _, file in self._streams:
            getattr(sys, name).flush()
            os.dup2(file, number)
        return self

    def __exit__(self, *_: object) -> None:
        if self._module._showwarnmsg == self._warnings.append:
            self._module._showwarnmsg = self._show
        self._compare_filters()
        for name, number, kept, file in self._streams:
            getattr(sys, "__%s__" % name).flush()
            os.dup2(kept, number)
            os.close(kept)
            self._texts[name] = os.pread(file, os.fstat(file).st_size, 0)
            os.close(file)

    def _compare_filters(self) -> None:
        filters, before = self._module.filters, self._before
        known = [one for one in filters if one in before]
        first = filters.index(known[0]) if known else len(filters)
        self._only_added = known == before
        self._in_front = filters[:first]
        self._behind = [one for one in filters[first:] if one not in before]

    def __bool__(self) -> bool:
        """Asked by each `import` of an imported module, whether it is in the middle of being imported."""
        specs, self._specs = self._specs, []
        for spec in specs:
            spec._initializing = False
        if specs:
            self._repeat(sys._getframe(1))
        return False

    def _await_import(self) -> None:
        if not (self._warnings or self._in_front or self._behind or any(self._texts.values())):
            return
        for name in [name for name in sys.modules if name.partition(".")[0] == self._top]:
            spec = getattr(sys.modules[name], "__spec__", None)
            if spec is not None:
                spec._initializing = self
                self._specs.append(spec)

    def _repeat(self, importer: Any) -> None:
        while importer.f_code.co_filename.startswith("<frozen importlib"):
            importer = importer.f_back
        for message in self._warnings:
            place = message.filename, message.lineno
            if os.path.dirname(place[0]) == os.path.dirname(__file__):
                place = importer.f_code.co_filename, importer.f_lineno  # it told of who imports it
            self._module.warn_explicit(message.message, message.category, *place, source=message.source)
        for name, data in self._texts.items():
            stream = getattr(sys, name)
            if data and stream is not None:
                stream.write(data.decode(stream.encoding or "utf-8", "replace"))
        filters = self._module.filters
        filters[:] = [
            *self._in_front,
            *(one for one in filters if one not in self._in_front),
            *(one for one in self._behind if one not in filters),
        ]
        self._module._filters_mutated()


def await_imports(said: Sequence[Said]) -> None:
    """Say it all at the next import of each module, or of one of the same package: here, or in a fork."""
    if said and all(one._only_added for one in said):
        module = said[0]._module
        module.filters[:] = said[0]._before
        module._filters_mutated()
    for one in said:
        one._await_import()


_NUMBERS = {"stdout": 1, "stderr": 2}


def _file() -> int:
    """One without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("said")
    return os.open("/tmp", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)

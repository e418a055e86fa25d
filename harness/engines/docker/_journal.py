"""How many bytes of stdout and of stderr make up the first N bytes of a host's output.

Docker keeps two streams and mixes them anew each time it is asked. After a crash only the sum is known,
the size of the log file; skipping that many bytes of a new mixture would double some lines and lose
others. So the order in which the pieces came is written down before they are handed on: four bytes each.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final

from harness.engines.docker._stream import STDERR, STDOUT, Piece

ERR: Final = 1 << 31
"""The bit that marks a run as stderr's; the rest is its length."""
WORD: Final = 4


class Journal:
    """The runs handed on so far; open it as a context manager."""

    def __init__(self, path: Path, skip: int) -> None:
        """Continue at byte `skip` of the mixed output; what was noted beyond is forgotten.

        Raises:
            OSError: `path` can't be written.
        """
        self.taken = {STDOUT: 0, STDERR: 0}
        runs, total = array("I"), 0
        for word in _read(path) if skip else ():
            size = min(word & ~ERR, skip - total)
            if size <= 0:
                break
            self.taken[STDERR if word & ERR else STDOUT] += size
            runs.append(size | (word & ERR))
            total += size
        self.unknown = skip - total
        """Bytes of `skip` that no note explains: the first ones of whatever comes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever dies here leaves the old one whole: without it bytes would be doubled and lost.
        new = path.with_name(f"{path.name}.new")
        self._file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(self._file, runs.tobytes())
            new.rename(path)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def note(self, pieces: Iterable[Piece]) -> None:
        """Write down pieces that are about to be handed on."""
        runs = array("I")
        for stream, data in pieces:
            runs.append(len(data) | (ERR if stream == STDERR else 0))
            self.taken[stream] += len(data)
        os.write(self._file, runs.tobytes())


def _read(path: Path) -> array[int]:
    runs = array("I")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return runs
    runs.frombytes(data[: len(data) - len(data) % WORD])
    return runs


class Rest:
    """What of a stream told from its beginning is new, given what was taken of it before."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._skip = dict(journal.taken)

    def of(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The new parts of `pieces`, in order; not yet noted."""
        new: list[Piece] = []
        for stream, data in pieces:
            drop = min(self._skip[stream], len(data))
            self._skip[stream] -= drop
            rest = data[drop:]
            if rest and self._journal.unknown:
                early, rest = rest[: self._journal.unknown], rest[self._journal.unknown :]
                self._journal.unknown -= len(early)
                self._journal.note([(stream, early)])
            if rest:
                new.append((stream, rest))
        return new

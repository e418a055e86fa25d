"""The process that looks at the files: `python -m harness.debugging._watch_process`.

A process of its own, so that the one that submits jobs has no threads: a supervisor can be forked from it.
It reads one JSON object per line from standard input, `{"scope": …, "serial": n}`, and ends with it. It writes,
one per line: `{"ready": n}` when no change of that scope would be missed any more; `{"change": [...], "at": epoch
seconds}` when something changed and then was left alone; `{"polls": why}` where there is no notice of changes;
`{"problem": sentence}`; and `{"stirs": true}` at once when something happens that may become a change, false when it didn't.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from harness.debugging._watch_places import why_poll
from harness.debugging._watch_tree import FileChange, Look, Scope, Tree, compare

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

__all__ = ["main"]

_STEP_MS: Final = 10
_QUIET: Final = 0.03
"""Seconds without an event after which a save is over; an editor needs several operations for one."""
_GONE: Final = 0.15
"""The same while a file is missing or empty: mostly it comes back, under an atomic save or a checkout, or is just
being written."""
_LONGEST: Final = 2.0
"""Seconds after which a storm without an end is looked at all the same."""
_HEARTBEAT: Final = 2.0
"""Seconds between two looks without any event: the kernel's queue has an end, and links lead elsewhere."""
_POLL: Final = 0.25
_SHARE: Final = 20
"""What took t seconds isn't repeated before t times this, events aside."""


class _Input:
    """Lines on standard input, without waiting for them."""

    def __init__(self) -> None:
        self._rest = b""

    def is_set(self) -> bool:
        """There is something to read. `watchfiles` asks this at every step whether to return early."""
        return bool(select.select([0], [], [], 0)[0])

    def lines(self) -> list[bytes]:
        """What has come; ends the process when nothing more can come."""
        if not self.is_set():
            return []
        data = os.read(0, 1 << 16)
        if not data:
            sys.exit(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


class _Notifier:
    """Tells that something happened that matters; what it was, nobody needs to know."""

    def __init__(self, commands: _Input) -> None:
        self.polls: str | None = None
        """Why there is no notice, and everything is looked at again and again."""
        self._commands = commands
        self._directories: dict[str, tuple[int, int]] = {}
        self._look = Look()
        self._rust: RustNotify | None = None

    def watch(self, look: Look) -> bool:
        """Watch this look's directories from now on; False when they were watched already."""
        self._look = look
        if look.directories == self._directories:
            return False
        before, self._rust = self._rust, None
        self._directories = dict(look.directories)
        self.polls = why_poll(look.directories) or self._begin(list(look.directories))
        if before is not None:
            before.close()
        return True

    def _begin(self, places: list[str]) -> str | None:
        from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

        try:
            # Not recursive: what is ignored, such as a virtual environment, must not use up the kernel's watches.
            self._rust = RustNotify(places, False, False, 0, False, True)
        except FileNotFoundError:
            self._directories = {}  # one of them has gone since the look: the next look knows
        except (WatchfilesRustInternalError, OSError) as error:
            return f"the kernel gives no notice of changes ({error})"
        return None

    def wait(self, seconds: float) -> bool:
        """Until something happened (True), the time is over or there is a command (False)."""
        if self._rust is None:
            select.select([0], [], [], min(seconds, _POLL))
            return False
        found = self._rust.watch(50, _STEP_MS, max(1, round(seconds * 1000)), self._commands)
        return isinstance(found, set) and any(self._look.concerns(path) for _, path in found)


class _Process:
    def __init__(self) -> None:
        self._input = _Input()
        self._notifier = _Notifier(self._input)
        self._tree = Tree(Scope())
        self._told = Look()
        """What the other side knows."""
        self._polls: str | None = None
        self._problems: set[str] = set()
        self._looked = self._cost = 0.0
        self._first: float | None = None
        """When the first event came that wasn't looked at yet, and the last one."""
        self._last = 0.0
        self._stirs = False

    def run(self) -> None:
        """Until standard input ends."""
        while True:
            happened = self._notifier.wait(self._patience())
            if happened and not self._stirs:
                self._stirs = True
                self._tell({"stirs": True})
            for line in self._input.lines():
                self._obey(json.loads(line))
                happened = True
            now = time.monotonic()
            if happened:
                self._first = now if self._first is None else self._first
                self._last = now
            if self._is_due(now):
                self._report()

    def _patience(self) -> float:
        if self._first is not None:
            return _QUIET
        return max(0.01, self._looked + self._pause() - time.monotonic())

    def _pause(self) -> float:
        return max(_POLL if self._notifier.polls else _HEARTBEAT, self._cost * _SHARE)

    def _is_due(self, now: float) -> bool:
        if self._first is None:
            return now - self._looked >= self._pause()
        if now - self._first >= _LONGEST:
            return True
        return now - self._last >= _QUIET and not self._in_checkout()

    def _in_checkout(self) -> bool:
        """Whether git is just about changing more files of one of the trees."""
        return any(os.path.exists(f"{place}/.git/index.lock") for place in self._told.directories)  # noqa: PTH110

    def _report(self) -> None:
        """Look, and tell what changed; or go on waiting, should a file be just being replaced."""
        look = self._look()
        changes = compare(self._told, look)
        now = self._looked
        if any(change.kind == "removed" or look.entries[change.path].is_empty for change in changes):
            if self._first is None:
                self._first = self._last = now
            if now - self._last < _GONE and now - self._first < _LONGEST:
                return
        passed = 0.0 if self._first is None else now - self._first
        self._first = None
        self._told = look
        if changes:
            self._tell({"change": [_plain(each) for each in changes], "at": time.time() - passed})
        elif self._stirs:
            self._tell({"stirs": False})
        self._stirs = False

    def _look(self) -> Look:
        """A look after which nothing changes unseen: its directories are watched, and then it is repeated."""
        started = time.monotonic()
        look = self._tree.look(self._told)
        for _ in range(3):
            if not self._notifier.watch(look):
                break
            look = self._tree.look(look)
        self._looked = time.monotonic()
        self._cost = self._looked - started
        if self._notifier.polls != self._polls:
            self._polls = self._notifier.polls
            self._tell({"polls": self._polls})
        for problem in look.problems:
            if problem not in self._problems:
                self._problems.add(problem)
                self._tell({"problem": problem})
        return look

    def _obey(self, command: dict[str, Any]) -> None:
        """Another scope: what changed in what both have is still to be told, the rest is known from now on."""
        scope = Scope.from_json(command["scope"])
        self._tree = Tree(scope)
        known = {path: entry for path, entry in self._told.entries.items() if scope.covers(path)}
        look = self._look()
        self._told = dataclasses.replace(look, entries={**look.entries, **known})
        self._tell({"ready": command["serial"]})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            print(json.dumps(message), flush=True)
        except BrokenPipeError:
            os._exit(0)


def _plain(change: FileChange) -> dict[str, Any]:
    return dataclasses.asdict(change)


def main() -> None:
    """Look at the files until nobody wants to know any more."""
    _Process().run()


if __name__ == "__main__":
    main()

"""Watching a spec and its source: what changed since the last time somebody asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from harness.debugging._watch_tree import FileChange, Scope
from harness.errors import MachineError, SpecError
from harness.model import JsonObject, Spec

__all__ = ["Change", "Watcher", "scope_of", "scope_of_file"]

_PATIENCE: Final = 60.0
"""Seconds for a first look: tens of thousands of files on a network take a while."""
_RESTARTS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Change:
    """What was saved since the last change that was told: all of it, each file once."""

    files: tuple[FileChange, ...]
    at: float
    """Epoch seconds of the first of it."""

    def and_then(self, later: Change) -> Change:
        """Both, as one."""
        files = {file.path: file for file in self.files}
        for file in later.files:
            earlier = files.get(file.path)
            files[file.path] = file if earlier is None else _joined(earlier, file)
        return Change(files=tuple(files.values()), at=self.at)


def _joined(earlier: FileChange, later: FileChange) -> FileChange:
    """Added and then changed is still added; what was removed and came back is changed."""
    kinds = (earlier.kind, later.kind)
    kind = later.kind
    if kinds == ("added", "changed"):
        kind = "added"
    elif kinds == ("removed", "added"):
        kind = "changed"
    return FileChange(
        path=later.path,
        kind=kind,
        added=earlier.added + later.added,
        removed=earlier.removed + later.removed,
        lines=(*earlier.lines, *later.lines),
    )


def scope_of(file: Path, spec: Spec | None = None) -> Scope:
    """What a change of would change the job: the spec file, and the code and single files that it names.

    A channel that is a directory isn't watched: it is data, and may be all of a disk.
    """
    trees: list[str] = []
    files = [str(file.absolute())]
    for upload in () if spec is None else spec.uploads:
        paths = (upload.path, *upload.dependencies)
        for path in paths:
            if upload.kind == "source" and path.is_dir():
                trees.append(str(path.absolute()))
            elif not path.is_dir():
                files.append(str(path.absolute()))
    return Scope(trees=tuple(dict.fromkeys(trees)), files=tuple(dict.fromkeys(files)))


def scope_of_file(file: Path) -> Scope:
    """The same of a spec that doesn't compile, as far as its words can be told: what it lacks may still come."""
    scope = scope_of(file)
    base = file.absolute().parent
    words = _words(file)
    trees = [str(base / text) for text in (words.get("source_dir"),) if isinstance(text, str)]
    script = words.get("entry_point")
    files = [str(base / script)] if isinstance(script, str) and not trees else []
    return Scope(trees=tuple(trees), files=(*scope.files, *files))


def _words(file: Path) -> JsonObject:
    """The top level of a job.toml; nothing of a request, which names no local files."""
    from harness.spec import read

    try:
        return read(file) if file.suffix == ".toml" else {}
    except SpecError:
        return {}


class Watcher:
    """Sees every change of a scope, from the moment at which `set` returned on.

    A context manager. The looking is done by a process of its own, so this one has no thread; should it
    be killed, another takes its place, and as nobody knows what it missed, that counts as a change.
    """

    def __init__(self) -> None:
        self.notices: list[str] = []
        """What the user should know, one sentence each; whoever tells them empties the list."""
        self.scope = Scope()
        """What is watched; see `set`."""
        self.stirs = False
        """Something happened since the last change that may become one."""
        self._serial = 0
        self._ready = 0
        self._restarts = 0
        self._polls: str | None = None
        self._pending: Change | None = None
        self._process = self._start()
        self._rest = b""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def set(self, scope: Scope) -> None:
        """Watch this from now on; a change of what was watched before and still is doesn't get lost.

        Raises MachineError when the process that looks can't be kept alive, or nothing can be looked at.
        """
        if scope != self.scope:
            self.scope = scope
            self._send()
            self._await_ready()

    def change(self, timeout: float = 0) -> Change | None:
        """What changed and was then left alone; waits for it up to `timeout` seconds. Each change is told once.

        None comes early when something begins to stir.
        """
        deadline = time.monotonic() + timeout
        stirred = self.stirs
        while True:
            left = max(0.0, deadline - time.monotonic())
            if self._receive(0 if self._pending else left):
                if self.stirs and not stirred and not self._pending:
                    return None
            elif self._pending or not left:
                found, self._pending = self._pending, None
                return found

    # ------------------------------------------------------------------- the process

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "harness.debugging._watch_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is for us
            )
        except OSError as error:
            raise MachineError(f"no process can be started to watch the files: {error}") from error

    def _send(self) -> None:
        self._serial += 1
        line = json.dumps({"scope": self.scope.to_json(), "serial": self._serial}) + "\n"
        assert self._process.stdin is not None
        # A process that has just died is found to be dead when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), line.encode())

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while self._ready != self._serial:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError(
                    f"the files couldn't be looked at within {_PATIENCE:.0f} s: {', '.join(self.scope.trees)}; "
                    "is there a network file system that doesn't answer?"
                )
            self._receive(left)

    def _receive(self, timeout: float) -> bool:
        """Take what has come; False when nothing did."""
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        if not select.select([out], [], [], timeout)[0]:
            return False
        data = os.read(out, 1 << 16)
        if not data:
            self._start_again()
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        return True

    def _start_again(self) -> None:
        self._process.communicate()
        code = self._process.returncode
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise MachineError(
                f"the process that watches the files ended again and again, the last time with code {code}: "
                "see what it printed, or what else on this machine ends processes"
            )
        self.notices.append(
            f"the process that watched the files ended (code {code}); another one watches now"
        )
        self._rest = b""
        self._process = self._start()
        self._send()
        self._await_ready()
        self._add(Change(files=(), at=time.time()))

    def _take(self, message: JsonObject) -> None:
        if "ready" in message:
            self._ready = message["ready"]
        elif "stirs" in message:
            self.stirs = message["stirs"]
        elif "problem" in message:
            self.notices.append(message["problem"])
        elif "polls" in message:
            if message["polls"] and not self._polls:
                self.notices.append(f"{message['polls']}: they are looked at four times a second instead")
            self._polls = message["polls"]
        else:
            files = tuple(FileChange(**{**file, "lines": tuple(file["lines"])}) for file in message["change"])
            self._add(Change(files=files, at=message["at"]))

    def _add(self, change: Change) -> None:
        self.stirs = False
        self._pending = change if self._pending is None else self._pending.and_then(change)

"""The preloaded interpreter: imports what it is told to, then forks a child for each request.

It tells the keeper of every step, so that the keeper knows which module hangs or kills it, and it does as
little as possible itself: what a request wants is read by the child.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from . import child, preload, program, said, wire
from .agreed import CONTROL, PADDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["Zygote", "main"]

_KEEPER_IS_GONE = 3
"""How an interpreter ends that nobody speaks to any more."""


def main(site: str, before: set[str]) -> bool:
    """Import and serve. Comes back in children only: whether there is a `sitecustomize` beside ours.

    `before`: the modules that were there before anything of ours.
    """
    child.hide(set(sys.modules) - before)
    control = wire.wrap(int(os.environ.pop(CONTROL)))
    del os.environ[PADDING]
    settings, _ = wire.receive(control)
    sys.path.remove(site)
    sys.path_importer_cache.pop(site, None)
    base = list(sys.path)
    pythonpath = settings["pythonpath"]
    if pythonpath is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = pythonpath
    sys.path[:] = child.search_path(base, pythonpath)
    customised = _customise()
    try:
        found = program.Program(sys.argv[0])
    except program.UnsuitableError as error:
        wire.send(control, {"unsuitable": str(error)})
        os._exit(0)
    zygote = Zygote(control, found, base)
    try:
        line = zygote.serve()
    except (EOFError, OSError):
        os._exit(_KEEPER_IS_GONE)  # or it wants another
    child.customise(line)
    return customised


def _customise() -> bool:
    """Import the `sitecustomize` that there would be without ours; whether there is one."""
    ours = sys.modules.pop("sitecustomize")
    try:
        if sys.meta_path[-1].find_spec("sitecustomize", None) is None:
            return False
        __import__("sitecustomize")
    except Exception as error:
        sys.stderr.write("Error in sitecustomize: %s: %s\n" % (type(error).__name__, error))
        return False
    finally:
        sys.modules.setdefault("sitecustomize", ours)
    return True


class Zygote:
    """What a preloaded interpreter knows of itself; its children read it."""

    def __init__(self, control: Any, found: program.Program, base: list[str]) -> None:
        self.control = control
        self.program = found
        self.base = base
        """sys.path as this Python has it without PYTHONPATH and without a script."""
        self.path = list(sys.path)
        """sys.path when the imports began."""
        self.started = dict(os.environb)
        """The environment before anything was imported."""
        self.reads = preload.Reads()
        """Variables that the imports asked for."""
        self.changed: dict[bytes, bytes | None] = {}
        """Variables that the imports set, or removed: None."""
        self.added: list[tuple[bool, str]] = []
        """What the imports put on sys.path; whether in front of what was there."""
        self.unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
        self.streams = [child.kind(number) for number in range(3)]
        self.semaphores: list[tuple[Any, int]] = []
        """Locks of multiprocessing that the imports made, and their values."""
        self.collects = False
        """A child's end must collect what was imported as well: nanobind complains of all that is left."""
        self._loaded = False

    def load(self, names: Sequence[str], beside: Sequence[str] = ()) -> None:
        """Import them one by one, and tell of each, and at last where imports come from.

        Ends the process after one that made it unfit to fork.

        `beside`: directories to look in first.
        """
        sys.path[:0] = beside
        all_said = []
        with self.reads:
            for name in names:
                wire.send(self.control, {"importing": name})
                outcome, why, heard = preload.load(name, time.sleep)
                wire.send(self.control, {outcome: name, "why": why})
                if outcome == "unsafe":
                    os._exit(0)
                all_said.append(heard)
        said.await_imports(all_said)
        for entry in beside:
            sys.path.remove(entry)
        now = dict(os.environb)
        for key in {*now, *self.started}:
            if now.get(key) != self.started.get(key):
                self.changed[key] = now.get(key)
        first = next((place for place, entry in enumerate(sys.path) if entry in self.path), len(sys.path))
        self.added = [
            (place < first, entry) for place, entry in enumerate(sys.path) if entry not in self.path
        ]
        gc.collect()
        self.semaphores = preload.semaphores()
        self.collects = any(getattr(type(one), "__module__", "") == "nanobind" for one in gc.get_objects())
        # A collection in a child would copy every page that holds an object's head, and its end, which is a
        # collection, would take as long as that of a process that imported everything.
        gc.freeze()
        wire.send(self.control, {"ready": [entry for entry in sys.path if os.path.isdir(entry)]})

    def serve(self) -> list[str]:
        """Fork for each request until the keeper is gone.

        Comes back in a child that became what was asked for, with its command line.
        """
        while True:
            helps = self._help() if self._loaded else False
            message, descriptors = wire.receive(self.control)
            if "load" in message:
                self.load(message["load"], message["beside"])
                self._loaded = True
                continue
            if not helps and not _in_fork():
                for number in descriptors:
                    os.close(number)
                continue
            parent = self._fork_on(message.get("fork"))
            if "branch" in message:
                self._loaded = False
                self.control.close()
                self.control = wire.wrap(descriptors[0])
                os.setpgid(0, 0)
                wire.send(self.control, {"pid": os.getpid()})
                continue
            line = child.become(self, wire.wrap(descriptors[0]))
            while os.getppid() == parent:
                time.sleep(0.0002)  # freeing its page tables takes as long as becoming something
            return line

    def _help(self) -> bool:
        """Go half of the way to the next child before anybody asks for it: each fork copies all page tables.

        True in a helper, which takes the next message; False where there can be none.
        """
        while True:
            try:
                helper = os.fork()
            except OSError:
                return False
            if not helper:
                return True
            _, status = os.waitpid(helper, 0)
            if status == _KEEPER_IS_GONE << 8:
                raise EOFError

    def _fork_on(self, number: int | None) -> int:
        """Fork, tell of the child, and end, so that the keeper is its parent; comes back in the child, with the
        number of this process."""
        parent = os.getpid()
        try:
            pid = os.fork()
            if pid and number is not None:
                wire.send(self.control, {"child": number, "pid": pid})
        except OSError:
            os._exit(1)
        if pid:
            os._exit(0)
        return parent


def _in_fork() -> bool:
    """Fork; True in the child, False when it has ended or there could be none."""
    try:
        pid = os.fork()
    except OSError:
        return False
    if pid:
        os.waitpid(pid, 0)
    return not pid

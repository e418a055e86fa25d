"""Import one module ahead of time, and look whether this process may still be forked."""

from __future__ import annotations

import os
import sys

from .said import Said

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Reads", "State", "load", "semaphores"]

_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/neuron")
_HARMLESS = frozenset({"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"})
_SIGCHLD = 17
_PATIENCE = 200
"""Looks, 10 ms apart, at threads that may be ending."""


class State:
    """What importing a module may not change for good."""

    def __init__(self) -> None:
        self.cwd = os.getcwd()
        self.umask = os.umask(0)
        os.umask(self.umask)
        self.descriptors = _descriptors()

    def restore(self) -> None:
        os.chdir(self.cwd)
        os.umask(self.umask)


def _descriptors() -> dict[int, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[int(number)] = os.readlink("/proc/self/fd/" + number)
        except OSError:
            continue  # the directory's own
    return found


class Reads:
    """Which environment variables Python code asks for inside the `with`, and what it finds.

    Who copies them all asks for none.
    """

    def __init__(self) -> None:
        self.found: dict[bytes, bytes | None] = {}

    def __enter__(self) -> Reads:
        cls = type(os.environ)
        self._cls, self._original = cls, (cls.__getitem__, cls.__iter__)
        found = self.found
        getitem, iterate = self._original
        copied = None

        def recording(self, key):  # type: ignore[no-untyped-def]
            try:
                value = getitem(self, key)
            except KeyError:
                found.setdefault(os.fsencode(key), None)
                raise
            if key is not copied:
                found.setdefault(os.fsencode(key), os.fsencode(value))
            return value

        def noting(self):  # type: ignore[no-untyped-def]
            nonlocal copied
            for key in iterate(self):
                copied = key
                yield key

        cls.__getitem__ = recording  # type: ignore[method-assign]
        cls.__iter__ = noting  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._cls.__getitem__, self._cls.__iter__ = self._original  # type: ignore[method-assign]


def load(name: str, pause: Callable[[float], None]) -> tuple[str, str, Said]:
    """Import `name`: "imported", or "excluded" when there is no such module, or "unsafe" when this process must
    not be forked any more; why; and what the import wrote."""
    before = State()
    outcome, why = "imported", ""
    with Said(name) as said:
        try:
            __import__(name)
        except BaseException as error:
            # Also SystemExit: a module that ends the program ends the script later. Half of a module is there
            # now, and the script's own import would meet it.
            nothing = isinstance(error, ModuleNotFoundError) and (name + ".").startswith("%s." % error.name)
            outcome, why = "excluded" if nothing else "unsafe", _sentence(error)
    before.restore()
    harm = _harm(before, pause)
    return ("unsafe", harm, said) if harm and outcome != "unsafe" else (outcome, why, said)


def semaphores() -> list[tuple[Any, int]]:
    """Locks and semaphores of multiprocessing in this process, with their values."""
    modules: dict[str, Any] = sys.modules
    synchronize = modules.get("multiprocessing.synchronize")
    if synchronize is None:
        return []
    found = list(modules["multiprocessing.util"]._afterfork_registry.values())
    return [(one, one._semlock._get_value()) for one in found if isinstance(one, synchronize.SemLock)]


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    return type(error).__name__ + (": " + text.splitlines()[0][:300] if text else "")


def _harm(before: State, pause: Callable[[float], None]) -> str | None:
    """What makes a fork of this process another than a new process would be.

    Handlers of signals aren't: a fork has them as well. But for this one, whose helpers' ends it waits for.
    """
    for number, target in _descriptors().items():
        if target.startswith(_DEVICES):
            return "it opens " + target
        if before.descriptors.get(number) != target and not _is_read(number, target):
            name = target.partition("anon_inode:")[2].strip("[]") or target.partition(":[")[0]
            return "it keeps %s open" % name
    if _handles(_SIGCHLD):
        return "it handles the ends of processes"
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            words = line.split(None, 5)
            if words[1] == b"rw-s" and not words[-1].startswith(b"/dev/shm/sem."):
                return "it shares memory"
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        return "it initialises CUDA"
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return "it starts processes"
    except ChildProcessError:
        pass
    if _threads() > 1:
        # Libraries that know of forks (OpenBLAS) end their threads before one and start them again later.
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        for _ in range(_PATIENCE):
            if _threads() == 1:
                return None
            pause(0.01)
        return "it starts threads (%d)" % (_threads() - 1)
    return None


def _is_read(number: int, target: str) -> bool:
    """A file that is only read; whoever else reads it has its own place in it in most libraries."""
    with open("/proc/self/fdinfo/%d" % number, "rb") as file:
        flags = int(next(line for line in file if line.startswith(b"flags:")).split()[1], 8)
    return target in _HARMLESS or (target.startswith("/") and flags & os.O_ACCMODE == os.O_RDONLY)


def _handles(number: int) -> bool:
    with open("/proc/self/status", "rb") as file:
        lines = dict(line.partition(b":")[::2] for line in file)
    return any(int(lines[name], 16) >> (number - 1) & 1 for name in (b"SigIgn", b"SigCgt"))


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))

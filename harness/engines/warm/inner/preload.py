"""Import one module ahead of time, and look whether this process may still be forked."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reads", "State", "load"]

_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/neuron")
_PATIENCE = 50
"""Looks, 10 ms apart, at threads that may be ending."""


_LIBC_SIGNALS = 3 << 31
"""32 and 33: glibc handles them once there was a second thread."""


class State:
    """What importing a module may not change for good."""

    def __init__(self) -> None:
        with open("/proc/self/status", "rb") as file:
            lines = dict(line.partition(b":")[::2] for line in file)
        names = (b"SigBlk", b"SigIgn", b"SigCgt")
        self.signals = [int(lines[name], 16) & ~_LIBC_SIGNALS for name in names]
        self.cwd = os.getcwd()
        self.umask = os.umask(0)
        os.umask(self.umask)

    def difference(self, before: State) -> str | None:
        if self.signals != before.signals:
            return "it changes how signals are handled"
        return None

    def restore(self) -> None:
        os.chdir(self.cwd)
        os.umask(self.umask)


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


def load(name: str, pause: Callable[[float], None]) -> tuple[str, str]:
    """Import `name`: ("imported", ""), ("excluded", why) for one that can't be imported, or ("unsafe", why)
    when this process must not be forked any more."""
    before = State()
    try:
        __import__(name)
    except BaseException as error:  # also SystemExit: a module that ends the program ends the script later
        outcome = "excluded", _sentence(error)
    else:
        outcome = "imported", ""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    before.restore()
    why = State().difference(before) or _harm(pause)
    return ("unsafe", why) if why else outcome


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    return type(error).__name__ + (": " + text.splitlines()[0][:300] if text else "")


def _harm(pause: Callable[[float], None]) -> str | None:
    """What makes a fork of this process another than a new process would be."""
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + number)
        except OSError:
            continue
        if target.startswith(_DEVICES):
            return "it opens " + target
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


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))

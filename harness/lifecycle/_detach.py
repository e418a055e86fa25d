"""Processes that outlive us: forked with everything that is imported, in a session of their own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["fork", "stay"]


def fork(work: Callable[[], None]) -> None:
    """Run `work` in a grandchild with a session of its own, and return once it is there.

    Its streams and descriptors are still ours: `stay` gives it its own. Raises OSError.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: not the job's concern
            stream.flush()
    child = os.fork()
    if child:
        if os.waitpid(child, 0)[1]:
            raise OSError("the process that was to start it ended at once")
        return
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _forget_handlers()
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        # Not sys.exit: the caller's `finally` blocks and exit handlers are not this process's to run.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def _forget_handlers() -> None:
    """What our parent does about Ctrl-C, or when it is asked to end, is about its own work."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, own)


def stay(log: Path | str, kept: int) -> int:
    """Leave what our parent has: streams go to `log`, and only the descriptor `kept` stays open; its new number."""
    kept = fcntl.fcntl(kept, fcntl.F_DUPFD_CLOEXEC, 3)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.closerange(3, kept)
    os.closerange(kept + 1, _highest_descriptor() + 1)
    # The caller's sys.stdout may be a test's or a notebook's object that writes elsewhere.
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
    return kept


def _highest_descriptor() -> int:
    return max(int(entry) for entry in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths

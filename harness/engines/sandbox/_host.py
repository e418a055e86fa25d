"""One running host of the sandbox, as the supervisor sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final

from harness.engines._output import Output
from harness.engines.sandbox import _usage
from harness.engines.sandbox._memory import MemoryGroup, machine_memory, oom_kills
from harness.engines.sandbox._orphans import end_marked
from harness.engines.sandbox.inner import launcher
from harness.engines.sandbox.inner.remove import remove_tree
from harness.errors import EngineError
from harness.model import ExitStatus, Usage

__all__ = ["SandboxHost"]

_KILL_PATIENCE: Final = 30.0

_living: weakref.WeakSet[SandboxHost] = weakref.WeakSet()


def _let_go() -> None:
    """A fork of the supervisor must not keep its hosts alive when the supervisor itself is killed."""
    for host in _living:
        host.let_go()


os.register_at_fork(after_in_child=_let_go)


class SandboxHost:
    """A host that was started. Safe to use from several threads.

    `output` hands out each byte once, straight from the pipe, so that a slow reader slows the script down
    instead of filling a disk: read it in a thread of its own, or a host that writes more than the pipe
    holds (1 MiB) waits for you.
    """

    def __init__(
        self,
        *,
        name: str,
        job: str,
        process: subprocess.Popen[bytes],
        output: int,
        status: int,
        report: dict[str, Any],
        group: MemoryGroup | None,
        remove: tuple[str, ...],
        memory_limit: int | None,
        oom_kills_before: int,
    ) -> None:
        self._name = name
        self._job = job
        self._process = process
        assert process.stdin is not None
        self._control: IO[bytes] = process.stdin
        _living.add(self)
        self._output = Output(name, output)
        self._pid = int(report["pid"])
        self._exec_error: dict[str, Any] | None = report["exec"]
        self._entry = {
            "engine": "sandbox",
            "pid": self._pid,
            "started": _usage.start_time(self._pid),
            "boot": _usage.boot(),
            "cgroup_procs": None if group is None else str(group.processes),
        }
        self._group = group
        self._remove = remove
        self._memory_limit = memory_limit
        self._oom_kills_before = oom_kills_before
        self._we_killed = False
        self._status: ExitStatus | None = None
        self._ended = threading.Event()
        self._control_lock = threading.Lock()
        self.notes: tuple[str, ...] = tuple(report["notes"])
        """What this machine couldn't give the host, one sentence each."""
        # Daemon: a supervisor that ends takes its hosts along, there is nothing to wait for.
        self._watcher = threading.Thread(
            target=self._watch, args=(status,), name=f"sandbox-{name}", daemon=True
        )
        self._watcher.start()

    def __repr__(self) -> str:
        return f"<SandboxHost {self._name} pid {self._pid}{' ended' if self._ended.is_set() else ''}>"

    @property
    def name(self) -> str:
        return self._name

    @property
    def entry(self) -> Mapping[str, Any]:
        """See `Host.entry`: process 1, and when it started, or another could be taken for it later."""
        return dict(self._entry)

    @property
    def pid(self) -> int:
        """Process 1 of the host, as this machine numbers it."""
        return self._pid

    def output(self, skip: int = 0) -> Iterator[bytes]:
        """See `Host.output`. A second call goes on where the first stopped.

        Raises:
            EngineError: bytes are asked for that were handed out already; a pipe has them only once.
        """
        return self._output.read(skip)

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """See `Host.wait`."""
        self._ended.wait(timeout)
        return self._status

    def signal(self, number: int) -> None:
        """See `Host.signal`. Process 1 gets only what it has a handler for, and SIGKILL (contract: G10)."""
        number = signal.Signals(number).value
        with self._control_lock:
            if self._ended.is_set():
                return
            if number == signal.SIGKILL:
                self._we_killed = True
            # The launcher delivers it: it is the parent, so the pid can't be another process's by now.
            with contextlib.suppress(BrokenPipeError):
                self._control.write(bytes([number]))

    def kill(self) -> None:
        """See `Host.kill`.

        Raises:
            EngineError: the kernel doesn't end a process, as with one that hangs in a dead file system.
        """
        self.signal(signal.SIGKILL)
        if not self._ended.wait(_KILL_PATIENCE):
            raise EngineError(
                f"{self._name} (process {self._pid}) doesn't end {_KILL_PATIENCE:.0f} s after SIGKILL: "
                f"look for a process in state D"
            )

    def usage(self) -> Usage | None:
        """See `Host.usage`."""
        if self._ended.is_set():
            return None
        found = _usage.processes(self._pid)
        if not found:
            return None
        seconds, memory = _usage.totals(found)
        if self._group is not None:
            used = self._group.used()
            memory = memory if used is None else used
        return Usage(
            cpu_seconds=seconds,
            memory_bytes=memory,
            memory_limit_bytes=self._memory_limit or machine_memory(),
            pids=tuple(sorted(found)),
        )

    def watch_oom(self) -> Callable[[int], bool]:
        """See `KeepableHost.watch_oom`; told as the end of a host is: of the machine's own counter only
        with the code of a killed process."""
        group = self._group
        if group is not None:
            own_before = group.oom_kills()
            return lambda _: group.oom_kills() > own_before
        before = oom_kills()
        return lambda code: code == 137 and oom_kills() > before

    def finish(self, timeout: float) -> bool:
        """Wait until the launcher has cleaned up after the host; whether it did in time.

        Raises:
            EngineError: something can't be removed.
        """
        self._watcher.join(timeout)
        if self._watcher.is_alive():
            return False
        try:
            for path in self._remove:  # there only if the launcher was killed
                remove_tree(path)
            if self._group is not None:
                self._group.remove()
        except OSError as error:
            raise EngineError(f"can't remove what {self._name} of {self._job} left: {error}") from error
        return True

    def let_go(self) -> None:
        """In a process forked off the supervisor: give up the control pipe, whose end ends the host."""
        with contextlib.suppress(OSError):
            self._control.close()

    # ------------------------------------------------------------------------------------------- internals

    def _watch(self, status: int) -> None:
        try:
            told = launcher.read_frame(status)
        except (EOFError, OSError):
            told = None
        self._status = self._judge(told)
        with self._control_lock:
            self._ended.set()
        self._output.end()
        with contextlib.suppress(EOFError, OSError):
            launcher.read_frame(status)  # end of file: it has cleaned up
        os.close(status)
        self._process.wait()
        self._control.close()

    def _judge(self, told: dict[str, Any] | None) -> ExitStatus:
        if told is None:
            self._end_by_force()
            return ExitStatus(
                code=137, vanished=True, error="the sandbox's launcher died, and the host with it"
            )
        if self._exec_error is not None:
            return ExitStatus(code=int(self._exec_error["code"]), error=str(self._exec_error["error"]))
        code = os.waitstatus_to_exitcode(int(told["status"]))
        code = 128 - code if code < 0 else code
        if told["oom_kills"] is not None:
            killed = int(told["oom_kills"]) > 0
        else:
            killed = code == 137 and not self._we_killed and oom_kills() > self._oom_kills_before
        return ExitStatus(code=code, oom_killed=killed)

    def _end_by_force(self) -> None:
        """Without its launcher process 1 has had its parent-death signal; wait until it's gone."""
        end_marked(self._job)
        for _ in range(200):
            if not _usage.processes(self._pid):
                return
            time.sleep(0.01)

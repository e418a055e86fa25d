"""Run one command: its output passed on as it comes, its end awaited, its children reaped.

Unlike the toolkit's own, which reads both streams to their end: when the command has ended, whatever it
left behind may hold on to the pipes, and the host ends all the same.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from . import _capture
from ._errors import CommandError, ExecuteUserScriptError
from ._log import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._log import Log

__all__ = ["inherit", "run"]

_CHUNK = 256 * 1024
_HOLD = 0.05
"""Seconds that the beginning of a line waits for its end, so that stdout and stderr mix line by line."""
_LONG = 64 * 1024
"""Bytes of a line's beginning that don't wait."""
_GRACE = 1.0
"""Seconds that a command's last children get to end their output after it."""
_PIPE_SIZE = 1024 * 1024
_F_SETPIPE_SZ = 1031


def run(
    command: Sequence[str],
    *,
    log: Log,
    cwd: str,
    failure: type[CommandError] = ExecuteUserScriptError,
    capture: bool = True,
    here: Callable[[], int] | None = None,
    processes: object = 1,
    check: bool = True,
) -> None:
    """Run `command` in `cwd` to its end; with `check` raises `failure` for another exit code than 0.

    `here` is called in a fork in the command's place. `processes`: ranks a host, from which the hosts of
    mpirun's lines are guessed (contract: H21).

    With `capture` both its streams go to our stdout and their errors into the message; a command that
    can't be started is an ExecuteUserScriptError then. Without, it inherits both, and that is an OSError.
    """
    if capture:
        try:
            code, output = _captured(command, cwd, log, processes, here)
        except OSError as error:
            if error.errno == errno.E2BIG:
                # The SM_* variables are too long, not the command: AWS's toolkit falls over them before
                # it comes to the command, as a Framework Error.
                raise
            raise ExecuteUserScriptError(str(error)) from error
        log.info("Waiting for the process to finish and give a return code.")
        log.info(f"Done waiting for a return code. Received {code} from exiting process.")
    else:
        code, output = inherit(command, cwd, here), ""
    if code and check:
        extra = None
        if code == 137:
            extra = "OutOfMemory: Process killed by SIGKILL (signal 9)"
        if any(path in output for path in _capture.COMPILER_PATHS):
            extra = "SMTrainingCompiler Error: Error occurred in SMTrainingCompiler."
        raise failure(" ".join(command), code, output, extra)


def _spawn(
    command: Sequence[str],
    cwd: str,
    actions: list[tuple[int, int, int]],
    here: Callable[[], int] | None,
) -> int:
    os.chdir(cwd)
    if here is not None:
        return _fork(here, actions)
    return os.posix_spawnp(
        command[0],
        list(command),
        os.environ,
        file_actions=actions,
        # Python ignores them; a child shall die of them as in a shell.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )


def _fork(here: Callable[[], int], actions: list[tuple[int, int, int]]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for _, fd, number in actions:
            os.dup2(fd, number)
        code = here()
    except BaseException as error:
        write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def inherit(command: Sequence[str], cwd: str, here: Callable[[], int] | None = None) -> int:
    """Run `command`, or `here` in a fork, with our own streams; its exit code."""
    child = _spawn(command, cwd, [], here)
    while True:
        pid, status = os.waitpid(-1, 0)  # as process 1 we reap everybody's orphans
        if pid == child:
            return _code(status)


def _captured(
    command: Sequence[str], cwd: str, log: Log, processes: object, here: Callable[[], int] | None
) -> tuple[int, str]:
    wake = _Wake()
    streams = [_Stream(processes), _Stream(processes)]
    child = _spawn(
        command,
        cwd,
        [(os.POSIX_SPAWN_DUP2, stream.inside, fd) for fd, stream in enumerate(streams, start=1)],
        here,
    )
    for stream in streams:
        stream.started()
    poll = select.poll()
    poll.register(wake.fd, select.POLLIN)
    open_streams = {stream.fd: stream for stream in streams}
    for fd in open_streams:
        poll.register(fd, select.POLLIN)
    code: int | None = None
    leave: float | None = None
    """When to stop listening to what the command left behind."""
    while open_streams or code is None:
        now = time.monotonic()
        if leave is not None and now >= leave:
            log.warning(
                "The script has ended, but processes that it left behind hold its output open: "
                "SageMaker waits for them until MaxRuntime; here the host ends with the script."
            )
            break
        deadlines = [stream.deadline for stream in streams if stream.deadline is not None]
        if leave is not None:
            deadlines.append(leave)
        wait = max(0.0, min(deadlines) - now) * 1000 + 1 if deadlines else None
        ready = poll.poll(wait)
        for fd, _ in ready:
            if fd == wake.fd:
                wake.clear()
                code = _reap(child, code)
                if code is not None and leave is None:
                    leave = time.monotonic() + _GRACE
            elif not open_streams[fd].read():
                poll.unregister(fd)
                open_streams.pop(fd).close()
        now = time.monotonic()
        for stream in streams:
            stream.expire(now)
    for stream in list(open_streams.values()):
        stream.drain()
        stream.close()
    wake.close()
    assert code is not None
    return code, _capture.message(streams[0].capture, streams[1].capture)


def _reap(child: int, code: int | None) -> int | None:
    """Collect every child that has ended; the exit code of `child` once it is among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = _code(status)


def _code(status: int) -> int:
    """As Popen.returncode: negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class _Wake:
    """A pipe that can be read once a child has ended."""

    def __init__(self) -> None:
        self.fd, self._inside = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._inside, False)
        signal.set_wakeup_fd(self._inside, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def clear(self) -> None:
        while True:
            try:
                if len(os.read(self.fd, 4096)) < 4096:
                    return
            except BlockingIOError:
                return

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self.fd)
        os.close(self._inside)


class _Stream:
    """One of the command's output streams, passed on to our stdout."""

    def __init__(self, processes: object) -> None:
        self.capture = _capture.Capture()
        self._processes = processes
        self.deadline: float | None = None
        self.fd, self.inside = os.pipe()
        self._held = b""

    def started(self) -> None:
        """The command has its end of the pipe now."""
        os.close(self.inside)
        import fcntl

        try:
            fcntl.fcntl(self.fd, _F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # the user's pipes may be limited (pipe-user-pages-soft): the default size does as well

    def read(self) -> bool:
        """Pass on what is there; False at the stream's end."""
        chunk = os.read(self.fd, _CHUNK)
        if not chunk:
            self._pass(self._held)
            self._held = b""
            self.deadline = None
            return False
        self._take(chunk)
        return True

    def _take(self, chunk: bytes) -> None:
        end = chunk.rfind(b"\n") + 1
        if end:
            self._pass(self._held + chunk[:end])
            self._held = chunk[end:]
            self.deadline = None
        else:
            self._held += chunk
        if len(self._held) >= _LONG:
            self.flush()
        elif self._held and self.deadline is None:
            self.deadline = time.monotonic() + _HOLD

    def expire(self, now: float) -> None:
        """Let go of the beginning of a line that has waited long enough."""
        if self.deadline is not None and now >= self.deadline:
            self.flush()

    def flush(self) -> None:
        held, self._held, self.deadline = self._held, b"", None
        self._pass(held)

    def drain(self) -> None:
        """Pass on what the pipe holds now, and wait for nothing more."""
        os.set_blocking(self.fd, False)
        left = _PIPE_SIZE
        while left > 0:
            try:
                chunk = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                break
            if not chunk:
                break
            left -= len(chunk)
            self._take(chunk)
        self.flush()

    def close(self) -> None:
        os.close(self.fd)

    def _pass(self, data: bytes) -> None:
        if data:
            write(1, _capture.tagged(data, self._processes) if b"<std" in data else data)
            self.capture.feed(data)

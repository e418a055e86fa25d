"""Into a running sandbox from another process of the same user: a command, its terminal, files."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from harness.engines._terminal import Terminal, relay
from harness.engines.enter import CODE, Command, Ended, Fill, GoneError, Kind, Report, merged
from harness.engines.sandbox import _usage
from harness.engines.sandbox._layout import MARK_VARIABLE
from harness.engines.sandbox._mode import MARK, launcher_command, launcher_environment
from harness.engines.sandbox.inner import launcher
from harness.errors import EngineError

__all__ = ["SandboxDoor"]

_ML: Final = "/opt/ml"
_BASE: Final = "SAGEMAKER_BASE_DIR"


class SandboxDoor:
    """The way into one host; see `engines.Door`."""

    def __init__(self, entry: Mapping[str, Any], *, job: str, host: str) -> None:
        self._entry = entry
        self._job = job
        self._host = host
        self._pid = int(entry["pid"])

    @property
    def runs(self) -> bool:
        return (
            self._entry["started"] is not None
            and self._entry["boot"] == _usage.boot()
            and _usage.start_time(self._pid) == self._entry["started"]
            and not _usage.ending(self._pid)
        )

    @property
    def confined(self) -> bool:
        """False for a host without namespaces, whose paths are this machine's."""
        first = self.environments().get(self._pid, {})
        return MARK_VARIABLE not in first

    def environments(self) -> dict[int, dict[str, str]]:
        found = {}
        for pid in _usage.processes(self._pid):
            try:
                data = Path("/proc", str(pid), "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            found[pid] = variables(data)
        return found

    def run(
        self,
        command: Command,
        *,
        terminal: Terminal | None,
        stdio: tuple[int, int, int],
    ) -> Ended:
        told: dict[str, Any] = {}
        config = self._config(command)
        if terminal is None:
            with self._visit(config, stdio) as status:
                _read(status, told)
        else:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                config["terminal"] = [*terminal.size, theirs.fileno()]
                with self._visit(config, (), theirs.fileno()) as status:
                    theirs.close()
                    self._attend(ours, status, terminal, told)
        return self._ended(told)

    def kill(self, mark: str) -> None:
        """Nothing to do: the process that entered kills what it started as soon as we are gone."""
        del mark

    @contextlib.contextmanager
    def pack(
        self, path: str, *, follow: bool, contents: bool
    ) -> Iterator[tuple[IO[bytes], Callable[[], Report]]]:
        told: dict[str, Any] = {}
        config = self._config(Command(argv=()))
        config["archive"] = {"do": "pack", "path": path, "follow": follow, "contents": contents}
        receive, send = os.pipe()
        with os.fdopen(receive, "rb") as stream, Path(os.devnull).open("rb") as null:
            try:
                with self._visit(config, (null.fileno(), send, 2)) as status:
                    os.close(send)
                    send = -1

                    def report() -> Report:
                        _read(status, told)
                        return self._report(told)

                    yield stream, report
            finally:
                if send >= 0:
                    os.close(send)

    def unpack(self, fill: Fill, path: str, kind: Kind) -> Report:
        told: dict[str, Any] = {}
        config = self._config(Command(argv=()))
        config["archive"] = {"do": "unpack", "path": path, "kind": kind}
        receive, send = os.pipe()
        sent: Report = {}
        with os.fdopen(send, "wb", buffering=0) as stream:
            try:
                with self._visit(config, (receive, 2, 2)) as status:
                    os.close(receive)
                    receive = -1
                    # When it is refused inside, what it says counts, not that nobody reads any more.
                    with contextlib.suppress(BrokenPipeError):
                        sent = fill(stream, None)
                    stream.close()
                    _read(status, told)
            finally:
                if receive >= 0:
                    os.close(receive)
        return merged(sent, self._report(told))

    # ------------------------------------------------------------------------------------------- internals

    def _config(self, command: Command) -> dict[str, Any]:
        group = self._entry["cgroup_procs"]
        return {
            "pid": self._pid,
            "started": self._entry["started"],
            "cgroup_procs": [group] if group is not None and Path(group).exists() else [],
            "argv": list(command.argv),
            "environment": dict(command.environment),
            "cwd": [self._inside(CODE), "/"],
            "mark": command.mark,
            "terminal": None,
            "archive": None,
        }

    def _inside(self, path: str) -> str:
        """Where that path of the contract is for the host's processes."""
        base = self.environments().get(self._pid, {}).get(_BASE)
        if base is not None and not self.confined and (path == _ML or path.startswith(_ML + "/")):
            return base + path
        return path

    @contextlib.contextmanager
    def _visit(self, config: dict[str, Any], stdio: tuple[int, ...], *more: int) -> Iterator[int]:
        """The status pipe of a process that enters the host; leaving kills what still runs of it."""
        # Numbers above 2: the process has its own 0 to 2, and passes on others only under their number.
        copies = [os.dup(number) if number > 2 else _above(number) for number in stdio]
        config["stdio"] = copies
        status, write_status = os.pipe()
        try:
            process = subprocess.Popen(
                launcher_command("enter", write_status, (MARK, self._job, self._host, str(os.getpid()))),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=launcher_environment(),
                pass_fds=(write_status, *copies, *more),
                start_new_session=True,  # Ctrl-C is for us, or for the command; never for this process
            )
        except OSError as error:
            os.close(status)
            raise EngineError(f"can't enter {self._host} of {self._job}: {error}") from error
        finally:
            os.close(write_status)
            for copy in copies:
                os.close(copy)
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it says itself why it ended
                launcher.write_frame(process.stdin.fileno(), config)
            yield status
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()
            os.close(status)

    def _attend(self, ours: socket.socket, status: int, terminal: Terminal, told: dict[str, Any]) -> None:
        """Between the user's terminal and the command's, to the command's end."""
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not descriptors:
            _read(status, told)
            return
        with _Master(descriptors[0]) as master:
            # The end of the command ends the visit, though what it left behind may hold its terminal.
            relay(
                master,
                stdin=terminal.stdin,
                sink=terminal.show,
                resized=terminal.resized,
                resize=lambda: master.resize(*terminal.size),
                until=status,
            )
        _read(status, told)

    def _ended(self, told: dict[str, Any]) -> Ended:
        self._check(told)
        if (never := told.get("exec")) is not None:
            return Ended(code=int(never["code"]), error=str(never["error"]))
        code = os.waitstatus_to_exitcode(int(told["status"]))
        return Ended(code=128 - code if code < 0 else code, host_ended=not self.runs)

    def _report(self, told: dict[str, Any]) -> Report:
        self._check(told)
        report: Report | None = told.get("archive")
        if report is None:
            if not self.runs:
                raise GoneError(self._job, self._host)
            raise EngineError(
                f"the files of {self._host} of {self._job} can't be copied: what did it was killed"
            )
        return report

    def _check(self, told: dict[str, Any]) -> None:
        if told.get("gone"):
            raise GoneError(self._job, self._host)
        if (why := told.get("failed")) is not None:
            raise EngineError(f"can't enter {self._host} of {self._job}: {why}")
        if "status" not in told:
            if not self.runs:
                raise GoneError(self._job, self._host)
            raise EngineError(f"can't enter {self._host} of {self._job}: what entered it was killed")


def variables(data: bytes) -> dict[str, str]:
    """What `/proc/<pid>/environ` holds."""
    pairs = (item.partition(b"=") for item in data.split(b"\0") if b"=" in item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _above(number: int) -> int:
    import fcntl

    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)


def _read(status: int, told: dict[str, Any]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            told.update(launcher.read_frame(status))


class _Master:
    """The outer side of the command's terminal; closing it hangs up, by which a shell ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def __enter__(self) -> _Master:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes:
        try:
            return os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            raise
        except OSError:  # EIO: nobody holds the inner side any more
            return b""

    def write(self, data: bytes) -> int:
        return os.write(self._descriptor, data)

    def end(self) -> None:
        """A terminal has no end of input."""

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

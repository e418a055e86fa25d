"""Runs one command, or packs or unpacks files, in a host that another process started.

    who asks ── this process ── the command
                (outside)       (in the host's namespaces)

The way in leads through the namespaces of the host's process 1, which its owner may enter. Who asks holds
the write end of the control pipe: when it is closed before the command has ended, by whatever death, the
command is killed and all that it started.
"""

from __future__ import annotations

import os
import select

from . import kernel
from .launcher import NOT_EXECUTABLE, execute, limits, write_frame

TYPE_CHECKING = False
if TYPE_CHECKING:  # see launcher
    from typing import Any, NoReturn

    Config = dict[str, Any]

_NAMESPACES = (
    ("user", kernel.CLONE_NEWUSER),  # first: it gives the right to enter the others
    ("pid", kernel.CLONE_NEWPID),  # what is forked from now on is in it, this process is not
    ("ipc", kernel.CLONE_NEWIPC),
    ("uts", kernel.CLONE_NEWUTS),
    ("net", kernel.CLONE_NEWNET),
    ("mnt", kernel.CLONE_NEWNS),  # last: it takes away this machine's /proc
)
_OURS = ("user", "pid")
"""The namespaces that this process enters itself; the others are the child's alone."""
_LOOK = 50
"""Milliseconds between two looks at a host that can't be waited for (Linux before 5.3)."""


def run(config: Config, control: int, status: int, null: int) -> None:
    """Enter the host, run the command to its end, tell how it ended."""
    pid = config["pid"]
    try:
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        handle = _handle(pid)
        # By the open directory: from here on the number can't become another process's.
        if _start_time(process) != config["started"]:
            raise ProcessLookupError
        joins = _joins(process)
    except (FileNotFoundError, ProcessLookupError):
        write_frame(status, {"gone": True})
        return
    groups = [os.open(path, os.O_WRONLY) for path in config["cgroup_procs"]]
    ours, childs = (
        [(kind, fd) for name, kind, fd in joins if (name in _OURS) == mine] for mine in (True, False)
    )
    for kind, descriptor in ours:
        kernel.setns(descriptor, kind)
    _load(config)
    child = os.fork()
    if child == 0:
        _become(config, childs, groups, status)
    for descriptor in (1, 2, *config["stdio"]):  # the command's alone: its readers wait for their end
        os.dup2(null, descriptor)
    ended = _watch(child, control, process, handle, config["mark"])
    write_frame(status, {"status": ended})


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError) as error:
        if isinstance(error, ProcessLookupError):
            raise
        return None


def _start_time(process: int) -> int:
    return int(_stat(process)[19])


def _stat(process: int) -> list[bytes]:
    descriptor = os.open("stat", os.O_RDONLY, dir_fd=process)
    try:
        return os.read(descriptor, 4096).rpartition(b")")[2].split()
    finally:
        os.close(descriptor)


def _joins(process: int) -> list[tuple[str, int, int]]:
    """(name, kind, descriptor) of the host's namespaces that aren't this process's already."""
    found = []
    for name, kind in _NAMESPACES:
        descriptor = os.open(f"ns/{name}", os.O_RDONLY, dir_fd=process)
        there, here = os.fstat(descriptor), os.stat(f"/proc/self/ns/{name}")
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            found.append((name, kind, descriptor))
    return found


def _load(config: Config) -> None:
    """All modules that the child will need: in the host's file system it may not find them."""
    import resource  # noqa: F401

    if config["terminal"]:
        import fcntl  # noqa: F401
        import socket  # noqa: F401
        import struct  # noqa: F401
        import termios  # noqa: F401
    if config["archive"]:
        from .archive import carry_out  # noqa: F401


def _become(config: Config, joins: list[tuple[int, int]], groups: list[int], status: int) -> NoReturn:
    """In the child: into the host, then the command. Reports what went wrong; never returns."""
    code = NOT_EXECUTABLE
    try:
        os.setsid()
        kernel.die_with_parent()
        for descriptor in groups:
            os.write(descriptor, b"0")
        for kind, descriptor in joins:
            kernel.setns(descriptor, kind)
        os.chdir(_first_directory(config["cwd"]))
        # Before the limits: the right to this terminal goes with the capabilities.
        for number, descriptor in enumerate(_terminal(config) or config["stdio"]):
            os.dup2(descriptor, number, inheritable=True)
        if any(kind == kernel.CLONE_NEWNS for kind, _ in joins):
            kernel.drop_capabilities()
        limits()
        kernel.default_signals()
        if config["archive"]:
            from .archive import carry_out

            write_frame(status, {"archive": carry_out(config["archive"], 0, 1)})
            code = 0
        else:
            code, reason = execute(config["argv"], config["environment"])
            write_frame(status, {"exec": {"code": code, "error": reason}})
    except BaseException as error:
        write_frame(status, {"failed": f"{type(error).__name__}: {error}"})
    os._exit(code)


def _first_directory(paths: list[str]) -> str:
    return next((path for path in paths if os.path.isdir(path)), "/")


def _terminal(config: Config) -> list[int] | None:
    """A terminal of the host's own, so that programs find it by its name; its other side is sent out."""
    if not config["terminal"]:
        return None
    import fcntl
    import socket
    import struct
    import termios

    rows, columns, door = config["terminal"]
    outside, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with socket.socket(fileno=door) as sender:
        socket.send_fds(sender, [b"t"], [outside])
    os.close(outside)
    fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
    return [inside] * 3


def _watch(child: int, control: int, process: int, handle: int | None, mark: str) -> int:
    """The wait status of `child`. It is killed when `control` is closed, and when the host has ended."""
    poll = select.poll()
    poll.register(control, 0)  # only that it was closed
    if handle is not None:
        poll.register(handle, select.POLLIN)
    child_handle = _handle(child)
    if child_handle is not None:
        poll.register(child_handle, select.POLLIN)
    pause = _LOOK if handle is None or child_handle is None else None
    while True:
        events = dict(poll.poll(pause))
        pid, ended = os.waitpid(child, os.WNOHANG)
        if pid:
            return ended
        if control in events:
            _kill(child, mark)
            poll.unregister(control)
        elif handle in events or (handle is None and not _lives(process)):
            # Where there is no PID namespace nothing but this ends the command with its host.
            _kill(child, mark)
            if handle is not None:
                poll.unregister(handle)


def _lives(process: int) -> bool:
    try:
        return _stat(process)[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill(child: int, mark: str) -> None:
    """SIGKILL to the command and to all that it started, which bears the mark in its environment."""
    sign = b"\0" + mark.encode() + b"\0"
    found = [child]
    while found:
        for pid in found:
            try:
                os.kill(pid, kernel.SIGKILL)
            except ProcessLookupError:
                pass  # it ended meanwhile
        found = [pid for pid in _processes() if pid != child and _bears(pid, sign)]


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _bears(pid: int, sign: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return sign in b"\0" + file.read()
    except OSError:
        return False  # it ended meanwhile, or is nobody's that we could kill

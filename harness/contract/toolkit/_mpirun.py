"""Starts ranks on the hosts of a sandbox, in the place of mpirun, sshd and orted.

`lead` on the master places the ranks, prints what they print and tells how they end; `follow` on every other
host starts the ranks that the master sends it. Both run in a fork of the toolkit.

The hosts share one network namespace: the master reaches the others by abstract Unix sockets, and both
sides refuse a peer of another user. With the message that starts a rank go the write ends of two pipes, so
the master reads all ranks alike, wherever they run. As with mpirun, every rank has the master's values of
the exported variables over its own host's, a rank that fails ends all others, and each line is tagged
(contract: H18, H21, H25).
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import struct
import time

from ._log import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["follow", "lead"]

_CONNECT_LIMIT = 3600.0
"""Seconds that the master waits for a host (contract: H18)."""
_KILL_AFTER = 1.0
"""Seconds between SIGTERM and SIGKILL for ranks that are ended because of another one."""
_GRACE = 1.0
"""Seconds that the ranks' last children get to end their output after them."""
_HOLD = 0.05
"""Seconds that the beginning of a line waits for its end."""
_LENGTH = struct.Struct("<I")


# ------------------------------------------------------------------------------ messages


def _send(sock: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    """One message, with file descriptors."""
    data = json.dumps(message).encode()
    data = _LENGTH.pack(len(data)) + data
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds or ()))] if fds else []
    sent = sock.sendmsg([data], rights)
    sock.sendall(data[sent:])


class _Receiver:
    """Messages of one socket, as they come."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = b""
        self._fds: list[int] = []

    def read(self) -> list[tuple[dict[str, Any], list[int]]] | None:
        """What has come: a list of (message, descriptors); None at the end."""
        size = array.array("i").itemsize
        try:
            data, rights, _, _ = self._sock.recvmsg(1 << 16, socket.CMSG_SPACE(2 * size))
        except ConnectionResetError:
            return None
        for level, kind, numbers in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(numbers[: len(numbers) // size * size])
                self._fds.extend(found)
        if not data:
            return None
        self._data += data
        messages = []
        while len(self._data) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._data)[0]
            if len(self._data) < end:
                break
            message = json.loads(self._data[_LENGTH.size : end])
            self._data = self._data[end:]
            count = message.pop("fds", 0)
            fds, self._fds = self._fds[:count], self._fds[count:]
            messages.append((message, fds))
        return messages


def _same_user(sock: socket.socket) -> bool:
    """Whether the peer is this user's process: seen from our user namespace, whatever theirs is."""
    _, uid, _ = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return bool(uid == os.getuid())


# ------------------------------------------------------------------- on every host: starter


class _Starter:
    """Starts the ranks that come over `sock` and tells how they ended, until the master is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ranks: dict[int, int] = {}

    def run(self) -> None:
        receiver = _Receiver(self._sock)
        wake, inside = os.pipe()
        for fd in (wake, inside):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(inside, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == wake:
                    os.read(wake, 4096)
                    self._reap()
                    continue
                messages = receiver.read()
                if messages is None:
                    self._end()
                    return
                for message, fds in messages:
                    if "start" in message:
                        self._start(message["start"], fds)
                    else:
                        self._end()

    def _start(self, asked: dict[str, Any], fds: list[int]) -> None:
        environment = dict(os.environ)
        environment.update(asked["environment"])
        os.chdir(asked["cwd"])
        os.environ["PATH"] = environment.get("PATH", os.defpath)
        null = os.open(os.devnull, os.O_RDONLY)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate([null, *fds])]
        try:
            pid = os.posix_spawnp(
                asked["program"][0],
                asked["program"],
                environment,
                file_actions=actions,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
            self._ranks[pid] = asked["rank"]
        except OSError as error:
            os.write(fds[1], "mpirun: {}: {}\n".format(asked["program"][0], error.strerror).encode())
            _send(self._sock, {"ended": [asked["rank"], 127]})
        finally:
            for fd in (null, *fds):
                os.close(fd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            rank = self._ranks.pop(pid, None)
            if rank is not None:
                code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                try:
                    _send(self._sock, {"ended": [rank, code]})
                except OSError:
                    pass  # the master is gone, and nobody wants to know any more

    def _end(self) -> None:
        """SIGTERM to every rank, then SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._ranks:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
            deadline = time.monotonic() + _KILL_AFTER
            while self._ranks and time.monotonic() < deadline:
                time.sleep(0.01)
                self._reap()


def follow(address: str) -> int:
    """On another host than the master: serve one master to its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + address)
        listener.listen(8)
        while True:
            sock, _ = listener.accept()
            if _same_user(sock):
                break
            sock.close()
    with sock:
        _Starter(sock).run()
    return 0


# --------------------------------------------------------------------- on the master: lead


class _Line:
    """One output stream of one rank: whole lines, tagged as `mpirun --tag-output` tags them."""

    def __init__(self, fd: int, rank: int, name: str, out: int) -> None:
        self.fd = fd
        self.deadline: float | None = None
        self._tag = "[1,{}]<{}>:".format(rank, name).encode()
        self._out = out
        self._held = b""

    def read(self) -> bool:
        """Pass on what is there; False at the stream's end."""
        data = os.read(self.fd, 1 << 16)
        *lines, self._held = (self._held + data).split(b"\n")
        write(self._out, b"".join(self._tag + line + b"\n" for line in lines))
        if not data:
            self.flush()
            return False
        self.deadline = time.monotonic() + _HOLD if self._held else None
        return True

    def flush(self) -> None:
        """What has no end yet goes as a line: mpirun does so, too."""
        if self._held:
            write(self._out, self._tag + self._held + b"\n")
        self._held, self.deadline = b"", None


class _Leader:
    """The master's side of one run."""

    def __init__(self, plan: dict[str, Any], program: list[str]) -> None:
        self._plan = plan
        self._program = program
        self._starters: dict[str, socket.socket] = {}
        self._lines: dict[int, _Line] = {}
        self._running: set[int] = set()
        self._hosts: list[str] = []
        """The host of each rank."""
        self._failed: tuple[int, int] | None = None
        """Rank and exit code of the first that failed."""
        self._leave: float | None = None
        """When to stop listening to what the ranks left behind."""

    def run(self) -> int:
        """The exit code of the whole."""
        slots = [name for name, count, _ in self._plan["hosts"] for _ in range(count)]
        if self._plan["size"] > len(slots):
            _tell(
                "There are not enough slots available in the system to satisfy the {} slots that were "
                "requested by the application: {}".format(self._plan["size"], self._program[0])
            )
            return 1
        self._hosts = slots[: self._plan["size"]]
        for name, _, address in self._plan["hosts"]:
            found = self._connect(name, address)
            if found is None:
                return 1
            self._starters[name] = found
        receivers = {sock.fileno(): _Receiver(sock) for sock in self._starters.values()}
        names = {sock.fileno(): name for name, sock in self._starters.items()}
        poll = select.poll()
        for fd in receivers:
            poll.register(fd, select.POLLIN)
        for rank in range(len(self._hosts)):
            for line in self._start(rank):
                self._lines[line.fd] = line
                poll.register(line.fd, select.POLLIN)
        while self._running or self._lines:
            for fd, _ in poll.poll(self._patience()):
                if fd in self._lines:
                    if not self._lines[fd].read():
                        poll.unregister(fd)
                        os.close(fd)
                        del self._lines[fd]
                    continue
                messages = receivers[fd].read()
                if messages is None:
                    poll.unregister(fd)
                    self._lost(names[fd])
                for message, _ in messages or ():
                    self._ended(*message["ended"])
            now = time.monotonic()
            for line in self._lines.values():
                if line.deadline is not None and line.deadline <= now:
                    line.flush()
            if self._leave is not None and self._leave <= now:
                break  # what a rank left behind, or a rank whose starter was killed, holds its output open
            if not self._running and self._leave is None:
                self._leave = now + _GRACE
        for line in self._lines.values():
            line.flush()
        for sock in self._starters.values():
            sock.close()
        if self._failed is None:
            return 0
        rank, code = self._failed
        _tell(
            "mpirun: one or more processes exited with non-zero status, thus causing the job to be terminated. "
            "The first process to do so was rank {} on {}, exit code {}.".format(
                rank, self._hosts[rank], code
            )
        )
        return code

    def _patience(self) -> float | None:
        waiting = [line.deadline for line in self._lines.values() if line.deadline is not None]
        if self._leave is not None:
            waiting.append(self._leave)
        return max(0.0, min(waiting) - time.monotonic()) * 1000 + 1 if waiting else None

    def _connect(self, name: str, address: str) -> socket.socket | None:
        """A socket to the starter on that host; here it is a child of ours."""
        if name == self._plan["here"]:
            ours, theirs = socket.socketpair()
            if os.fork() == 0:
                ours.close()
                for sock in self._starters.values():
                    sock.close()
                _Starter(theirs).run()
                os._exit(0)
            theirs.close()
            return ours
        deadline = time.monotonic() + _CONNECT_LIMIT
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect("\0" + address)
                if _same_user(sock):
                    return sock
                reason = "another user listens there"
            except OSError as error:
                reason = str(error)
            sock.close()
            if time.monotonic() > deadline:
                _tell(f"mpirun: {name} did not come within an hour: {reason}")
                return None
            time.sleep(0.05)

    def _start(self, rank: int) -> list[_Line]:
        host = self._hosts[rank]
        local = self._hosts[:rank].count(host)
        size, count = len(self._hosts), self._hosts.count(host)
        environment = {name: os.environ[name] for name in self._plan["exports"] if name in os.environ}
        environment.update(self._plan["values"])
        told = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local, "LOCAL_SIZE": count, "NODE_RANK": local}
        environment.update({"OMPI_COMM_WORLD_" + name: str(value) for name, value in told.items()})
        environment.update(
            OMPI_UNIVERSE_SIZE=str(size), PMIX_RANK=str(rank), PMIX_NAMESPACE=self._plan["name"]
        )
        if self._plan["smddprun"]:
            # What AWS's smddprun gives each rank beside mpirun's variables.
            smddp = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": count}
            environment.update({name: str(value) for name, value in smddp.items()})
            environment.update(MASTER_ADDR=os.environ["MASTER_ADDR"], MASTER_PORT=os.environ["MASTER_PORT"])
        lines, ends = [], []
        for name, out in (("stdout", 1), ("stderr", 2)):
            read, write_end = os.pipe()
            lines.append(_Line(read, rank, name, out))
            ends.append(write_end)
        asked = {"rank": rank, "program": self._program, "environment": environment, "cwd": os.getcwd()}
        _send(self._starters[host], {"start": asked, "fds": 2}, ends)
        for end in ends:
            os.close(end)
        self._running.add(rank)
        return lines

    def _ended(self, rank: int, code: int) -> None:
        self._running.discard(rank)
        if code and self._failed is None:
            self._failed = (rank, code)
            for sock in self._starters.values():
                try:
                    _send(sock, {"end": True})
                except OSError:
                    pass  # that host is gone already, and told as lost

    def _lost(self, name: str) -> None:
        """A host's starter has died: so have its ranks."""
        for rank in [rank for rank in self._running if self._hosts[rank] == name]:
            self._ended(rank, 137)


def _tell(text: str) -> None:
    write(2, (text + "\n").encode())


def lead(plan: dict[str, Any], program: list[str]) -> int:
    """On the master: run all ranks to their end; the exit code of the whole."""
    return _Leader(plan, program).run()

"""Between a Unix socket that the machine sees and debugpy's port, which only the host sees.

`relay.py PLACE RANK PORT PID`: a process of its own, so that debugpy doesn't debug it and a program that stands
still can be talked to. As long as the debugger says that the program stands, `paused` is locked; the lock goes
with this process, and this process with the program.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_GOES_ON = frozenset(
    [
        "continue",
        "next",
        "stepIn",
        "stepOut",
        "stepBack",
        "reverseContinue",
        "goto",
        "disconnect",
        "terminate",
    ]
)
_POLL = 0.2
_LEAVE = 10.0
"""Seconds that the debugger may take to let go of the program."""
_DISCONNECT = json.dumps(
    {
        "seq": 2**31 - 1,
        "type": "request",
        "command": "disconnect",
        "arguments": {"terminateDebuggee": False},
    }
).encode()


class Pause:
    """The lock that lets time limits stand still."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Any | None = None

    def set(self, stands: bool) -> None:
        if stands and self._file is None:
            self._file = open(self._path, "r+b")  # noqa: SIM115
            fcntl.lockf(self._file, fcntl.LOCK_EX)
        elif not stands and self._file is not None:
            self._file.close()
            self._file = None


class Cutter:
    """Cuts one direction of a connection into messages of the protocol."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are whole by now."""
        self._rest += data
        found: list[Any] = []
        while True:
            head, separator, body = self._rest.partition(b"\r\n\r\n")
            if not separator:
                return found
            length = next(
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            if len(body) < length:
                return found
            self._rest = body[length:]
            found.append(json.loads(body[:length].decode("utf-8")))


class Messages:
    """What the debugger says: whether the program stands, and whether it was let go of."""

    def __init__(self, pause: Pause) -> None:
        self._pause = pause
        self._cutter = Cutter()
        self.left = False
        """The editor has left, and the debugger let go of the program."""

    def feed(self, data: bytes) -> None:
        for message in self._cutter.feed(data):
            self._take(message)

    def _take(self, message: Any) -> None:
        if message.get("type") == "event":
            if message.get("event") == "stopped":
                self._pause.set(True)
            elif message.get("event") in ("continued", "terminated", "exited"):
                self._pause.set(False)
        elif message.get("type") == "response" and message.get("success"):
            if message.get("command") in _GOES_ON:
                self._pause.set(False)
            self.left |= message.get("command") in ("disconnect", "terminate")


def _serve(client: socket.socket, port: int, pause: Pause, turn: threading.Lock, quit_path: str) -> None:
    """One editor at a time, and each leaves properly: one that came before would be sent away, with the words
    that the program is already being debugged."""
    with turn:
        try:
            debugger = socket.create_connection(("127.0.0.1", port))
        except OSError:
            client.close()  # the program has ended
            return
        messages = Messages(pause)
        there = threading.Thread(target=_forward, args=(client, debugger, messages, quit_path), daemon=True)
        there.start()
        try:
            while not messages.left:
                data = debugger.recv(65536)
                if not data:
                    break
                messages.feed(data)
                try:
                    client.sendall(data)
                except OSError:
                    pass  # it hung up; the answer to its leave is still to come
        except OSError:
            pass  # the program has ended, or doesn't answer
        pause.set(False)
        _end(client)
        there.join()
        for end in (client, debugger):
            end.close()


def ends_the_program(message: Any) -> bool:
    arguments = message.get("arguments") or {}
    command = message.get("command")
    return command == "terminate" or (command == "disconnect" and bool(arguments.get("terminateDebuggee")))


def _forward(client: socket.socket, debugger: socket.socket, messages: Messages, quit_path: str) -> None:
    """What the editor says; when it has gone without a word, its leave."""
    cutter = Cutter()
    try:
        while True:
            data = client.recv(65536)
            if not data:
                break
            if any(ends_the_program(message) for message in cutter.feed(data)):
                # The debugger would end the program with exit code 0, as if it had done its work. `harness
                # debug` kills the job, and us with it.
                os.close(os.open(quit_path, os.O_WRONLY | os.O_CREAT, 0o666))
                time.sleep(_LEAVE)
            debugger.sendall(data)
    except OSError:
        pass  # one of them is gone: the same as its end
    try:
        if messages.left:
            _end(debugger)
        else:
            debugger.settimeout(_LEAVE)
            debugger.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(_DISCONNECT), _DISCONNECT))
    except OSError:
        pass


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended


def _born(pid: int) -> bytes | None:
    """When the process was started, in the kernel's words; None when it has ended."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19]


def main() -> None:
    place, rank, port, program = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    path = os.path.join(place, "rank-%s.sock" % rank)
    trial = path + ".new"
    for old in (path, trial):
        try:
            os.unlink(old)
        except FileNotFoundError:
            pass
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(trial)
    os.chmod(trial, 0o666)  # a container's root is nobody to the user who comes to it
    listener.listen(8)
    os.rename(trial, path)  # who sees it can connect
    if os.fork():
        os._exit(0)
    os.setsid()
    os.dup2(0, 2)
    born = _born(program)
    pause = Pause(os.path.join(place, "paused"))
    turn = threading.Lock()
    quit_path = os.path.join(place, "quit")
    listener.settimeout(_POLL)
    while born is not None and _born(program) == born:
        try:
            client, _ = listener.accept()
        except socket.timeout:  # noqa: UP041  # another class before Python 3.10
            continue
        client.setblocking(True)
        threading.Thread(target=_serve, args=(client, port, pause, turn, quit_path), daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()

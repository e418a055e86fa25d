"""Into a running container: a command and its terminal through the daemon's `exec`, files through `archive`."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Final, cast

from harness.engines._terminal import Terminal, relay, write_all
from harness.engines.docker._daemon import connect, status_of
from harness.engines.docker._stream import DAEMON, STDERR, Demultiplexer
from harness.engines.enter import CODE, Command, Ended, Fill, GoneError, Kind, Report
from harness.engines.sandbox.inner.archive import RefusedError
from harness.errors import EngineError

__all__ = ["DockerDoor"]

_CHUNK: Final = 1 << 20
_PATIENCE: Final = 30.0
"""Seconds between two signs of life of a command of ours, which takes a moment."""
_NOT_FOUND: Final = re.compile(r"executable file not found|no such file or directory", re.IGNORECASE)
_WRAPPING: Final = re.compile(
    r"^OCI runtime exec failed: |exec failed: |unable to start container process: |: unknown$"
)
_REFUSED: Final = re.compile(rb"OCI runtime exec failed: .*|.*unable to start container process.*", re.DOTALL)
_LOOK: Final = (
    'for d in /opt/ml/code /; do cd "$d" 2>/dev/null && break; done; printf "%s\\0" "$PWD"; '
    'for p in /proc/[0-9]*; do printf "%s\\0" "$p"; cat "$p/environ"; printf "\\0"; done 2>/dev/null'
)
"""Directory to work in, then each process and its environment. Any image with a shell can do that, and
inside only: on this machine other users' processes tell nothing, and the daemon may count them otherwise."""
_KILL: Final = (
    "for n in 1 2 3; do for p in /proc/[0-9]*; do "
    'if grep -qsF "$0" "$p/environ"; then kill -9 "${p#/proc/}"; fi; done; done'
)
_GO_DIRECTORY: Final = 1 << 31
_GO_LINK: Final = 1 << 27
"""Bits of Go's FileMode."""


class DockerDoor:
    """The way into one container; see `engines.Door`."""

    def __init__(self, entry: Mapping[str, Any], *, job: str, host: str) -> None:
        self._container = str(entry["container"])
        self._job = job
        self._host = host
        self._daemon = connect()
        self._looked: tuple[str, dict[int, dict[str, str]]] | None = None

    @property
    def runs(self) -> bool:
        from docker.errors import NotFound

        with self._daemon.doing(f"look at {self._host}"):
            try:
                return bool(self._daemon.client.inspect_container(self._container)["State"]["Running"])
            except NotFound:
                return False

    @property
    def confined(self) -> bool:
        return True

    def environments(self) -> dict[int, dict[str, str]]:
        return self._look()[1]

    def run(self, command: Command, *, terminal: Terminal | None, stdio: tuple[int, int, int]) -> Ended:
        session = self._exec(
            command.argv,
            environment=command.environment,
            cwd=self._look()[0],
            tty=terminal is not None,
        )
        said = _Plain(stdio[1], stdio[2]) if terminal is None else _Raw(terminal)
        with session:
            try:
                if early := session.early:
                    said.take(early)
                if terminal is None:
                    relay(session, stdin=stdio[0], sink=said.take)
                else:
                    session.resize(*terminal.size)
                    relay(
                        session,
                        stdin=terminal.stdin,
                        sink=said.take,
                        resized=terminal.resized,
                        resize=lambda: session.resize(*terminal.size),
                    )
            except BaseException:
                # The daemon lets a command live on that nobody listens to. While we hold its stream and don't
                # read, the daemon waits for us, and learns of no other command's end.
                session.close()
                with contextlib.suppress(EngineError):
                    self.kill(command.mark)
                raise
            return self._ended(session, said)

    def kill(self, mark: str) -> None:
        with self._exec(("sh", "-c", _KILL, mark)) as session:
            session.all()

    @contextlib.contextmanager
    def pack(
        self, path: str, *, follow: bool, contents: bool
    ) -> Iterator[tuple[IO[bytes], Callable[[], Report]]]:
        told = self._stat(path.rstrip("/") or "/")
        if told is None:
            yield io.BytesIO(), lambda: {"refused": f"{path}: no such file or directory"}
            return
        if (contents or path.endswith("/")) and not told["mode"] & _GO_DIRECTORY and not told["linkTarget"]:
            yield io.BytesIO(), lambda: {"refused": f"{path} is not a directory"}
            return
        if told["linkTarget"] and (follow or contents or path.endswith("/")):
            path = str(told["linkTarget"])
        asked = path.rstrip("/") + "/." if contents else path.rstrip("/") or "/"
        with self._archive("get", asked) as response:
            yield cast(IO[bytes], _Body(response)), lambda: {"skipped": 0, "why": []}

    def unpack(self, fill: Fill, path: str, kind: Kind) -> Report:
        try:
            folder, name = self._destination(path, kind)
        except RefusedError as error:
            return {"refused": str(error)}
        receive, send = os.pipe()
        sent: Report = {}
        problem: list[BaseException] = []

        def write() -> None:
            try:
                with os.fdopen(send, "wb", buffering=0) as stream:
                    sent.update(fill(stream, name))
            except BrokenPipeError:
                pass  # the daemon refuses, and says why
            except BaseException as error:
                problem.append(error)

        writer = threading.Thread(target=write, name="archive")
        writer.start()
        refused = None
        try:
            stream = os.fdopen(receive, "rb", buffering=0)
            with stream, self._archive("put", folder, data=_chunks(stream)):
                pass
        except EngineError as error:
            refused = error
        finally:
            writer.join()
        if problem:
            raise problem[0]
        if refused is not None:
            return {"refused": str(refused)}
        return sent

    # ------------------------------------------------------------------------------------------- internals

    def _look(self) -> tuple[str, dict[int, dict[str, str]]]:
        """The directory to work in, and the environments."""
        if self._looked is None:
            with self._exec(("sh", "-c", _LOOK)) as session:
                said = session.all()
            cwd, *words = said.split(b"\0")
            found: dict[int, dict[str, str]] = {}
            current: dict[str, str] = {}
            for word in words:
                name, equals, value = word.partition(b"=")
                if not equals and word.startswith(b"/proc/"):
                    found[int(word.removeprefix(b"/proc/"))] = current = {}
                elif equals:
                    current[os.fsdecode(name)] = os.fsdecode(value)
            # An image without a shell answers with the daemon's complaint.
            directory = cwd.decode() if cwd.decode() == CODE else "/"
            self._looked = directory, found
        return self._looked

    def _exec(
        self,
        argv: tuple[str, ...],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: str | None = None,
        tty: bool = False,
    ) -> _Session:
        from docker.errors import APIError

        client = self._daemon.client
        with self._daemon.doing(f"run {argv[0]} in {self._host}"):
            try:
                made = client.exec_create(
                    self._container,
                    list(argv),
                    stdin=True,
                    tty=tty,
                    environment=dict(environment or {}),
                    workdir=cwd,
                )["Id"]
                return _Session(client, made, client.exec_start(made, tty=tty, socket=True))
            except APIError as error:
                if status_of(error) in (404, 409):
                    raise GoneError(self._job, self._host) from error
                raise

    def _ended(self, session: _Session, said: _Plain | _Raw) -> Ended:
        state = session.state()
        if state is None or (state["ExitCode"] is None and not self.runs):
            said.finish(show=True)
            return Ended(code=137, host_ended=True)
        code = int(state["ExitCode"] or 0) & 0xFF
        if code in (126, 127) and said.complaint and not state["Pid"]:
            said.finish(show=False)
            words = said.complaint.decode(errors="replace").strip()
            return Ended(code=127 if _NOT_FOUND.search(words) else 126, error=_WRAPPING.sub("", words))
        said.finish(show=True)
        return Ended(code=code, host_ended=code == 137 and self._ends())

    def _ends(self) -> bool:
        """Whether the container ends just now: its processes do so a moment before the daemon notices."""
        for _ in range(10):
            if not self.runs:
                return True
            time.sleep(0.05)
        return False

    def _destination(self, path: str, kind: Kind) -> tuple[str, str | None]:
        """The directory to unpack in, and the name that the root gets."""
        slash = path.endswith("/")
        path = path.rstrip("/") or "/"
        told = self._stat(path)
        if told is not None and told["linkTarget"]:
            path = str(told["linkTarget"])
            told = self._stat(path)
        if told is not None and told["mode"] & _GO_DIRECTORY:
            return path, None
        if kind == "archive":
            raise RefusedError(f"there is no directory {path}")
        if told is not None and (kind != "file" or slash):
            raise RefusedError(f"{path} is not a directory: a directory can't be copied over it")
        if slash and kind == "file":
            raise RefusedError(f"there is no directory {path}")
        folder, _, name = path.rpartition("/")
        if self._stat(folder or "/") is None:
            raise RefusedError(f"there is no directory {folder}")
        return folder or "/", name

    def _stat(self, path: str) -> dict[str, Any] | None:
        with self._archive("head", path, missing=True) as response:
            if response.status_code == 404:
                if not self.runs:
                    raise GoneError(self._job, self._host)
                return None
            told: dict[str, Any] = json.loads(
                base64.b64decode(response.headers["X-Docker-Container-Path-Stat"])
            )
            return told

    @contextlib.contextmanager
    def _archive(
        self, method: str, path: str, *, missing: bool = False, data: Iterator[bytes] | None = None
    ) -> Iterator[Any]:
        client = self._daemon.client
        url = f"{client.base_url}/v{client.api_version}/containers/{self._container}/archive"
        call = getattr(client, method)
        with (
            self._daemon.doing(f"copy {path} of {self._host}"),
            # Local: to pack and unpack it costs more than to pass it on.
            call(
                url,
                params={"path": path},
                data=data,
                headers={"Accept-Encoding": "identity"},
                stream=True,
                timeout=None,
            ) as response,
        ):
            if not (missing and response.status_code == 404):
                client._raise_for_status(response)
            yield response


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


class _Body:
    """The body of an answer, as a file."""

    def __init__(self, response: Any) -> None:
        self._raw = response.raw

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._raw.read(None if size < 0 else size, decode_content=False)
        return data


class _Session:
    """An `exec` that was started: its stream, as a `Remote`."""

    def __init__(self, client: Any, exec_id: str, raw: Any) -> None:
        self._client = client
        self._exec = exec_id
        # As with an attachment: the library hands out the inner half of a response.
        self._response = getattr(raw, "_response", None)
        self._socket: socket.socket = getattr(raw, "_sock", raw)
        self._socket.settimeout(0)
        self._early = self._buffered()

    def _buffered(self) -> bytes:
        """What came with the answer's header, and lies in the library's buffer."""
        reader = getattr(getattr(getattr(self._response, "raw", None), "_fp", None), "fp", None)
        if not isinstance(reader, io.BufferedReader):
            return b""
        return reader.read(len(reader.peek()))

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already, or by the daemon
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._response is not None:
            self._response.close()
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def early(self) -> bytes:
        """What was read already when this was made; once."""
        early, self._early = self._early, b""
        return early

    def read(self) -> bytes:
        try:
            return self._socket.recv(_CHUNK)
        except ConnectionResetError:
            return b""
        except TimeoutError as error:
            raise EngineError(
                f"Docker has started a command and tells nothing of it for {_PATIENCE:.0f} s"
            ) from error

    def write(self, data: bytes) -> int:
        return self._socket.send(data)

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_WR)

    def all(self) -> bytes:
        """All that it says on stdout, to its end. Raises EngineError when that doesn't come."""
        self.end()
        self._socket.settimeout(_PATIENCE)
        demultiplexer, said = Demultiplexer(), []
        data = self.early or self.read()
        while data:
            said += [piece for stream, piece in demultiplexer.feed(data) if stream not in (STDERR, DAEMON)]
            data = self.read()
        return b"".join(said)

    def resize(self, rows: int, columns: int) -> None:
        from docker.errors import APIError

        with contextlib.suppress(APIError):  # it has just ended
            self._client.exec_resize(self._exec, height=rows, width=columns)

    def state(self) -> dict[str, Any] | None:
        """How it ended, which the daemon may know a moment after the stream's end; None when it is gone."""
        from docker.errors import NotFound

        state: dict[str, Any] | None = None
        for _ in range(200):
            try:
                state = self._client.exec_inspect(self._exec)
            except NotFound:
                return None
            if state is not None and not state["Running"]:
                return state
            time.sleep(0.02)
        return state


class _Said:
    """Shows what a command says. The daemon's complaint that there is no such command comes the same way, so
    a beginning that looks like it waits for the exit code."""

    def __init__(self) -> None:
        self.complaint = b""
        self._held: list[tuple[Callable[[bytes], None], bytes]] = []
        self._begun = False

    def _show(self, sink: Callable[[bytes], None], data: bytes) -> None:
        if not self._begun:
            self._begun = True
            if _REFUSED.match(data):
                self.complaint = data
        if self.complaint:
            self._held.append((sink, data))
        else:
            sink(data)

    def finish(self, *, show: bool) -> None:
        """At the end: whether what was held back is the command's after all."""
        if show:
            for sink, data in self._held:
                sink(data)
        self._held.clear()


class _Plain(_Said):
    """Stdout and stderr, in one stream from the daemon."""

    def __init__(self, stdout: int, stderr: int) -> None:
        super().__init__()
        self._stdout = functools.partial(write_all, stdout)
        self._stderr = functools.partial(write_all, stderr)
        self._demultiplexer = Demultiplexer()

    def take(self, data: bytes) -> None:
        for stream, piece in self._demultiplexer.feed(data):
            self._show(self._stderr if stream in (STDERR, DAEMON) else self._stdout, piece)


class _Raw(_Said):
    """What a terminal shows."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def take(self, data: bytes) -> None:
        self._show(self._terminal.show, data)

"""One container of a job, from its start to its exit status."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness.engines.docker._daemon import Daemon, explain, lost, status_of
from harness.engines.docker._journal import Journal, Rest
from harness.engines.docker._stream import DAEMON, Demultiplexer, Piece
from harness.engines.docker._usage import Meter
from harness.errors import EngineError
from harness.model import ExitStatus, Usage

log = logging.getLogger(__name__)

READ: Final = 1 << 20
"""Bytes asked for in one read of the stream."""
UNREAD_SECONDS: Final = 5.0
"""How long output may wait for a reader before `wait` leaves it to the daemon's log."""
KILL_SECONDS: Final = 60.0
"""A container that outlives SIGKILL for so long hangs in the kernel."""


class Attachment:
    """The live stream of a container that wasn't started yet when it was opened: it misses nothing."""

    def __init__(self, daemon: Daemon, container: str) -> None:
        with daemon.doing("attach to the container"):
            raw = daemon.client.attach_socket(container, params={"stdout": 1, "stderr": 1, "stream": 1})
        # The library hands out the inner half of a response; to close it without a leak takes both.
        self._response = getattr(raw, "_response", None)
        self._socket = getattr(raw, "_sock", raw)
        self._socket.settimeout(None)

    def pieces(self) -> Iterator[list[Piece]]:
        """What comes, as it comes; ends when the container ends or the connection breaks."""
        demultiplexer = Demultiplexer()
        buffer = memoryview(bytearray(READ))
        while size := self._socket.recv_into(buffer):
            yield demultiplexer.feed(bytes(buffer[:size]))

    def close(self) -> None:
        """Let go; the daemon goes on writing its log. Safe to call twice."""
        if self._response is not None:
            self._response.close()
        self._socket.close()


class DockerHost:
    """A started container; `ended` when it is already known how it ended."""

    def __init__(
        self,
        daemon: Daemon,
        *,
        name: str,
        container: str,
        scratch: Path,
        attachment: Attachment | None = None,
        ended: ExitStatus | None = None,
    ) -> None:
        self._daemon = daemon
        self._name = name
        self._container = container
        self._scratch = scratch
        self._attachment = attachment
        self._meter = Meter(daemon, container)
        self._lock = threading.Lock()
        self._born = time.monotonic()
        self._watching = False
        self._breaks = 0
        self._status = ended
        self._ended = threading.Event()
        if ended is not None:
            self._ended.set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def entry(self) -> Mapping[str, Any]:
        """See `Host.entry`: the container's id, which is never given to another."""
        return {"engine": "docker", "container": self._container}

    @property
    def container(self) -> str:
        """The container's id."""
        return self._container

    def output(self, skip: int = 0) -> Iterator[bytes]:
        """Stdout and stderr from byte `skip` on; one reader at a time.

        Live from the container's own pipes when this object started it. After a crash or a broken
        connection from the daemon's log, which has every byte too, but ends an unfinished last line.
        """
        self._watch_it()
        attachment = self._take_attachment()
        if attachment is not None and skip:
            attachment.close()
            attachment = None
        return self._output(skip, attachment)

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        self._watch_it()
        now = time.monotonic()
        until = None if timeout is None else now + timeout
        if self._attachment is not None:
            # A container whose output nobody reads stops at a full pipe, and would never end.
            patience = max(self._born + UNREAD_SECONDS - now, 0.0)
            if not self._ended.wait(patience if timeout is None else min(patience, timeout)):
                if until is not None and time.monotonic() >= until:
                    return None
                self.release()
        self._ended.wait(None if until is None else max(until - time.monotonic(), 0.0))
        return self._status

    def signal(self, number: int) -> None:
        from docker.errors import APIError

        if self._ended.is_set():
            return
        with self._daemon.doing(f"send signal {number} to {self._name}"):
            try:
                self._daemon.client.kill(self._container, signal=number)
            except APIError as error:
                if status_of(error) not in (404, 409):  # gone, or not running any more
                    raise

    def kill(self) -> None:
        self.signal(9)
        # Process 1 of the container's PID namespace takes all others with it, daemons included.
        if self.wait(KILL_SECONDS) is None:
            raise EngineError(
                f"{self._name} outlives SIGKILL: a process of container {self._container[:12]} hangs in the "
                "kernel (a disk or a driver that doesn't answer)"
            )

    def usage(self) -> Usage | None:
        return None if self._ended.is_set() else self._meter.read()

    def watch_oom(self) -> Callable[[int], bool]:
        """See `KeepableHost.watch_oom`: by the control group's own counter, where it can be seen."""
        before = self._meter.oom_kills()

        def ran_out(code: int) -> bool:
            del code
            return self._meter.oom_kills() > before

        return ran_out

    def release(self) -> None:
        """Let go of the live stream, if nobody took it."""
        if (attachment := self._take_attachment()) is not None:
            attachment.close()

    def _take_attachment(self) -> Attachment | None:
        with self._lock:
            attachment, self._attachment = self._attachment, None
        return attachment

    # How it ended

    def _watch_it(self) -> None:
        with self._lock:
            if not self._watching and not self._ended.is_set():
                self._watching = True
                threading.Thread(target=self._watch, name=f"wait-{self._name}", daemon=True).start()

    def _watch(self) -> None:
        try:
            self._status = self._outcome()
        except Exception as error:
            # Whatever it was, whoever waits must hear of it: a thread's exception reaches nobody.
            log.exception("waiting for %s", self._name)
            self._status = ExitStatus(code=137, vanished=True, error=f"waiting for {self._name}: {error}")
        finally:
            self._ended.set()

    def _outcome(self) -> ExitStatus:
        from docker.errors import APIError, NotFound

        code = 137
        while True:
            try:
                self._daemon.reach()
                code = self._daemon.client.wait(self._container, timeout=None)["StatusCode"]
                state = self._daemon.client.inspect_container(self._container)["State"]
                if state["Status"] in ("removing", "dead"):
                    return self._removed(code)
                if not state["Running"]:
                    return exit_status(state)
            except NotFound:
                return self._removed(code)
            except APIError as error:
                if status_of(error) < 500:
                    raise
                log.warning("waiting for %s: %s", self._name, explain(error))
                if not self._survived():
                    return self._abandoned()
            except Exception as error:
                if not lost(error):
                    raise
                log.warning("lost the Docker daemon while waiting for %s: %s", self._name, error)
                if not self._survived():
                    return self._abandoned()

    def _survived(self) -> bool:
        self._breaks += 1
        return self._daemon.returns()

    def _removed(self, code: int) -> ExitStatus:
        return ExitStatus(
            code=code, vanished=True, error=f"the container of {self._name} was removed while it ran"
        )

    def _abandoned(self) -> ExitStatus:
        return ExitStatus(
            code=137,
            vanished=True,
            error=f"the Docker daemon at {self._daemon.address} went away while {self._name} ran and didn't "
            "come back; start it again, then `harness gc` removes what it left",
        )

    # What it says

    def _output(self, skip: int, attachment: Attachment | None) -> Iterator[bytes]:
        with Journal(self._scratch / "streams", skip) as journal:
            if attachment is not None:
                try:
                    for pieces in attachment.pieces():
                        if pieces:
                            journal.note(pieces)
                            yield b"".join([data for _, data in pieces])
                except OSError as error:
                    log.warning(
                        "lost the output of %s, going on with the daemon's log: %s", self._name, error
                    )
                finally:
                    attachment.close()
                # The stream also ends when the daemon dies, or when the container closes its stdout and
                # goes on; only a watch that was never broken says that this was the end.
                if self.wait(UNREAD_SECONDS) is not None and not self._breaks:
                    return
            while True:
                status = self._status if self._ended.is_set() else None
                yield from self._logged(journal, follow=status is None)
                if status is not None:
                    return
                # Once more when it has ended: old daemons lose a race for the last lines when following.
                self.wait(UNREAD_SECONDS)

    def _logged(self, journal: Journal, *, follow: bool) -> Iterator[bytes]:
        """What the daemon's log has beyond the journal; with `follow` until the container ends."""
        client = self._daemon.client
        rest, demultiplexer = Rest(journal), Demultiplexer()
        query = {"stdout": 1, "stderr": 1, "follow": int(follow)}
        try:
            self._daemon.reach()
            with client.get(
                f"{client.base_url}/v{client.api_version}/containers/{self._container}/logs",
                params=query,
                stream=True,
                timeout=None,
            ) as response:
                if response.status_code == 404:
                    return
                response.raise_for_status()
                for data in response.raw.stream(READ, decode_content=False):
                    pieces = demultiplexer.feed(data)
                    if any(stream == DAEMON for stream, _ in pieces):
                        raise OSError(b"".join(data for _, data in pieces).decode(errors="replace"))
                    if new := rest.of(pieces):
                        journal.note(new)
                        yield b"".join([data for _, data in new])
        except Exception as error:
            if not lost(error):
                raise
            log.warning("the log of %s breaks off: %s", self._name, error)


def exit_status(state: dict[str, Any]) -> ExitStatus:
    """The status of a container that doesn't run, as `inspect` tells it."""
    return ExitStatus(
        code=int(state["ExitCode"]) & 0xFF,
        oom_killed=bool(state.get("OOMKilled")),
        error=state.get("Error") or None,
    )

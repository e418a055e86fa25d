"""The way to the daemon: where its socket is, what its errors mean, and whether it is still there."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import EngineError

OLDEST: Final = "20.10"
OLDEST_API: Final = "1.41"
"""What Docker Engine 20.10 speaks."""
CALL_SECONDS: Final = 120
"""A call that takes longer than this means a daemon that hangs."""
RETURN_SECONDS: Final = 30.0
"""How long a restart of the daemon may take before its containers count as lost."""
ELSEWHERE: Final = "or use --engine sandbox, which needs no daemon"


@dataclass(frozen=True)
class Daemon:
    """A connection that answered. One client serves all threads: its pool hands each a connection."""

    client: Any
    """A docker.APIClient; the published stubs of its lower half contradict its documentation."""
    address: str
    podman: bool

    def reach(self) -> None:
        """See that somebody listens.

        Raises:
            OSError: nobody does. The library would raise it too, wrapped thrice, and leave a socket open.
        """
        reach(self.address)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Turns the library's errors into one EngineError that says what was being done."""
        from docker.errors import APIError, DockerException

        try:
            self.reach()
            yield
        except APIError as error:
            raise EngineError(_advise(f"can't {what}: {explain(error)}")) from error
        except (DockerException, OSError) as error:
            raise EngineError(f"can't {what}: {_unreachable(self.address, error)}") from error

    def rootless(self) -> bool:
        """Whether root in a container is the daemon's own, ordinary user."""
        with self.doing("ask the daemon how it runs"):
            options = self.client.info().get("SecurityOptions") or []
        return any("rootless" in option for option in options)

    def returns(self, seconds: float | None = None) -> bool:
        """Wait for a daemon that went away; whether it answers again within `seconds` (RETURN_SECONDS)."""
        from docker.errors import DockerException

        deadline = time.monotonic() + (RETURN_SECONDS if seconds is None else seconds)
        pause = 0.05
        while True:
            try:
                self.reach()
                self.client.ping()
            except (DockerException, OSError):
                if time.monotonic() + pause > deadline:
                    return False
                time.sleep(pause)
                pause = min(pause * 2, 2.0)
            else:
                return True


def connect() -> Daemon:
    """The daemon that the docker command would use, else the first socket where one answers.

    Raises:
        EngineError: no socket, no permission, nobody listens, or a Docker Engine older than 20.10.
    """
    import docker
    from docker.errors import DockerException

    options = _address()
    address = str(options.get("base_url", ""))

    def client(version: str) -> Any:
        made = docker.APIClient(version=version, timeout=CALL_SECONDS, max_pool_size=64, **options)
        # Neither proxies nor ~/.netrc have a say on a local socket; reading them costs time on every call.
        made.trust_env = not address.startswith("unix:")
        return made

    try:
        reach(address)
        # What `version="auto"` asks makes the daemon run `runc --version` and more; this takes 1 ms.
        first = client(OLDEST_API)
        with first.get(f"{first.base_url}/_ping", timeout=CALL_SECONDS) as answer:
            answer.raise_for_status()
            headers = answer.headers
    except (DockerException, OSError) as error:
        raise EngineError(f"no Docker Engine: {_unreachable(address, error)}; {ELSEWHERE}") from error
    api, podman = headers.get("Api-Version", ""), "Libpod-Api-Version" in headers
    if not podman and _numbers(api) < _numbers(OLDEST_API):
        raise EngineError(
            f"the engine at {address} is {headers.get('Server', 'too old')}, with API {api or 'unknown'}; "
            f"Docker Engine {OLDEST} (API {OLDEST_API}) or newer is needed: update it, {ELSEWHERE}"
        )
    return Daemon(client=first if api == OLDEST_API else client(api), address=address, podman=podman)


def reach(address: str) -> None:
    """Connect to a Unix socket and hang up; other addresses are left to the library."""
    scheme, _, path = address.partition("://")
    if scheme in ("unix", "http+unix"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CALL_SECONDS)
            probe.connect(path if path.startswith("/") else f"/{path}")


def lost(error: BaseException) -> bool:
    """Whether this error says that the connection broke, not that the daemon refused."""
    from docker.errors import APIError
    from urllib3.exceptions import HTTPError

    return isinstance(error, (OSError, HTTPError)) and not isinstance(error, APIError)


def status_of(error: Any) -> int:
    """The HTTP status of an APIError; 0 when the answer had none."""
    return int(getattr(error, "status_code", None) or 0)


def explain(error: Any) -> str:
    """The daemon's own words, without the library's HTTP wrapping."""
    return str(error.explanation or error).strip()


def _address() -> dict[str, Any]:
    """Base URL and TLS: $DOCKER_HOST, the docker command's context, then the sockets in use."""
    import docker.utils

    if os.environ.get("DOCKER_HOST"):
        return dict(docker.utils.kwargs_from_env())
    from docker.context import ContextAPI
    from docker.errors import DockerException

    try:
        context: Any = ContextAPI.get_current_context()
        if context is not None and context.Name != "default" and context.Host:
            return {"base_url": context.Host, "tls": context.TLSConfig or False}
    except DockerException as error:
        raise EngineError(f"the docker command's current context can't be read: {error}") from error
    system, runtime = Path("/var/run/docker.sock"), os.environ.get("XDG_RUNTIME_DIR")
    own = [Path(runtime, "docker.sock"), Path(runtime, "podman/podman.sock")] if runtime else []
    for path in (system, *own, Path("/run/podman/podman.sock")):
        if os.access(path, os.R_OK | os.W_OK):
            return {"base_url": f"unix://{path}"}
    return {"base_url": f"unix://{system}"}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _unreachable(address: str, error: BaseException) -> str:
    """One sentence for why nobody answered at `address`."""
    number = _errno(error)
    if number == errno.ENOENT:
        return f"there is no socket at {address}: install and start Docker, or set DOCKER_HOST"
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied at {address}: add yourself to the group that owns the socket "
            "(`sudo usermod -aG docker $USER`) and log in again"
        )
    if number == errno.ECONNREFUSED:
        return f"nobody listens at {address}: start the Docker daemon"
    return f"the daemon at {address} doesn't answer: {error}"


def _errno(error: BaseException | None) -> int | None:
    """The number of the operating system's error at the bottom of the library's wrappings."""
    seen: list[Any] = [error]
    for item in seen:
        if len(seen) > 50:
            break
        if isinstance(item, OSError) and item.errno:
            return item.errno
        if isinstance(item, BaseException):
            seen += [item.__cause__, item.__context__, *item.args]
    return None


_ADVICE: Final = (
    (
        r"address pool|IPv4 pool|no available network",
        "Docker has no free address pool left; remove unused networks with `docker network prune`",
    ),
    (
        r"could not select device driver|nvidia-container-cli|unresolvable CDI",
        (
            "GPUs in containers need the NVIDIA Container Toolkit (`nvidia-ctk runtime configure`); "
            "without it run with gpus = 0"
        ),
    ),
    (
        r"bind source path does not exist|statfs .* no such file",
        "the daemon doesn't see this directory; it must run on this machine (DOCKER_HOST) and share the path",
    ),
    (r"no space left on device", "free space where Docker keeps its data (`docker system df`)"),
)


def _advise(sentence: str) -> str:
    """The sentence, with what to do where the cause is a known one."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, sentence):
            return f"{sentence}. {advice}"
    return sentence

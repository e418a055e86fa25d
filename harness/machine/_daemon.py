"""Does a container engine answer, and which images has it? Asked over its socket, in two milliseconds.

The `docker` package takes 150 ms to import, which every `harness plan` would pay; two GET requests need
none of it. The docker engine itself uses the package.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass, field
from harness.errors import EngineError

__all__ = ["OLDEST", "Docker", "Image", "Question", "address", "probe"]

OLDEST: Final = (20, 10)
"""The same as the docker engine's own limit; a test keeps them equal."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_SECONDS: Final = 2.0
"""A healthy daemon answers in two milliseconds; one that doesn't in two seconds hangs."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """A local image, as far as the plan wants to know it."""

    name: str
    id: str
    labels: Mapping[str, str]
    architecture: str
    size_bytes: int
    user: str
    """The image's USER; empty: root."""


@dataclass(frozen=True, kw_only=True)
class Docker:
    """A container engine that answers, or why none does."""

    version: str | None
    reason: str = ""
    """Why `version` is None, with what to do."""
    address: str = ""
    podman: bool = False
    _seen: dict[str, Image | None] = field(default_factory=dict, compare=False, repr=False)

    def __bool__(self) -> bool:
        return self.version is not None

    @property
    def title(self) -> str:
        """For a sentence: "Docker Engine 20.10.24"."""
        return f"{'Podman' if self.podman else 'Docker Engine'} {self.version}"

    def image(self, name: str) -> Image | None:
        """The local image of that name; None when it isn't here.

        Raises:
            EngineError: the daemon stopped answering, or answers with an error.
        """
        if not self:
            return None
        if name not in self._seen:
            self._seen[name] = self._ask(name) if _NAME.fullmatch(name) else None
        return self._seen[name]

    def _ask(self, name: str) -> Image | None:
        try:
            status, found = _get(self.address, f"/images/{name}/json")
        except OSError as error:
            raise EngineError(
                f"{self.title} was asked for image {name}: {_unreachable(self.address, error)}"
            ) from error
        if status in (400, 404):  # 400: no image could have this name
            return None
        if status != 200:
            raise EngineError(
                f"{self.title} can't look up image {name}: {found.get('message', f'HTTP {status}')}"
            )
        config = found.get("Config") or {}
        return Image(
            name=name,
            id=str(found.get("Id", "")),
            labels=dict(config.get("Labels") or {}),
            architecture=str(found.get("Architecture", "")),
            size_bytes=int(found.get("Size") or 0),
            user=str(config.get("User") or ""),
        )


class Question:
    """Which engine it is, asked of the one that the docker command would use, else of the first socket
    where one answers; the answer is awaited while other things are looked at."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._where = address(environ)
        self._connection: socket.socket | None = None
        self._error: OSError | None = None
        try:
            self._connection = _ask(self._where, "/version")
        except OSError as error:
            self._error = error

    def answer(self) -> Docker:
        """What it says."""
        where = self._where
        try:
            if self._connection is None:
                assert self._error is not None
                raise self._error
            status, about = _answer(self._connection)
        except OSError as error:
            return Docker(version=None, reason=_unreachable(where, error), address=where)
        version = str(about.get("Version", ""))
        if status != 200 or not version:
            return Docker(version=None, reason=f"what answers at {where} is no Docker Engine", address=where)
        names = [str(part.get("Name", "")).lower() for part in about.get("Components") or ()]
        podman = any("podman" in name for name in names)
        if not podman and _numbers(version) < OLDEST:
            needed = ".".join(f"{number:02}" for number in OLDEST)
            return Docker(
                version=None,
                reason=f"the Docker Engine at {where} is {version}, and {needed} or newer is needed: update it",
                address=where,
            )
        return Docker(version=version, address=where, podman=podman)

    def close(self) -> None:
        """Hang up, answered or not."""
        if self._connection is not None:
            self._connection.close()


def probe(environ: Mapping[str, str] = os.environ) -> Docker:
    """Ask and wait."""
    with contextlib.closing(Question(environ)) as question:
        return question.answer()


def address(environ: Mapping[str, str] = os.environ) -> str:
    """$DOCKER_HOST, the docker command's context, then the first socket that may be used."""
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"]
    context = _context(environ)
    if context:
        return context
    system, runtime = Path("/var/run/docker.sock"), environ.get("XDG_RUNTIME_DIR")
    own = [Path(runtime, "docker.sock"), Path(runtime, "podman/podman.sock")] if runtime else []
    for path in (system, *own, Path("/run/podman/podman.sock")):
        if os.access(path, os.R_OK | os.W_OK):
            return f"unix://{path}"
    return f"unix://{system}"


def _context(environ: Mapping[str, str]) -> str | None:
    """The endpoint of the docker command's current context; None for the default one."""
    folder = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME", "/"), ".docker"))
    name = environ.get("DOCKER_CONTEXT")
    try:
        name = name or json.loads((folder / "config.json").read_bytes()).get("currentContext")
        if not name or name == "default":
            return None
        import hashlib

        digest = hashlib.sha256(name.encode()).hexdigest()
        meta = json.loads((folder / "contexts/meta" / digest / "meta.json").read_bytes())
        return str(meta["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no configuration, or none that can be read: the docker command then says so itself


def _get(where: str, path: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON object of one GET."""
    with _ask(where, path) as connection:
        return _answer(connection)


def _ask(where: str, path: str) -> socket.socket:
    """A connection on which that was asked. HTTP/1.0: the daemon ends its answer by closing."""
    connection = _connect(where)
    try:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
    except BaseException:
        connection.close()
        raise
    return connection


def _answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    try:
        status = int(head.split(None, 2)[1])
        found = json.loads(body)
    except (IndexError, ValueError):
        return 0, {}
    return status, found if isinstance(found, dict) else {}


def _connect(where: str) -> socket.socket:
    scheme, _, rest = where.partition("://")
    if scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_SECONDS)
            connection.connect(rest)
        except BaseException:
            connection.close()
            raise
        return connection
    found = re.fullmatch(r"\[?([^/]+?)\]?(?::(\d+))?/?", rest)
    if scheme in ("tcp", "http", "https") and found:
        tls = scheme == "https" or bool(os.environ.get("DOCKER_TLS_VERIFY"))
        port = int(found[2] or (2376 if tls else 2375))
        connection = socket.create_connection((found[1], port), _SECONDS)
        return _secure(connection, found[1]) if tls else connection
    raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))


def _secure(connection: socket.socket, hostname: str) -> socket.socket:
    import ssl

    folder = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
    try:
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        return context.wrap_socket(connection, server_hostname=hostname)
    except BaseException:
        connection.close()
        raise


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("-")[0].split("+")[0].split(".")
    return tuple(int(part) for part in parts[:2] if part.isdecimal())


def _unreachable(where: str, error: OSError) -> str:
    """Why nobody answers at `where`: "what: what to do"."""
    if error.errno == errno.ENOENT:
        return f"there is no socket at {where}: install and start Docker, or set DOCKER_HOST"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"permission denied at {where}: add yourself to the group that owns the socket "
            "(`sudo usermod -aG docker $USER`) and log in again"
        )
    if error.errno == errno.ECONNREFUSED:
        return f"nobody listens at {where}: start the Docker daemon"
    if error.errno == errno.EPROTONOSUPPORT:
        return f"{where} is not on this machine, whose directories the hosts need: use a daemon with a local socket"
    if isinstance(error, TimeoutError):
        return f"the daemon at {where} gave no answer in {_SECONDS:g} seconds: restart it"
    return f"the daemon at {where} doesn't answer: {error}"

"""What an image is made of, learnt without running anything of it."""

from __future__ import annotations

import base64
import io
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from harness._values import dataclass
from harness.errors import EngineError

if TYPE_CHECKING:
    from harness.engines.docker._daemon import Daemon

__all__ = ["LOOKING", "ImageFacts", "PathFacts", "look", "remove_lookers"]

LOOKING: Final = "harness.looking"
"""The label of a container that was made to look into its image, and never starts."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Docker's own, for an image that sets none."""
_DIRECTORY: Final = 1 << 31
_LINK: Final = 1 << 27
_LINKS: Final = 10
_LARGEST: Final = 16 << 20
_SCRIPT: Final = 64 << 10
"""A program that is larger is no script; nobody wants to read it."""


@dataclass(frozen=True, kw_only=True)
class PathFacts:
    """A file or directory of an image."""

    path: str
    """Where it really is: links are followed."""
    directory: bool
    executable: bool
    size: int
    content: bytes = b""
    """Of the files that were asked for with their content."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """An image, as its configuration and its files tell."""

    name: str
    id: str
    architecture: str
    size_bytes: int
    user: str
    """USER; empty: root."""
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    programs: Mapping[str, PathFacts]
    """Of the programs that were asked for, those that are on its PATH."""
    paths: Mapping[str, PathFacts]
    """Of the paths that were asked for, those that are there."""
    baked: tuple[str, ...]
    """Files below /opt/ml that the image brings, the first of them; not those of /opt/ml/code."""


def look(
    image: str, *, programs: tuple[str, ...] = (), paths: tuple[str, ...] = (), owner: str = ""
) -> ImageFacts:
    """Look into a local image.

    Args:
        programs: names to look for on the image's PATH.
        paths: absolute paths to look for; those of files are read, up to 16 MiB.
        owner: what `remove_lookers` knows the container by, should this process be killed.

    Raises:
        EngineError: no daemon, or no such image on this machine.
    """
    from docker.errors import ImageNotFound

    from harness.engines.docker._daemon import connect

    daemon = connect()
    with daemon.doing(f"look at the image {image}"):
        try:
            found = daemon.client.inspect_image(image)
        except ImageNotFound:
            raise EngineError(
                f"the image {image} isn't on this machine: build it, or fetch it with `docker pull {image}`"
            ) from None
        config = found.get("Config") or {}
        environment = dict(word.partition("=")[::2] for word in config.get("Env") or ())
        with _container(daemon, found["Id"], owner) as inside:
            return ImageFacts(
                name=image,
                id=str(found["Id"]),
                architecture=str(found.get("Architecture") or ""),
                size_bytes=int(found.get("Size") or 0),
                user=str(config.get("User") or ""),
                entrypoint=tuple(config.get("Entrypoint") or ()),
                command=tuple(config.get("Cmd") or ()),
                environment=environment,
                programs={
                    name: facts
                    for name in programs
                    if (facts := inside.program(name, environment.get("PATH") or _PATH)) is not None
                },
                paths={
                    path: facts for path in paths if (facts := inside.path(path, read=_LARGEST)) is not None
                },
                baked=tuple(inside.below("/opt/ml", apart="code")),
            )


def remove_lookers(owner: str) -> None:
    """Remove containers of `look` whose process was killed."""
    from harness.engines.docker._daemon import connect

    daemon = connect()
    with daemon.doing("remove what a killed `harness verify` left"):
        for item in daemon.client.containers(all=True, filters={"label": f"{LOOKING}={owner}"}):
            daemon.client.remove_container(item["Id"], force=True, v=True)


@contextmanager
def _container(daemon: Daemon, image: str, owner: str) -> Iterator[_Inside]:
    made = daemon.client.create_container(
        image, command=["-"], entrypoint=["-"], labels={LOOKING: owner}, network_disabled=True
    )
    try:
        yield _Inside(daemon.client, made["Id"])
    finally:
        daemon.client.remove_container(made["Id"], force=True, v=True)


class _Inside:
    """The files of a container that doesn't run."""

    def __init__(self, client: Any, container: str) -> None:
        self._client = client
        self._container = container
        self._url = f"{client.base_url}/v{client.api_version}/containers/{container}/archive"

    def program(self, name: str, path: str) -> PathFacts | None:
        """The first on PATH, its content too; one that can't be executed counts if there is no other."""
        found = [
            facts
            for directory in path.split(":")
            if (facts := self.path(posixpath.join(directory, name), read=_SCRIPT)) is not None
            and not facts.directory
        ]
        return next((facts for facts in found if facts.executable), found[0] if found else None)

    def path(self, path: str, *, read: int = 0) -> PathFacts | None:
        for _ in range(_LINKS):
            stat = self._stat(path)
            if stat is None:
                return None
            mode = int(stat["mode"])
            if not mode & _LINK:
                break
            path = posixpath.join(posixpath.dirname(path), stat["linkTarget"])
        else:
            return None
        directory = bool(mode & _DIRECTORY)
        return PathFacts(
            path=path,
            directory=directory,
            executable=bool(mode & 0o111),
            size=int(stat["size"]),
            content=self._read(path) if not directory and stat["size"] <= read else b"",
        )

    def below(self, path: str, *, apart: str, most: int = 5) -> Iterator[str]:
        """The first files below a directory, but not those in its child `apart`."""
        if self.path(path) is None:
            return
        skipped = f"{posixpath.basename(path)}/{apart}/"
        for member in self._members(path):
            if member.isfile() and not member.name.startswith(skipped):
                yield posixpath.join(posixpath.dirname(path), member.name)
                most -= 1
                if not most:
                    return

    def _stat(self, path: str) -> Mapping[str, Any] | None:
        with self._client.head(self._url, params={"path": path}, timeout=60) as answer:
            if answer.status_code != 200:
                return None
            told: Mapping[str, Any] = json.loads(
                base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"])
            )
            return told

    def _read(self, path: str) -> bytes:
        chunks, _ = self._client.get_archive(self._container, path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    return file.read()
        return b""

    def _members(self, path: str) -> Iterator[tarfile.TarInfo]:
        with (
            self._client.get(self._url, params={"path": path}, stream=True, timeout=60) as answer,
            tarfile.open(fileobj=answer.raw, mode="r|") as tar,
        ):
            yield from tar

"""Local training images: build one, list them, look into one.

The build goes through the daemon's own API: it needs no `docker` command and no buildx, and works with
every Docker Engine from 20.10 and with Podman's Docker API. The Dockerfile keeps to what BuildKit and
the classic builder both know, so `docker build` by hand gives the same image.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from harness._values import dataclass
from harness.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = [
    "DEFAULT_BASE",
    "DEFAULT_TAG",
    "BuiltImage",
    "LocalImage",
    "build",
    "inspect",
    "list_images",
    "standins_path",
]

DEFAULT_TAG: Final = "harness-pytorch"
DEFAULT_BASE: Final = "pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime"
"""The same as the Dockerfile's; a test keeps them equal."""

_PACKAGE: Final = Path(__file__).resolve().parents[1]

Progress = Callable[[str], None]
"""Gets one line of text for each thing that happens."""

_PROXIES: Final = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, Amazon Linux
    "/etc/ssl/cert.pem",  # macOS, BSD
)
_NETWORK_SIGNS: Final = (
    "temporary failure in name resolution",
    "temporary failure resolving",
    "could not resolve",
    "no such host",
    "connection refused",
    "connection timed out",
    "i/o timeout",
    "network is unreachable",
    "tls handshake timeout",
    "request canceled while waiting for connection",
    "no matching distribution found",
    "certificate verify failed",
    "certificate signed by unknown authority",
)
_PROBE: Final = """
import json, platform
found = {"python": platform.python_version()}
for name in ("torch", "torchvision"):
    try:
        found[name] = __import__(name).__version__
    except ImportError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class LocalImage:
    """An image that `build` made, as its labels tell."""

    id: str
    tags: tuple[str, ...]
    torch: str | None
    """`torch.__version__` in it; None for an image built by hand, without the label."""
    torchvision: str | None
    python: str | None
    base: str | None
    created: str
    """RFC 3339, UTC."""
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """What `build` made."""

    tag: str
    seconds: float
    image: LocalImage


def build(
    *,
    tag: str = DEFAULT_TAG,
    base: str | None = None,
    progress: Progress,
    no_cache: bool = False,
    launchers: bool = False,
) -> BuiltImage:
    """Build the training image `tag` on `base`.

    `base` is an image with Python and PyTorch (default `DEFAULT_BASE`), or "debian": a base made here from
    Debian's packages, for where no image registry can be reached. A base that is here is not pulled again.
    `no_cache` runs every step anew, and makes the Debian base anew. `launchers` adds what mpirun and smddprun
    need: sshd, Open MPI, mpi4py (contract: H20).

    Raises EngineError: no daemon, no network, a base without PyTorch, a step that failed.
    """
    started = time.monotonic()
    with closing(_client()) as client:
        if base == "debian":
            from harness.engines import _debian

            base = _debian.base(client, progress=progress, no_cache=no_cache)
        else:
            base = base or DEFAULT_BASE
            _pull_if_absent(client, base, progress)
        found = _probe(client, base)
        progress(f"base {base}: Python {found['python']}, PyTorch {found['torch']}")
        image_id = run_build(
            client,
            context(),
            dockerfile="container/Dockerfile",
            tag=tag,
            arguments={"BASE_IMAGE": base, **({"LAUNCHERS": "mpi"} if launchers else {})},
            labels={
                "harness.base": base,
                **({"harness.launchers": "mpi"} if launchers else {}),
                **{f"harness.{name}": value for name, value in found.items()},
            },
            no_cache=no_cache,
            progress=progress,
        )
        image = _describe(client.images.get(image_id).attrs)
    return BuiltImage(tag=tag, seconds=time.monotonic() - started, image=image)


def list_images() -> list[LocalImage]:
    """The local images that carry our label, newest first. Raises EngineError when no daemon answers."""
    with closing(_client()) as client:
        images = [_describe(image.attrs) for image in client.images.list(filters={"label": "harness.image"})]
    return sorted(images, key=lambda image: image.created, reverse=True)


def inspect(name: str) -> LocalImage | None:
    """The local image of that name, whoever built it; None when it isn't here.

    Raises EngineError when no daemon answers.
    """
    from docker.errors import ImageNotFound

    with closing(_client()) as client:
        try:
            return _describe(client.images.get(name).attrs)
        except ImageNotFound:
            return None


def standins_path() -> Path:
    """The directory to put on `sys.path` for the stand-in `smdistributed`."""
    return _PACKAGE / "standins"


def context() -> bytes:
    """The build context, as a tar: the package's `container/` and `standins/`, and the CA bundle."""
    files = {
        path.relative_to(_PACKAGE).as_posix(): path.read_bytes()
        for folder in ("container", "standins")
        for path in sorted((_PACKAGE / folder).rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    certificates = ca_bundle()
    if certificates:
        files["container/ca.crt"] = certificates
    return pack(files)


def pack(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files, by path; the same for the same files, so that the builder's cache holds."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    return tar.getvalue()


def ca_bundle(environ: Mapping[str, str] = os.environ) -> bytes:
    """The certificates that this machine trusts: the file that a variable names, else the system's.

    Empty when there is none: the image then trusts what its base trusts.
    """
    named = [environ[name] for name in _CA_VARIABLES if environ.get(name)]
    for path in (*named, *_CA_FILES):
        if Path(path).is_file():
            return Path(path).read_bytes()
    return b""


def proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """The host's proxy variables, both spellings; builders know them without an ARG and keep them out of
    the image and its history."""
    names = [spelling for name in _PROXIES for spelling in (name, name.upper())]
    return {name: environ[name] for name in names if environ.get(name)}


def run_build(
    client: DockerClient,
    tar: bytes,
    *,
    dockerfile: str,
    tag: str,
    no_cache: bool,
    progress: Progress,
    arguments: Mapping[str, str] = MappingProxyType({}),
    labels: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Build `tar` and return the image's id. Raises EngineError with the last lines of the failed step."""
    forwarded = proxies(os.environ)
    # A proxy on this machine's loopback is reached from the build only on the host's network.
    loopback = any(urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1") for url in forwarded.values())
    stream = client.api.build(
        fileobj=io.BytesIO(tar),
        custom_context=True,
        dockerfile=dockerfile,
        tag=tag,
        buildargs={**forwarded, **arguments},
        labels=dict(labels),
        nocache=no_cache,
        network_mode="host" if loopback else None,
        rm=True,
        forcerm=True,
        decode=True,
    )
    image_id = tag
    with replacing(client, tag):
        for item in stream_lines(stream, f"building {tag}", progress):
            image_id = item.get("aux", {}).get("ID", image_id)
    return image_id


@contextmanager
def replacing(client: DockerClient, tag: str) -> Iterator[None]:
    """Afterwards the image that had this tag before is gone, unless something still uses it."""
    from docker.errors import APIError, ImageNotFound

    try:
        before = client.images.get(tag)
    except ImageNotFound:
        yield
        return
    yield
    try:
        before.reload()
        if not before.tags:
            client.images.remove(str(before.id))
    except ImageNotFound:
        pass
    except APIError as error:
        if error.status_code != 409:  # in use: by a container, or as the base of another image
            raise


def stream_lines(stream: Iterable[Any], doing: str, progress: Progress) -> Iterator[Mapping[str, Any]]:
    """Pass a daemon's JSON stream on, line by line to `progress`; its error becomes an EngineError."""
    said: list[str] = []
    for item in stream:
        if "error" in item:
            raise failure(doing, str(item["error"]), said)
        text = item.get("stream") or (item.get("status", "") if "progress" not in item else "")
        for line in text.splitlines():
            if line.strip():
                progress(line.rstrip())
                said = [*said[-19:], line.strip()]
        yield item


def failure(doing: str, error: str, said: list[str]) -> EngineError:
    """One clear error for something that failed while `doing`, from its own words."""
    words = [*said, error.strip()]
    network = next((w for w in words for sign in _NETWORK_SIGNS if sign in w.lower()), None)
    if network is not None:
        return EngineError(
            f"{doing} failed for want of the network ({network}): check the connection and the proxy variables;"
            " where no image registry can be reached, build with --base debian"
        )
    tail = "\n  ".join(words[-8:])
    return EngineError(f"{doing} failed: {error.strip()}\n  {tail}")


def _client() -> DockerClient:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except DockerException as error:
        raise EngineError(f"no Docker Engine answers ({error}): start it, or set DOCKER_HOST") from error
    return client


def _pull_if_absent(client: DockerClient, image: str, progress: Progress) -> None:
    from docker.errors import APIError, ImageNotFound

    try:
        client.images.get(image)
        return
    except ImageNotFound:
        progress(f"pulling {image}")
    repository, _, tag = image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
    try:
        stream = client.api.pull(repository, tag=tag, stream=True, decode=True)
        for _ in stream_lines(stream, f"pulling {image}", progress):
            pass
    except APIError as error:
        raise failure(f"pulling {image}", str(error.explanation or error), []) from error


def _probe(client: DockerClient, base: str) -> dict[str, str]:
    """What the base has; its labels must tell the truth, and a base without PyTorch is told before a build."""
    from docker.errors import APIError

    container = client.containers.create(base, ["-c", _PROBE], entrypoint=["python3"], network_mode="none")
    try:
        container.start()
        code = container.wait()["StatusCode"]
        out, err = container.logs(stderr=False), container.logs(stdout=False)
    except APIError as error:
        raise EngineError(
            f"the base image {base} has no Python 3 that runs ({error.explanation or error}): name another with --base"
        ) from error
    finally:
        container.remove(force=True)
    if code != 0:
        said = err.decode(errors="replace").strip().rpartition("\n")[2]
        raise EngineError(
            f"Python or PyTorch of the base image {base} is broken ({said}): name another with --base"
        )
    found: dict[str, str] = json.loads(out.splitlines()[-1])
    if "torch" not in found:
        raise EngineError(
            f"the base image {base} has no PyTorch: name one that has with --base, or use --base debian"
        )
    return found


def _describe(found: Mapping[str, Any]) -> LocalImage:
    labels = found["Config"].get("Labels") or {}
    return LocalImage(
        id=found["Id"],
        tags=tuple(found.get("RepoTags") or ()),
        torch=labels.get("harness.torch"),
        torchvision=labels.get("harness.torchvision"),
        python=labels.get("harness.python"),
        base=labels.get("harness.base"),
        created=found["Created"],
        size_bytes=found["Size"],
    )

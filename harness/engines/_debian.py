"""The Debian base: PyTorch from Debian's packages, for where no image registry can be reached.

First the smallest Debian, made on this machine by mmdebstrap or debootstrap and imported; then, as an
ordinary build on it, Python and PyTorch. Both come from the Debian mirror that this machine uses.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from harness.engines import images
from harness.errors import EngineError

if TYPE_CHECKING:
    from docker import DockerClient

TAG: Final = "harness-base:debian"
MINIMAL_TAG: Final = "harness-base:debian-minimal"
SUITE: Final = "bookworm"

_PACKAGES: Final = "python3 python3-pip python3-torch python3-torchvision gcc libc6-dev python3-dev"
_DOCKERFILE: Final = f"""\
FROM {MINIMAL_TAG}
COPY ca.crt /tmp/ca.crt
RUN apt-get -o Acquire::https::CaInfo=/tmp/ca.crt update \\
 && DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::https::CaInfo=/tmp/ca.crt \\
        install -y --no-install-recommends {_PACKAGES} \\
 && apt-get clean && rm -rf /var/lib/apt/lists/* /tmp/ca.crt
"""


def base(client: DockerClient, *, progress: images.Progress, no_cache: bool) -> str:
    """The tag of the Debian base, made when it isn't here or `no_cache` is set.

    Raises EngineError: neither bootstrap tool is installed, the mirror can't be reached, a step failed.
    """
    from docker.errors import ImageNotFound

    if not no_cache:
        try:
            client.images.get(TAG)
        except ImageNotFound:
            pass
        else:
            return TAG
    mirror = find_mirror(Path("/etc/apt"))
    with images.replacing(client, MINIMAL_TAG), _bootstrap(mirror, progress) as tar:
        progress(f"importing {MINIMAL_TAG}")
        repository, _, tag = MINIMAL_TAG.partition(":")
        client.api.import_image_from_stream(tar, repository=repository, tag=tag)
    context = images.pack({"Dockerfile": _DOCKERFILE.encode(), "ca.crt": images.ca_bundle()})
    images.run_build(client, context, dockerfile="Dockerfile", tag=TAG, no_cache=no_cache, progress=progress)
    return TAG


def find_mirror(apt: Path) -> str | None:
    """The mirror of `SUITE` in this machine's own apt sources; both formats are read.

    None when they have none: mmdebstrap and debootstrap know Debian's own.
    """
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        if path.suffix == ".list" and path.is_file():
            entries = _one_line_entries(path.read_text())
        elif path.suffix == ".sources" and path.is_file():
            entries = _deb822_entries(path.read_text())
        else:
            continue
        for uri, suites, components in entries:
            if SUITE in suites and "main" in components and uri.rstrip("/").endswith("/debian"):
                return uri
    return None


def _one_line_entries(text: str) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    for line in text.splitlines():
        kind, _, rest = line.partition("#")[0].strip().partition(" ")
        rest = rest.partition("]")[2] if rest.lstrip().startswith("[") else rest
        words = rest.split()
        if kind == "deb" and len(words) >= 3:
            yield words[0], words[1:2], words[2:]


def _deb822_entries(text: str) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    for stanza in text.split("\n\n"):
        fields = {
            name.strip().lower(): value.split()
            for name, _, value in (
                line.partition(":") for line in stanza.splitlines() if not line.startswith("#")
            )
        }
        if "deb" in fields.get("types", []) and fields.get("enabled") != ["no"]:
            for uri in fields.get("uris", []):
                yield uri, fields.get("suites", []), fields.get("components", [])


@contextmanager
def _bootstrap(mirror: str | None, progress: images.Progress) -> Iterator[IO[bytes]]:
    """A tar stream of the smallest Debian; an error of the tool is raised when the stream has been read."""
    source = [] if mirror is None else [mirror]
    if shutil.which("mmdebstrap"):
        command = ["mmdebstrap", "--variant=minbase", "--mode=auto", SUITE, "-", *source]
        with _running(command, progress) as tar:
            yield tar
    elif shutil.which("debootstrap"):
        # It writes a tree, and makes device nodes in it: only root can.
        with tempfile.TemporaryDirectory(prefix="harness-debian-") as tree:
            with _running(["debootstrap", "--variant=minbase", SUITE, tree, *source], progress) as output:
                for line in output:
                    progress(line.decode(errors="replace").rstrip())
            command = ["tar", "-C", tree, "--numeric-owner", "--one-file-system", "-c", "."]
            with _running(command, progress) as tar:
                yield tar
    else:
        raise EngineError(
            "a Debian base needs mmdebstrap or debootstrap, and neither is installed:"
            " `apt-get install mmdebstrap`, or name a base image with --base"
        )


@contextmanager
def _running(command: Sequence[str], progress: images.Progress) -> Iterator[IO[bytes]]:
    """The command's standard output; its standard error goes to `progress`. Raises EngineError if it fails."""
    said: list[str] = []

    def listen(errors: IO[bytes]) -> None:
        for line in errors:
            # A progress bar rewrites its line; the last state of it is enough.
            text = line.decode(errors="replace").rstrip().rpartition("\r")[2]
            if text:
                said.append(text)
                progress(text)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        listener = threading.Thread(target=listen, args=(process.stderr,), daemon=True)
        listener.start()
        try:
            yield process.stdout
        except BaseException:
            process.terminate()
            raise
        listener.join()
        if process.wait() != 0:
            raise images.failure(f"`{' '.join(command)}`", f"exit code {process.returncode}", said)

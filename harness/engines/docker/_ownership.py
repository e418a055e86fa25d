"""Gives the files that containers wrote to the user who runs the harness.

Root gives them itself. An ordinary user can't, but the daemon can: a small container with no network and
only the right to change owners runs `chown` over the job's directories, and over nothing else.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass
from harness.engines.docker._daemon import Daemon, status_of
from harness.errors import EngineError

HELPERS: Final = ("harness-pytorch", "harness-base:debian")
"""Images that have `chown`, for a job whose own image has none."""
BATCH: Final = 500
"""Paths per `chown`, so that its arguments fit."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Which files are to be the user's."""

    own: tuple[Path, ...]
    """Trees of the job alone: everything in them."""
    shared: tuple[Path, ...]
    """The user's own trees: only what changed since `since`, and is neither the user's nor anyone's from before."""
    since: float
    images: tuple[str, ...]
    """Images to take `chown` from, best first."""
    labels: Mapping[str, str]
    """For the container that runs it, so that it too is found if this process dies."""


def give(daemon: Daemon, claim: Claim) -> None:
    """Make every file of the claim the user's; quick when it is already so.

    Raises:
        EngineError: the daemon can't do it; says which command does.
    """
    uid, gid = os.geteuid(), os.getegid()
    found = {tree: [tree] for tree in claim.own if next(_foreign(tree, uid), None)}
    for tree in claim.shared:
        if new := list(_foreign(tree, uid, since=claim.since)):
            found[tree] = new
    if uid == 0:
        for tree, paths in found.items():
            for path in _foreign(tree, uid) if tree in claim.own else paths:
                os.chown(path, uid, gid, follow_symlinks=False)
        return
    for tree, paths in found.items():
        for number in range(0, len(paths), BATCH):
            _chown(daemon, tree, paths[number : number + BATCH], claim, f"{uid}:{gid}")
    for tree in claim.own:
        if left := next(_foreign(tree, uid), None):
            raise EngineError(
                f"{left} still belongs to another user after `chown` in a container; give it to yourself with "
                f"`sudo chown -hR {uid}:{gid} {shlex.quote(str(left))}`"
            )


def _foreign(tree: Path, uid: int, *, since: float | None = None) -> Iterator[Path]:
    """Files in `tree` that aren't the user's.

    With `since`, in a tree that isn't the job's alone: only those that changed since then, directories
    before what is in them. Without, directories of the user's that can't be read are made readable: the
    script may have left them so, and they could be neither packed nor removed.
    """
    pending = [tree]
    while pending:
        path = pending.pop()
        try:
            info = path.lstat()
            if info.st_uid != uid and (since is None or info.st_ctime >= since):
                yield path
            if not stat.S_ISDIR(info.st_mode):
                continue
            if since is None and info.st_uid == uid and not os.access(path, os.R_OK | os.X_OK):
                path.chmod(stat.S_IMODE(info.st_mode) | stat.S_IRWXU)
            with os.scandir(path) as entries:
                pending.extend(Path(entry.path) for entry in entries)
        except FileNotFoundError:
            continue
        except PermissionError:
            if since is None and info.st_uid == uid:
                raise
            continue  # another's directory; it was yielded itself if it is new
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            # Deeper than a path may be long: what is above it was looked at, and `chown -R` gets there.


def _chown(daemon: Daemon, tree: Path, paths: list[Path], claim: Claim, owner: str) -> None:
    from docker.errors import APIError, ImageNotFound

    client = daemon.client
    # A rootless daemon's root is the user; there `chown 0:0` says the same.
    owner = "0:0" if daemon.rootless() else owner
    reason = "no local image was left to run it"
    for image in dict.fromkeys((*claim.images, *HELPERS)):
        with daemon.doing("give the job's files back to you"):
            try:
                body = _helper(daemon, image, tree, paths, owner)
                body["Labels"] = dict(claim.labels)
                helper = client.create_container_from_config(body)["Id"]
            except ImageNotFound:
                continue
            try:
                client.start(helper)
                code = client.wait(helper)["StatusCode"]
                if code == 0:
                    return
                reason = (
                    f"it ended with {code}: {client.logs(helper, tail=5).decode(errors='replace').strip()}"
                )
            except APIError as error:
                if status_of(error) >= 500:
                    raise
                reason = f"{image} has no `chown`"
            finally:
                client.remove_container(helper, force=True, v=True)
    names = " ".join(shlex.quote(str(path)) for path in paths[:5])
    raise EngineError(
        f"files that the job wrote still belong to root, since `chown` in a container failed ({reason}); "
        f"give them to yourself with `sudo chown -hR {owner} {names}`"
    )


def _helper(daemon: Daemon, image: str, tree: Path, paths: list[Path], owner: str) -> dict[str, Any]:
    """The create call's body for `chown`.

    Only `tree`, which the user named, is bound. A path that the job made may be a link to anywhere, and
    the daemon follows links when it binds; inside, `chown -h` and the container's own root hold it.
    """
    from docker.types import Mount

    client = daemon.client
    body: dict[str, Any] = client.create_container_config(
        image=image,
        entrypoint=["chown"],
        command=["-hR", owner, "--", *(str(Path("/harness") / path.relative_to(tree)) for path in paths)],
        user="0:0",
        host_config=client.create_host_config(
            network_mode="none",
            mounts=[Mount(target="/harness", source=str(tree), type="bind")],
            cap_drop=["ALL"],
            cap_add=["CHOWN", "DAC_OVERRIDE", "FOWNER"],
            security_opt=["label=disable"],
            # Where the daemon maps users, its root couldn't name this one.
            userns_mode=None if daemon.podman else "host",
            init=False,
        ),
    )
    return body

"""A launch in the daemon's words: what `POST /containers/create` is sent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from harness.errors import DiskError
from harness.model import HostLaunch, Mount

ML: Final = PurePosixPath("/opt/ml")

# Labels. Those with directories are on the network as well: it outlives a container that someone removes.
JOB: Final = "harness.job"
HOST: Final = "harness.host"
SCOPE: Final = "harness.scope"
"""Whose job: a hash of the state directory. Two of them may have jobs of one name on one daemon."""
SCRATCH: Final = "harness.scratch"
OWN: Final = "harness.own"
"""JSON list: directories of the job alone; everything in them is given to the user."""
SHARED: Final = "harness.shared"
"""JSON list: directories of the user that the container may write to; only what is new is given back."""
IMAGE: Final = "harness.image"
EVIDENCE: Final = "harness.evidence"
"""See `HostLaunch.evidence`."""
SINCE: Final = "harness.since"
"""Epoch seconds before which nothing of the job was written."""

LOG_SIZE: Final = "1000000g"
"""Where the daemon's log would be cut: never."""


def labels(launches: tuple[HostLaunch, ...], *, scope: str, since: float) -> dict[str, str]:
    """What a later process must know to clean up after these hosts."""
    own = {str(path) for launch in launches for path in own_directories(launch)}
    shared = {str(mount.source) for launch in launches for mount in launch.mounts if mount.mode == "rw"}
    return {
        JOB: launches[0].job_name,
        SCOPE: scope,
        OWN: json.dumps(sorted(own)),
        SHARED: json.dumps(sorted(shared)),
        IMAGE: launches[0].image or "",
        SINCE: repr(since),
    }


def own_directories(launch: HostLaunch) -> tuple[Path, ...]:
    """The directories that belong to this host alone."""
    overlays = (overlay_scratch(launch, mount) for mount in launch.mounts if mount.mode == "overlay")
    return (launch.ml, launch.scratch, *overlays)


def overlay_scratch(launch: HostLaunch, mount: Mount) -> Path:
    """Where what the host writes to an overlay goes."""
    return mount.scratch or launch.scratch / "overlay" / mount.target.name


def make_directories(launch: HostLaunch) -> None:
    """Everything that the container mounts or is mounted on, made by the user and so the user's.

    What isn't there the daemon would make, as root.

    Raises:
        DiskError: a directory can't be made.
    """
    try:
        launch.scratch.mkdir(parents=True, exist_ok=True)
        tmp = launch.scratch / "tmp"  # contract: B10
        tmp.mkdir(exist_ok=True)
        tmp.chmod(0o1777)
        (launch.ml / "code").mkdir(parents=True, exist_ok=True)
        for mount in launch.mounts:
            if mount.target.is_relative_to(ML):
                point = launch.ml / mount.target.relative_to(ML)
                if mount.source.is_dir():
                    point.mkdir(parents=True, exist_ok=True)
                elif not point.exists():
                    point.parent.mkdir(parents=True, exist_ok=True)
                    point.touch()
            if mount.mode == "overlay":
                scratch = overlay_scratch(launch, mount)
                for name in ("upper", "work"):  # an earlier attempt's writes are not this one's
                    if (scratch / name).exists():
                        shutil.rmtree(scratch / name)
                    (scratch / name).mkdir(parents=True)
    except OSError as error:
        raise DiskError(
            f"can't prepare the directories of {launch.host} ({error.strerror}: {error.filename}); "
            "free the disk or choose another HARNESS_HOME"
        ) from error


def container(
    client: Any,
    launch: HostLaunch,
    *,
    network: str,
    scope: str,
    since: float,
    overlays: bool,
    podman: bool,
) -> dict[str, Any]:
    """The create call's body. `overlays`: whether overlay mounts may be tried; else they are read-only."""
    from docker.types import DeviceRequest, LogConfig

    gpus = [
        DeviceRequest(driver="nvidia", device_ids=[gpu.uuid for gpu in launch.gpus], capabilities=[["gpu"]])
    ]
    # The log is how a later supervisor reads what this one missed: exact bytes, never cut. json-file
    # replaces what isn't UTF-8; Podman's k8s-file keeps it.
    log = (
        LogConfig(type="k8s-file")
        if podman
        else LogConfig(
            type="local",
            config={"max-size": LOG_SIZE, "max-file": "1", "compress": "false", "mode": "blocking"},
        )
    )
    host_config = client.create_host_config(
        network_mode=network,
        mounts=_mounts(launch, scope=scope, overlays=overlays),
        shm_size=launch.shm_bytes,
        mem_limit=launch.memory_bytes,
        memswap_limit=launch.memory_bytes,  # the same number: no swap on top
        device_requests=gpus if launch.gpus else None,
        log_config=log,
        restart_policy={"Name": "no"},
        init=False,  # PID 1 is the program (contract: A9, A10), also where the daemon's default is --init
        privileged=False,  # contract: A12
        security_opt=["label=disable"],  # SELinux would deny the binds; without it this does nothing
    )
    body: dict[str, Any] = client.create_container_config(
        image=launch.image,
        command=list(launch.command),
        entrypoint=list(launch.entrypoint) if launch.entrypoint is not None else None,
        hostname=launch.hostname,  # contract: A20
        environment=_environment(launch, client),
        labels={
            **labels((launch,), scope=scope, since=since),
            HOST: launch.host,
            SCRATCH: str(launch.scratch),
            **({EVIDENCE: str(launch.evidence)} if launch.evidence else {}),
        },
        host_config=host_config,
        networking_config=client.create_networking_config(
            {network: client.create_endpoint_config(aliases=[launch.host])}  # contract: H1
        ),
        stdin_open=False,
        tty=False,
    )
    return body


def _environment(launch: HostLaunch, client: Any) -> dict[str, str]:
    """The launch's variables. A host without GPUs says so: CUDA images ask the NVIDIA runtime for all of
    them, and where that runtime is the daemon's default they would get them (contract: A14)."""
    environment = dict(launch.environment)
    if not launch.gpus:
        environment.setdefault("NVIDIA_VISIBLE_DEVICES", "void")
    if launch.prepend:
        own = _image_environment(client, launch.image)
        for name, places in launch.prepend.items():
            rest = environment.get(name, own.get(name, ""))
            environment[name] = f"{places}:{rest}" if rest else places
    return environment


def _image_environment(client: Any, image: str | None) -> dict[str, str]:
    """ENV of the image; nothing when it isn't here, which creating the container will tell better."""
    from docker.errors import ImageNotFound

    try:
        words = client.inspect_image(image)["Config"].get("Env") or []
    except ImageNotFound:
        return {}
    return dict(word.split("=", 1) for word in words)


def _mounts(launch: HostLaunch, *, scope: str, overlays: bool) -> list[Any]:
    from docker.types import Mount as DockerMount

    # Volumes without a name go with their container, unless it is removed by someone who doesn't say so.
    volume = {JOB: launch.job_name, SCOPE: scope}
    mounts = [
        DockerMount(target=str(ML), source=str(launch.ml), type="bind"),
        DockerMount(target="/tmp", source=str(launch.scratch / "tmp"), type="bind"),
    ]
    if not any((launch.ml / "code").iterdir()):
        # An empty volume takes over what the image has there: code baked into /opt/ml/code is seen, all
        # else under /opt/ml is hidden (contract: A11).
        mounts.append(DockerMount(target=str(ML / "code"), source=None, type="volume", labels=volume))
    for mount in launch.mounts:
        if mount.mode == "overlay" and overlays:
            mounts.append(_overlay(launch, mount, volume))
        else:
            read_only = mount.mode != "rw"
            mounts.append(
                DockerMount(
                    target=str(mount.target), source=str(mount.source), type="bind", read_only=read_only
                )
            )
    return mounts


def _overlay(launch: HostLaunch, mount: Mount, labels: dict[str, str]) -> Any:
    """A volume that shows `source` and keeps the host's writes apart from it."""
    from docker.types import DriverConfig
    from docker.types import Mount as DockerMount

    scratch = overlay_scratch(launch, mount)
    options: Mapping[str, str] = {
        "type": "overlay",
        "device": "overlay",
        "o": f"lowerdir={_escape(mount.source, colon=True)},upperdir={_escape(scratch / 'upper')},"
        f"workdir={_escape(scratch / 'work')}",
    }
    return DockerMount(
        target=str(mount.target),
        source=None,
        type="volume",
        no_copy=True,
        labels=labels,
        driver_config=DriverConfig("local", dict(options)),
    )


def _escape(path: Path, *, colon: bool = False) -> str:
    r"""A path among overlayfs's options: `\`, `,` and in a list of layers `:` are the separators."""
    text = str(path).replace("\\", "\\\\").replace(",", "\\,")
    return text.replace(":", "\\:") if colon else text

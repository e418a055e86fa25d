"""Staging: from InputDataConfig to what each host finds at /opt/ml/input/data."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from harness.channels._data import Finder
from harness.channels._modes import (
    StagedChannel,
    stage_file_system,
    stage_files,
    stage_pipe,
    stage_view,
)
from harness.channels._pace import download_seconds, listing_seconds
from harness.channels._snapshots import Snapshots
from harness.errors import ClientError
from harness.model import JsonObject, LocalOptions, Upload
from harness.objects import ObjectStore, Progress, sort_hosts

__all__ = ["StagedChannel", "stage", "used"]

_HOMOGENEOUS: Final = "homogeneousCluster"
_USED: Final = "channels.json"
_STEP: Final = 0.1
_Shares = dict[str, StagedChannel]


def stage(
    request: JsonObject,
    uploads: Sequence[Upload],
    *,
    objects: ObjectStore,
    cache: Path,
    job_dir: Path,
    hosts: Sequence[str],
    local: LocalOptions,
    progress: Progress | None = None,
    region: str | None = None,
    groups: Mapping[str, str] | None = None,
    s3: Any = None,
) -> dict[str, tuple[StagedChannel, ...]]:
    """Each host's channels, in the request's order (contract: group E).

    An S3Uri is looked for in the uploads (a local path, mounted where it lies), then in the local object
    store (a snapshot of hard links in `cache`, taken again only when an object changed), then in real S3
    (downloaded into `cache`, an unchanged object once) if credentials are there and `local.offline` isn't
    set. `groups`: host → instance group, for InstanceGroupNames; a host outside a channel's groups doesn't
    get the channel (contract: E25). `s3`: a boto3 S3 client instead of the default one. `job_dir` remembers
    what the job mounts, for `used`.

    In Pipe mode nothing is staged: `StagedChannel.stream` says what a `Feeder` is to feed.

    Raises ClientError: nothing matches, a file can't be read, no space (contract: E7, E32), or a source
    or mode that doesn't run here.
    """
    began = time.monotonic()
    names = sort_hosts(hosts)
    finder = Finder(uploads=uploads, objects=objects, local=local, region=region, client=s3)
    snapshots = Snapshots(cache)
    staged: dict[str, list[StagedChannel]] = {name: [] for name in hosts}
    _refuse_clashes(request)
    for channel in request.get("InputDataConfig") or ():
        source = channel["DataSource"]
        wanted = (source.get("S3DataSource") or {}).get("InstanceGroupNames")
        members = [
            name for name in names if not wanted or (groups or {}).get(name, _HOMOGENEOUS) in wanted
        ]  # contract: E25
        mode = _mode(request, channel)
        if (file_system := source.get("FileSystemDataSource")) is not None:
            one = stage_file_system(channel, file_system, mode, local)
            shares = dict.fromkeys(members, one)
        elif (s3_source := source.get("S3DataSource")) is not None:
            shares = _s3(channel, s3_source, mode, members, finder, snapshots, progress)
        else:
            kinds = ", ".join(source) or "nothing"
            raise ClientError(  # contract: E28
                f"channel {channel['ChannelName']} has {kinds} as its DataSource, which doesn't run here: "
                "use S3DataSource or FileSystemDataSource"
            )
        for name, one in shares.items():
            staged[name].append(one)
    _fit(request, staged)
    _remember(job_dir, staged)
    _pace(local, staged, began, progress)
    return {name: tuple(channels) for name, channels in staged.items()}


def used(job_dir: Path) -> tuple[Path, ...]:
    """What the job of that directory mounts: `collect(…, keep=…)` leaves it alone."""
    try:
        return tuple(Path(path) for path in json.loads((job_dir / _USED).read_text()))
    except FileNotFoundError:
        return ()


def _remember(job_dir: Path, staged: Mapping[str, Sequence[StagedChannel]]) -> None:
    sources = sorted(
        {str(share.mount.source) for shares in staged.values() for share in shares if share.mount is not None}
    )
    job_dir.mkdir(parents=True, exist_ok=True)
    (job_dir / _USED).write_text(json.dumps(sources))


def _mode(request: JsonObject, channel: JsonObject) -> str:
    """contract: E1"""
    mode: str = channel.get("InputMode") or request["AlgorithmSpecification"]["TrainingInputMode"]
    return mode


def _refuse_clashes(request: JsonObject) -> None:
    """A directory can't have the name of another channel's FIFO (contract: E11)."""
    channels = request.get("InputDataConfig") or ()
    piped = {channel["ChannelName"] for channel in channels if _mode(request, channel) == "Pipe"}
    for channel in channels:
        name = channel["ChannelName"]
        other, _, number = name.rpartition("_")
        if name not in piped and other in piped and number.isdecimal():
            raise ClientError(
                f"the channel {name} can't be a directory: the Pipe channel {other} has its FIFO for epoch {number} "
                "there; give one of them another ChannelName"
            )


def _s3(
    channel: JsonObject,
    source: JsonObject,
    mode: str,
    members: Sequence[str],
    finder: Finder,
    snapshots: Snapshots,
    progress: Progress | None,
) -> _Shares:
    _check(channel, source, mode)
    if mode == "Pipe":
        return stage_pipe(channel, source, members, finder)
    seen = stage_view(channel, source, members, finder) if mode == "FastFile" else None
    return seen or stage_files(channel, source, mode, members, finder, snapshots, progress)


def _check(channel: JsonObject, source: JsonObject, mode: str) -> None:
    """What AWS refuses, for who comes without its validator."""
    name, kind = channel["ChannelName"], source["S3DataType"]
    if kind not in ("S3Prefix", "ManifestFile", "AugmentedManifestFile"):  # contract: E28
        raise ClientError(f"channel {name} has S3DataType {kind}, which doesn't run here: use S3Prefix")
    if mode == "FastFile" and kind != "S3Prefix":  # contract: E8
        raise ClientError(f"channel {name}: FastFile mode takes S3Prefix only, not {kind}")
    if kind == "AugmentedManifestFile" and mode != "Pipe":  # contract: E20
        raise ClientError(f"channel {name}: an AugmentedManifestFile comes in Pipe mode only, not {mode}")
    if kind == "AugmentedManifestFile" and not source.get("AttributeNames"):  # contract: E21
        raise ClientError(
            f"channel {name}: AttributeNames must say what of the AugmentedManifestFile to stream"
        )


def _fit(request: JsonObject, staged: Mapping[str, Sequence[StagedChannel]]) -> None:
    """File mode's data must fit on the volume that the request asks for (contract: E3, E32)."""
    asked = (request.get("ResourceConfig") or {}).get("VolumeSizeInGB")
    if not asked:
        return
    for host, channels in staged.items():
        # A file system isn't on the volume, nor what comes by FastFile or Pipe (contract: E29).
        need = sum(channel.size for channel in channels if channel.mode == "File")
        if need > asked << 30 and not _local_disks(request):
            raise ClientError(
                f"Data download failed:Insufficient disk space ({host} gets {need / (1 << 30):.1f} GiB in File mode, "
                f"and VolumeSizeInGB is {asked}: ask for a larger volume, or use FastFile)"
            )


def _pace(
    local: LocalOptions,
    staged: Mapping[str, Sequence[StagedChannel]],
    began: float,
    progress: Progress | None,
) -> None:
    """Wait until listings and downloads at `local`'s pace would be through: hosts get theirs side by side."""
    seconds, total = 0.0, 0
    for channels in staged.values():
        files = [channel for channel in channels if channel.mode == "File" and channel.distribution]
        size = sum(channel.size for channel in files)
        listings = sum(listing_seconds(local, channel.files) for channel in channels)
        loading = download_seconds(local, sum(channel.files for channel in files), size)
        seconds, total = max(seconds, listings + loading), max(total, size)
    while (left := began + seconds - time.monotonic()) > 0:
        if progress is not None:
            progress(int(total * (1 - left / seconds)), total, "downloading at the pace of [local] s3_…")
        time.sleep(min(left, _STEP))


def _local_disks(request: JsonObject) -> bool:
    """Whether the data may lie on disks of the instance, whose size VolumeSizeInGB doesn't tell (contract: B11)."""
    from harness import instances

    resources = request["ResourceConfig"]
    groups = [
        resources,
        *(resources.get("InstanceGroups") or ()),
        *(resources.get("InstancePreferences") or ()),
    ]
    return any(
        instances.lookup(group["InstanceType"]).nvme != 0 for group in groups if "InstanceType" in group
    )

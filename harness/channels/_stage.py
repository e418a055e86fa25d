"""Staging: from InputDataConfig to what each host mounts at /opt/ml/input/data/<channel>."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from harness._values import dataclass
from harness.channels._data import Data, Finder
from harness.channels._filesystems import find_file_system
from harness.channels._items import Item
from harness.channels._pace import download_seconds
from harness.channels._snapshots import Snapshots
from harness.channels._streams import Source, Stream, share
from harness.errors import ClientError
from harness.model import JsonObject, LocalOptions, Mount, Upload
from harness.objects import ObjectStore, Progress, sort_hosts

__all__ = ["StagedChannel", "stage", "used"]

_DATA: Final = PurePosixPath("/opt/ml/input/data")
_HOMOGENEOUS: Final = "homogeneousCluster"
_USED: Final = "channels.json"
_STEP: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class StagedChannel:
    """One channel as one host gets it."""

    name: str
    mode: str
    """The effective input mode: File, FastFile or Pipe (contract: C18)."""
    mount: Mount | None
    """None in Pipe mode: there is no directory (contract: E11)."""
    files: int
    """Objects that this host sees; 0 for a file system, whose files nobody counts."""
    size: int
    """Their bytes."""
    reused: bool
    """Nothing was copied, linked or downloaded for it."""
    manifest: bytes | None
    """Content of `<channel>-manifest` (contract: B7); None for a file system."""
    distribution: str | None
    """S3DataDistributionType; None for a file system (contract: C19)."""
    content_type: str | None = None
    record_wrapper: str | None = None
    warnings: tuple[str, ...] = ()
    """What the user should know, one sentence each."""
    stream: Stream | None = None
    """What `Feeder` is to feed into the channel's FIFOs, in Pipe mode."""


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
    for channel in request.get("InputDataConfig") or ():
        source = channel["DataSource"]
        wanted = (source.get("S3DataSource") or {}).get("InstanceGroupNames")
        members = [
            name for name in names if not wanted or (groups or {}).get(name, _HOMOGENEOUS) in wanted
        ]  # contract: E25
        mode = channel.get("InputMode") or request["AlgorithmSpecification"]["TrainingInputMode"]
        if (file_system := source.get("FileSystemDataSource")) is not None:
            one = _file_system(channel, file_system, mode, local)
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


def _file_system(channel: JsonObject, source: JsonObject, mode: str, local: LocalOptions) -> StagedChannel:
    name = channel["ChannelName"]
    if mode != "File":  # contract: E4
        raise ClientError(
            f"channel {name} is a file system, which SageMaker gives in File mode only, not {mode}"
        )
    access: Literal["ro", "rw"] = "rw" if source.get("FileSystemAccessMode", "ro") == "rw" else "ro"
    return StagedChannel(
        name=name,
        mode=mode,
        mount=Mount(source=find_file_system(name, source, local), target=_DATA / name, mode=access),
        files=0,
        size=0,
        reused=True,
        manifest=None,
        distribution=None,
        content_type=channel.get("ContentType"),
        record_wrapper=channel.get("RecordWrapperType"),
    )


def _s3(
    channel: JsonObject,
    source: JsonObject,
    mode: str,
    members: Sequence[str],
    finder: Finder,
    snapshots: Snapshots,
    progress: Progress | None,
) -> dict[str, StagedChannel]:
    name = channel["ChannelName"]
    kind = source["S3DataType"]
    _possible(name, mode, kind)
    if mode == "Pipe":
        return _pipe(channel, source, members, finder)
    find = finder.manifest if kind == "ManifestFile" else finder.prefix
    data = find(source["S3Uri"], name, fast=mode == "FastFile")
    ordered = sorted(data.items, key=lambda item: item.key) if kind == "ManifestFile" else data.items
    distribution = source.get("S3DataDistributionType") or "FullyReplicated"
    sharded = distribution == "ShardedByS3Key" and len(members) > 1
    seed = _seed(channel)
    whole = data.directory or (data.stored if mode == "FastFile" else None)  # contract: E10
    warnings_of_mode = data.warnings
    if mode == "FastFile" and any(item.remote is not None for item in data.items):
        warnings_of_mode += (
            f"channel {name}: FastFile is not lazy here for objects of Amazon S3: they were all downloaded "
            "before the start",
        )
    shares: dict[str, StagedChannel] = {}
    for index, host in enumerate(members):
        if shares and not sharded:  # contract: E22
            shares[host] = shares[members[0]]
            continue
        items = _shard(ordered, index, len(members), seed) if sharded else ordered
        warnings = warnings_of_mode
        if sharded and not items:
            warnings += (_too_few(name, host),)
        if whole is not None and not sharded:
            place, reused = whole, True
        else:
            snapshot = snapshots.get(items, channel=name, remote=finder.remote, progress=progress)
            place, reused = snapshot.path, snapshot.reused
        shares[host] = StagedChannel(
            name=name,
            mode=mode,
            mount=Mount(
                source=place,
                target=_DATA / name,
                mode="ro" if mode == "FastFile" else "overlay",  # contract: B16
            ),
            files=sum(not item.name.endswith("/") for item in items),
            size=sum(item.size for item in items),
            reused=reused,
            manifest=_manifest(data, items),
            distribution=distribution,
            content_type=channel.get("ContentType"),
            record_wrapper=channel.get("RecordWrapperType"),
            warnings=warnings,
        )
    return shares


def _pipe(
    channel: JsonObject, source: JsonObject, members: Sequence[str], finder: Finder
) -> dict[str, StagedChannel]:
    """A channel whose objects go through FIFOs; nothing of it is on the volume (contract: E11, E29)."""
    name = channel["ChannelName"]
    kind = source["S3DataType"]
    attributes = tuple(source.get("AttributeNames") or ()) if kind == "AugmentedManifestFile" else ()
    wrapper = channel.get("RecordWrapperType")
    if kind == "AugmentedManifestFile":
        data = finder.single(source["S3Uri"], name)
        if not attributes:
            raise ClientError(
                f"channel {name} is an AugmentedManifestFile: say in AttributeNames what to stream"
            )
    else:
        find = finder.manifest if kind == "ManifestFile" else finder.prefix
        data = find(source["S3Uri"], name, fast=False)
    objects = [item for item in data.items if not item.name.endswith("/")]  # a marker has no content
    distribution = source.get("S3DataDistributionType") or "FullyReplicated"
    stream = Stream(
        channel=name,
        hosts=tuple(members),
        sharded=distribution == "ShardedByS3Key" and len(members) > 1,
        seed=_seed(channel),
        gzip=channel.get("CompressionType") == "Gzip",
        recordio=wrapper == "RecordIO",
        sources=[Source.of(item, data.bucket) for item in objects],
        attributes=attributes,
    )
    shares = {}
    for host in members:
        mine = objects if attributes else [objects[n] for n in share(stream, host, 0, len(objects))]
        shares[host] = StagedChannel(
            name=name,
            mode="Pipe",
            mount=None,
            files=len(mine),
            size=sum(item.size for item in mine),
            reused=True,
            manifest=None,  # contract: B7 leaves it open
            distribution=distribution,
            content_type=channel.get("ContentType"),
            record_wrapper=wrapper,
            warnings=data.warnings if mine else (*data.warnings, _too_few(name, host)),
            stream=stream,
        )
    return shares


def _possible(name: str, mode: str, kind: str) -> None:
    if kind == "AugmentedManifestFile":
        if mode != "Pipe":  # contract: E20
            raise ClientError(f"channel {name}: an AugmentedManifestFile comes in Pipe mode only, not {mode}")
        return
    if kind not in ("S3Prefix", "ManifestFile"):  # contract: E28
        raise ClientError(f"channel {name} has S3DataType {kind}, which doesn't run here: use S3Prefix")
    if mode == "FastFile" and kind != "S3Prefix":  # contract: E8
        raise ClientError(f"channel {name}: FastFile mode takes S3Prefix only, not {kind}")


def _seed(channel: JsonObject) -> int | None:
    seed: int | None = (channel.get("ShuffleConfig") or {}).get("Seed")
    return seed


def _too_few(channel: str, host: str) -> str:
    return f"channel {channel}: {host} gets no object, there are fewer objects than hosts (contract E23)"


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
    """Wait until a download at `local`'s pace would be through: hosts download side by side."""
    loads = {
        host: [channel for channel in channels if channel.mode == "File" and channel.manifest is not None]
        for host, channels in staged.items()
    }
    slowest = max(
        (
            download_seconds(local, sum(c.files for c in channels), sum(c.size for c in channels))
            for channels in loads.values()
        ),
        default=0.0,
    )
    total = max((sum(channel.size for channel in channels) for channels in loads.values()), default=0)
    while (left := began + slowest - time.monotonic()) > 0:
        if progress is not None:
            progress(int(total * (1 - left / slowest)), total, "downloading at the pace of [local] s3_…")
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


def _shard(items: Sequence[Item], index: int, hosts: int, seed: int | None) -> Sequence[Item]:
    """This host's share: round-robin over the keys, shuffled first when a seed is given.

    # contract: E23, E24
    """
    if seed is None:
        return items[index::hosts]
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return sorted(shuffled[index::hosts], key=lambda item: item.key)


def _manifest(data: Data, items: Sequence[Item]) -> bytes:
    """The objects of this host, in ManifestFile's form (contract: B7, E18)."""
    cut = len(data.base)
    rows: list[Any] = [{"prefix": f"s3://{data.bucket}/{data.base}"}]
    rows += [item.key[cut:] for item in items]
    return json.dumps(rows).encode()

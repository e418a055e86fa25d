"""One channel in its input mode, as each of its hosts gets it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from harness._values import dataclass
from harness.channels._augmented import check
from harness.channels._data import Finder
from harness.channels._filesystems import find_file_system
from harness.channels._items import Item
from harness.channels._snapshots import Snapshots
from harness.channels._streams import Source, Stream, share
from harness.errors import ClientError
from harness.model import JsonObject, LocalOptions, Mount
from harness.objects import Progress

__all__ = ["StagedChannel", "stage_file_system", "stage_files", "stage_pipe", "stage_view"]

_DATA: Final = PurePosixPath("/opt/ml/input/data")
_Access = Literal["ro", "rw", "overlay"]


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
    """Their bytes; 0 where nobody looks at the files, in a file system and in a FastFile channel mounted as it is."""
    reused: bool
    """Nothing was copied, linked or downloaded for it."""
    manifest: bytes | None
    """Content of `<channel>-manifest` (contract: B7); None for a file system and for a Pipe channel."""
    distribution: str | None
    """S3DataDistributionType; None for a file system (contract: C19)."""
    content_type: str | None = None
    record_wrapper: str | None = None
    warnings: tuple[str, ...] = ()
    """What the user should know, one sentence each."""
    stream: Stream | None = None
    """In Pipe mode: what `Feeder` is to feed into the channel's FIFOs."""


def stage_file_system(
    channel: JsonObject, source: JsonObject, mode: str, local: LocalOptions
) -> StagedChannel:
    """A file system's directory (contract: B17, E4, E26)."""
    name = channel["ChannelName"]
    if mode != "File":  # contract: E4
        raise ClientError(
            f"channel {name} is a file system, which SageMaker gives in File mode only, not {mode}"
        )
    access: _Access = "rw" if source.get("FileSystemAccessMode", "ro") == "rw" else "ro"
    return StagedChannel(
        **_told(channel, mode),
        mount=_mount(name, find_file_system(name, source, local), access),
        files=0,
        size=0,
        reused=True,
        manifest=None,
        distribution=None,
    )


def stage_view(
    channel: JsonObject, source: JsonObject, members: Sequence[str], finder: Finder
) -> dict[str, StagedChannel] | None:
    """FastFile as it is in the cloud: nothing is done for any object (contract: E8, E10). None where that can't be:
    the hosts see different objects, or no directory of this machine has just these."""
    if _sharded(source, members):
        return None
    name = channel["ChannelName"]
    view = finder.view(source["S3Uri"], name)
    if view is None:
        return None
    one = StagedChannel(
        **_told(channel, "FastFile"),
        mount=_mount(name, view.directory, "ro"),  # contract: B16
        files=len(view.names),
        size=0,
        reused=True,
        manifest=_manifest(view.bucket, view.base, view.names),
        distribution=_distribution(source),
        warnings=view.warnings,
    )
    return dict.fromkeys(members, one)  # contract: E22


def stage_files(
    channel: JsonObject,
    source: JsonObject,
    mode: str,
    members: Sequence[str],
    finder: Finder,
    snapshots: Snapshots,
    progress: Progress | None,
) -> dict[str, StagedChannel]:
    """File mode (contract: E3), and FastFile where `stage_view` can't: a directory of complete files."""
    name = channel["ChannelName"]
    find = finder.manifest if source["S3DataType"] == "ManifestFile" else finder.prefix
    data = find(source["S3Uri"], name, fast=mode == "FastFile")
    ordered = sorted(data.items, key=lambda item: item.key)
    sharded = _sharded(source, members)
    common = data.warnings
    if mode == "FastFile" and any(item.remote is not None for item in ordered):
        common += (
            f"channel {name}: objects of Amazon S3 were downloaded before the start, "
            "though in the cloud FastFile gets them when they are read",
        )
    shares: dict[str, StagedChannel] = {}
    for index, host in enumerate(members):
        if shares and not sharded:  # contract: E22
            shares[host] = shares[members[0]]
            continue
        items = _shard(ordered, index, len(members), _seed(channel)) if sharded else ordered
        if data.directory is not None and not sharded:
            place, reused = data.directory, True
        else:
            snapshot = snapshots.get(items, channel=name, remote=finder.remote, progress=progress)
            place, reused = snapshot.path, snapshot.reused
        shares[host] = StagedChannel(
            **_told(channel, mode),
            mount=_mount(name, place, "ro" if mode == "FastFile" else "overlay"),  # contract: B16
            files=sum(not item.name.endswith("/") for item in items),
            size=sum(item.size for item in items),
            reused=reused,
            manifest=_manifest(data.bucket, data.base, [item.key[len(data.base) :] for item in items]),
            distribution=_distribution(source),
            warnings=common if items else (*common, _too_few(name, host)),
        )
    return shares


def stage_pipe(
    channel: JsonObject, source: JsonObject, members: Sequence[str], finder: Finder
) -> dict[str, StagedChannel]:
    """A channel whose objects go through FIFOs; nothing of it is on the volume (contract: E11, E29)."""
    name = channel["ChannelName"]
    attributes: tuple[str, ...] = ()
    if source["S3DataType"] == "AugmentedManifestFile":
        data = finder.augmented(source["S3Uri"], name)
        attributes = tuple(source["AttributeNames"])  # contract: E21
        for item in data.items:
            if item.location is not None:
                with open(item.location, "rb") as file:  # noqa: PTH123
                    check(file, attributes, source["S3Uri"], name)
    else:
        find = finder.manifest if source["S3DataType"] == "ManifestFile" else finder.prefix
        data = find(source["S3Uri"], name, fast=False)
    objects = [item for item in data.items if not item.name.endswith("/")]  # a marker has no content
    stream = Stream(
        channel=name,
        hosts=tuple(members),
        sharded=_sharded(source, members),
        seed=_seed(channel),
        gzip=channel.get("CompressionType") == "Gzip",  # contract: E17
        recordio=channel.get("RecordWrapperType") == "RecordIO",  # contract: E15
        sources=[Source.of(item, data.bucket) for item in objects],
        attributes=attributes,
    )
    shares = {}
    for host in members:
        mine = objects if attributes else [objects[n] for n in share(stream, host, 0, len(objects))]
        shares[host] = StagedChannel(
            **_told(channel, "Pipe"),
            mount=None,
            files=len(mine),
            size=sum(item.size for item in mine),
            reused=True,
            manifest=None,
            distribution=_distribution(source),
            warnings=data.warnings if mine else (*data.warnings, _too_few(name, host)),
            stream=stream,
        )
    return shares


def _told(channel: JsonObject, mode: str) -> dict[str, Any]:
    return {
        "name": channel["ChannelName"],
        "mode": mode,
        "content_type": channel.get("ContentType"),
        "record_wrapper": channel.get("RecordWrapperType"),
    }


def _mount(name: str, place: Path, access: _Access) -> Mount:
    return Mount(source=place, target=_DATA / name, mode=access)


def _distribution(source: Mapping[str, Any]) -> str:
    return source.get("S3DataDistributionType") or "FullyReplicated"


def _sharded(source: Mapping[str, Any], members: Sequence[str]) -> bool:
    return _distribution(source) == "ShardedByS3Key" and len(members) > 1


def _seed(channel: JsonObject) -> int | None:
    seed: int | None = (channel.get("ShuffleConfig") or {}).get("Seed")
    return seed


def _shard(items: Sequence[Item], index: int, hosts: int, seed: int | None) -> Sequence[Item]:
    """This host's share: round-robin over the keys, shuffled first when a seed is given.

    # contract: E23, E24
    """
    if seed is None:
        return items[index::hosts]
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    return sorted(shuffled[index::hosts], key=lambda item: item.key)


def _too_few(channel: str, host: str) -> str:
    return f"channel {channel}: {host} gets no object, there are fewer objects than hosts (contract E23)"


def _manifest(bucket: str, base: str, suffixes: Sequence[str]) -> bytes:
    """The objects of this host, in ManifestFile's form (contract: B7, E18)."""
    rows: list[Any] = [{"prefix": f"s3://{bucket}/{base}"}, *suffixes]
    return json.dumps(rows).encode()

"""Finding a channel's objects: an upload's local path, the local object store, real S3, in this order."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness._values import dataclass
from harness.channels._items import Item, names_below, read_tree
from harness.channels._remote import RemoteObject, RemoteS3, open_remote
from harness.errors import ClientError
from harness.model import LocalOptions, Upload
from harness.objects import ObjectInfo, ObjectStore, all_plain, local_name, parse_uri, refuse_local_name

__all__ = ["Data", "Finder", "View"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """The objects of a channel, in key order."""

    bucket: str
    base: str
    """What all keys begin with: the manifest's prefix."""
    items: Sequence[Item]
    """In key order; those of a manifest as it lists them."""
    directory: Path | None = None
    """A directory of the user's that holds exactly these, to be mounted where it lies."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class View:
    """The objects of a channel as one directory of this machine."""

    bucket: str
    base: str
    """What all keys begin with."""
    names: Sequence[str]
    """Of the objects below the directory, in key order."""
    directory: Path
    warnings: tuple[str, ...] = ()


class Finder:
    """Where the S3 URIs of one job lead on this machine."""

    def __init__(
        self,
        *,
        uploads: Sequence[Upload],
        objects: ObjectStore,
        local: LocalOptions,
        region: str | None,
        client: Any,
    ) -> None:
        self._uploads = {
            upload.uri.rstrip("/"): upload.path for upload in uploads if upload.kind == "channel"
        }
        self._objects = objects
        self._local = local
        self._region = region
        self._client = client
        self._opened: RemoteS3 | str | None = None

    @property
    def remote(self) -> RemoteS3 | None:
        """Real S3 when it may be asked; opened at the first need, since that looks for credentials."""
        opened = self._open()
        return opened if isinstance(opened, RemoteS3) else None

    def prefix(self, uri: str, channel: str, *, fast: bool) -> Data:
        """S3Prefix: all objects whose key begins with the URI's (contract: E5)."""
        path = self._uploads.get(uri.rstrip("/"))
        if path is not None:
            return self._upload(uri, path.absolute(), channel)
        bucket, prefix = parse_uri(uri)
        if fast and prefix and not prefix.endswith("/"):
            prefix += "/"  # contract: E9
        found: Sequence[ObjectInfo | RemoteObject] = list(self._objects.list(f"s3://{bucket}/{prefix}"))
        if not found and self.remote is not None:
            found = self.remote.list(bucket, prefix)
        if not found:
            raise self._nothing(uri, channel, folder=fast)
        folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        siblings = [one.key for one in found if not one.key.startswith(folder)]
        items = _items(found, prefix if siblings else folder, channel)
        base = prefix[: prefix.rfind("/") + 1] if siblings else folder
        warnings: tuple[str, ...] = ()
        if siblings and len(siblings) < len(found):  # contract: E5
            found_more = (
                f"channel {channel}: {uri} is a string prefix and matches {len(siblings)} objects outside of "
                f"the folder {folder}, {siblings[0]} for one; end it with a slash if you don't want them"
            )
            warnings = (found_more,)
        return Data(bucket=bucket, base=base, items=items, warnings=warnings)

    def view(self, uri: str, channel: str) -> View | None:
        """S3Prefix in FastFile mode: the directory that holds what `prefix` would find, no file of it looked at.

        None when no directory does, or nothing is in it. contract: E8, E10
        """
        bucket, prefix = parse_uri(uri.rstrip("/") + "/")
        place = self._uploads.get(uri.rstrip("/"))
        if place is None:
            directory = self._objects.directory(f"s3://{bucket}/{prefix}")
        else:
            directory = place.absolute() if place.is_dir() else None
        found = None if directory is None else names_below(directory, channel)
        if directory is None or found is None:
            return None
        if place is None and directory.stat().st_mode & 0o555 != 0o555:
            return None  # made under a umask that hides it from a host's ordinary user (contract: B6)
        names, warnings = found
        if not names or (place is None and not all_plain(names)):
            return None
        return View(bucket=bucket, base=prefix, names=names, directory=directory, warnings=warnings)

    def manifest(self, uri: str, channel: str, *, fast: bool) -> Data:
        """ManifestFile: the objects that a JSON array names, at `<channel>/<suffix>` (contract: E18, E19)."""
        del fast  # refused before
        start, suffixes = _read_manifest(self._manifest_bytes(uri, channel), uri, channel)
        bucket, base = parse_uri(start)
        items = []
        for suffix in dict.fromkeys(suffixes):
            key = base + suffix
            found = self._head(bucket, key)
            if found is None:
                raise self._nothing(f"s3://{bucket}/{key}", channel, listed=uri)
            item = _item(found, suffix, channel)
            if item is not None:
                items.append(item)
        return Data(bucket=bucket, base=base, items=items)

    def augmented(self, uri: str, channel: str) -> Data:
        """AugmentedManifestFile: the one object of JSON lines (contract: E20)."""
        item = self.object(uri)
        if item is None:
            raise self._nothing(uri, channel)
        bucket, key = parse_uri(uri)
        return Data(bucket=bucket, base=key[: len(key) - len(item.name)], items=[item])

    def object(self, uri: str) -> Item | None:
        """The one object of that URI, wherever it is; None when there is none. Raises ClientError."""
        bucket, key = parse_uri(uri)
        for place, path in self._uploads.items():
            below = (
                path
                if uri == place
                else path / uri[len(place) + 1 :]
                if uri.startswith(f"{place}/")
                else None
            )
            if below is not None and key and below.is_file():
                return _file_item(below, key)
        found = self._head(bucket, key) if key and not key.endswith("/") else None
        return None if found is None else _bare(found, key.rpartition("/")[2])

    # ------------------------------------------------------------------------- parts

    def _open(self) -> RemoteS3 | str:
        if self._opened is None:
            self._opened = open_remote(self._local, self._region, self._client)
        return self._opened

    def _head(self, bucket: str, key: str) -> ObjectInfo | RemoteObject | None:
        found = self._objects.head(f"s3://{bucket}/{key}")
        if found is None and self.remote is not None:
            return self.remote.head(bucket, key)
        return found

    def _upload(self, uri: str, path: Path, channel: str) -> Data:
        bucket, prefix = parse_uri(uri.rstrip("/") + "/")
        if path.is_dir():
            tree = read_tree(path, channel)
            if not tree.items:
                raise self._nothing(str(path), channel)
            items = [
                Item(prefix + item.key, item.name, item.size, item.identity, item.location)
                for item in tree.items
            ]
            return Data(
                bucket=bucket,
                base=prefix,
                items=items,
                directory=path if tree.mountable else None,
                warnings=tree.warnings,
            )
        if not path.is_file():
            raise ClientError(
                f"Data download failed: channel {channel} can't read {path} "
                f"({'no file or directory' if path.exists() else 'it does not exist'})"
            )
        if not os.access(path, os.R_OK):
            raise ClientError(
                f"Data download failed: channel {channel} can't read {path} (permission denied)"
            )
        if prefix.endswith(f"/{path.name}/"):  # the URI names the file itself
            prefix = prefix[: -len(path.name) - 1]
        return Data(bucket=bucket, base=prefix, items=[_file_item(path, prefix + path.name)])

    def _manifest_bytes(self, uri: str, channel: str) -> bytes:
        path = self._uploads.get(uri.rstrip("/"))
        if path is not None:
            try:
                return path.read_bytes()
            except OSError as error:
                raise ClientError(
                    f"Data download failed: channel {channel} can't read {path} ({error.strerror})"
                ) from error
        bucket, key = parse_uri(uri)
        info = self._objects.head(uri) if key else None
        if info is not None:
            return info.path.read_bytes()
        if key and self.remote is not None and (found := self.remote.head(bucket, key)) is not None:
            return self.remote.read(found)
        raise self._nothing(uri, channel)

    def _nothing(
        self, uri: str, channel: str, *, folder: bool = False, listed: str | None = None
    ) -> ClientError:
        """SageMaker's words for a prefix that matches nothing (contract: E7), and where it was looked for."""
        opened = self._open()
        other = "Amazon S3" if isinstance(opened, RemoteS3) else ""
        reason = "" if isinstance(opened, RemoteS3) else f" ({opened})"
        where = " or ".join(filter(None, (f"the local object store {self._objects.root}", other)))
        via = f", which the manifest {listed} names" if listed else ""
        hint = " FastFile mode takes whole folders only, ending with a slash (contract E9)." if folder else ""
        if not uri.startswith(("s3://", "https://")):
            return ClientError(f"Data download failed: channel {channel} finds no file in {uri}; it is empty")
        return ClientError(
            f'Data download failed: No S3 objects found under S3 URL "{uri}" given in input data source of '
            f"channel {channel}{via}. Please ensure that objects exist under that S3 prefix in {where}"
            f"{reason}.{hint}"
        )


def _items(found: Sequence[ObjectInfo | RemoteObject], prefix: str, channel: str) -> list[Item]:
    """The objects of a prefix as files of the channel."""
    if prefix.endswith("/"):
        cut = len(prefix)
        names = [one.key[cut:] for one in found]
        if all_plain(names):  # nearly always, and 50,000 objects are 50,000 questions less
            return [
                Item(one.key, name, one.size, one.identity, one.location)
                if isinstance(one, ObjectInfo)
                else Item(one.key, name, one.size, one.identity, None, one)
                for one, name in zip(found, names, strict=True)
            ]
    items = (_item(one, local_name(prefix, one.key), channel) for one in found)
    return [item for item in items if item is not None]


def _item(found: ObjectInfo | RemoteObject, name: str, channel: str) -> Item | None:
    """The object as a file of the channel; None for the marker of the channel's own folder."""
    place = f"/opt/ml/input/data/{channel}"
    if not name or name.endswith("/"):  # contract: E7
        if found.size:
            refuse_local_name(name, found.uri, place)
        if not name:
            return None
        refuse_local_name(name[:-1], found.uri, place)
    else:
        refuse_local_name(name, found.uri, place)
    return _bare(found, name)


def _bare(found: ObjectInfo | RemoteObject, name: str) -> Item:
    if isinstance(found, ObjectInfo):
        return Item(found.key, name, found.size, found.identity, found.location)
    return Item(found.key, name, found.size, found.identity, None, found)


def _file_item(path: Path, key: str) -> Item:
    status = path.stat()
    identity = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}:{status.st_dev}"
    return Item(key, path.name, status.st_size, identity, os.path.realpath(path))


def _read_manifest(data: bytes, uri: str, channel: str) -> tuple[str, list[str]]:
    """The prefix and the suffixes; ClientError unless the form is that of contract E18."""
    try:
        rows = json.loads(data)
    except ValueError as error:
        raise ClientError(
            f"Data download failed: the manifest {uri} of channel {channel} is no JSON ({error})"
        ) from error
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        start = rows[0].get("prefix")
        suffixes = rows[1:]
        if isinstance(start, str) and suffixes and all(isinstance(one, str) and one for one in suffixes):
            return start, suffixes
    raise ClientError(
        f"Data download failed: the manifest {uri} of channel {channel} must be a JSON array: first "
        '{"prefix": "s3://bucket/some/prefix/"}, then one string per object, its key after the prefix'
    )

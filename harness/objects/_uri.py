"""S3 URIs and keys, and which keys can be files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from harness.errors import ClientError

__all__ = [
    "all_plain",
    "check_bucket",
    "check_key",
    "is_plain",
    "local_name",
    "parse_uri",
    "refuse_local_name",
]

_URI: Final = re.compile(r"s3://([^/]+)/?(.*)", re.DOTALL)
_PATH_STYLE: Final = re.compile(r"https://s3[.-][^/]*amazonaws\.com[^/]*/([^/]+)/?(.*)", re.DOTALL)
_HOST_STYLE: Final = re.compile(r"https://([^/]+?)\.s3[.-][^/]*amazonaws\.com[^/]*/?(.*)", re.DOTALL)
_ODD_AMONG: Final = re.compile(r"(?:^|[/\0])\.{0,2}(?:[/\0]|$)|[^/\0]{64}")
"""The same for many names with NULs between, and a segment that may be too long."""
_ODD_SEGMENT: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|\0")
"""An empty segment, `.`, `..`, or a NUL: names that no file system keeps as they are."""
KEY_LIMIT: Final = 1024
"""Bytes of UTF-8 in a key, S3's own limit."""
SEGMENT_LIMIT: Final = 255
"""Bytes in one file name on Linux."""
RESERVED: Final = ".harness-tmp."
"""Files whose name begins so are being written; they are no objects."""


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and key (or key prefix, perhaps empty) of `s3://…`, or of S3's own https URLs.

    Raises ClientError when it is neither (contract: E30).
    """
    for pattern in (_URI, _PATH_STYLE, _HOST_STYLE):
        if match := pattern.fullmatch(uri):
            bucket, key = match.groups()
            check_bucket(bucket, uri)
            return bucket, key
    raise ClientError(f"{uri!r} is no S3 URI: write s3://bucket/key")


def check_bucket(bucket: str, uri: str) -> None:
    """Raise ClientError for a bucket that can't be a directory of the store."""
    if bucket.startswith(".") or "\0" in bucket or len(_bytes(bucket)) > SEGMENT_LIMIT:
        raise ClientError(f"{bucket!r} in {uri!r} can't be a bucket: S3's names begin with a letter or digit")


def check_key(key: str) -> None:
    """Raise ClientError for a key that S3 itself would refuse: empty, or over 1,024 bytes."""
    if not key:
        raise ClientError("an object needs a key: write s3://bucket/key")
    if len(_bytes(key)) > KEY_LIMIT:
        raise ClientError(f"the key {key[:60]!r}… is over {KEY_LIMIT} bytes, which S3 refuses: shorten it")


def is_plain(key: str) -> bool:
    """Whether the key can be a path below its bucket: no empty, `.` or `..` segment, none too long."""
    if not key or _ODD_SEGMENT.search(key):
        return False
    # No UTF-8 character has more than four bytes: short keys need no closer look.
    if len(key) * 4 > SEGMENT_LIMIT and any(len(_bytes(part)) > SEGMENT_LIMIT for part in key.split("/")):
        return False
    return not any(part.startswith(RESERVED) for part in key.split("/")) if RESERVED in key else True


def all_plain(names: Sequence[str]) -> bool:
    """Whether surely every name is plain, found in one look at all; False may mean: ask for each."""
    text = "\0".join(names)
    if RESERVED in text or text.count("\0") != len(names) - 1:
        return False
    return _ODD_AMONG.search(text) is None


def local_name(prefix: str, key: str) -> str:
    """Where an object of a prefix lies below the channel's directory (contract: E6, F17).

    Below the prefix taken as a folder, what follows it; else the key without everything up to the last
    `/` of the prefix, so that `data/train` finds `data/train-1.csv` as `train-1.csv`. Empty for the
    folder's own marker.
    """
    folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    if key.startswith(folder):
        return key[len(folder) :]
    return key[prefix.rfind("/") + 1 :]


def refuse_local_name(name: str, uri: str, place: str) -> None:
    """Raise ClientError, naming the object, when `name` can't be a file below `place`."""
    if not is_plain(name):
        raise ClientError(
            f"Data download failed: the object {uri!r} can't be a file below {place} "
            f"(its name there would be {name!r}); rename the object"
        )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

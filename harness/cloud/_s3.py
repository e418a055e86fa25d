"""S3 on the local object store: buckets and whole objects.

Bodies are streamed: an object is never whole in memory. A bucket is there as soon as something is in it,
or it was made. Options of S3 that would change what a later read gives (metadata, tags, conditions) and
that the store doesn't keep are refused, so that nothing is lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final
from urllib.parse import quote, unquote

from harness.cloud._account import Account
from harness.cloud._errors import ServiceError
from harness.errors import ClientError
from harness.model import JsonObject
from harness.objects import ObjectInfo, ObjectStore

__all__ = ["OPERATIONS", "Slice", "bucket_there", "copy_stream", "etag", "store_of"]

_CHUNK: Final = 1 << 20
_PAGE: Final = 1000
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
_WITHOUT_EFFECT: Final = frozenset(
    {
        "ACL",
        "BucketKeyEnabled",
        "ContentLength",
        "ContentMD5",
        "ContentType",
        "ExpectedSourceBucketOwner",
        "RequestPayer",
        "SSEKMSKeyId",
        "ServerSideEncryption",
        "StorageClass",
    }
)
"""What no later read depends on."""


class Slice:
    """Part of an open file, to be read once from its beginning to its end."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        file.seek(start)
        self._file = file
        self._left = length
        self.length = length

    def read(self, size: int | None = None) -> bytes:
        data = self._file.read(self._left if size is None or size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()


def store_of(account: Account) -> ObjectStore:
    return ObjectStore(account.home.s3)


def etag(info: ObjectInfo) -> str:
    """Changes whenever the object does; as that of an object in parts it is no MD5, and has a dash to say so."""
    from hashlib import blake2b

    return f'"{blake2b(info.identity.encode(), digest_size=16).hexdigest()}-1"'


def copy_stream(source: Any, target: BinaryIO) -> int:
    """All that is left in `source`, bytes or a file; how many bytes."""
    if isinstance(source, (bytes, bytearray)):
        target.write(source)
        return len(source)
    done = 0
    while data := source.read(_CHUNK):
        target.write(data)
        done += len(data)
    return done


def bucket_there(account: Account, params: JsonObject, *, make: bool = False) -> None:
    """See that the bucket is there, and whose it is (`ExpectedBucketOwner`)."""
    bucket = str(params["Bucket"])
    owner = params.get("ExpectedBucketOwner")
    if owner is not None and owner != account.number:
        raise ServiceError("AccessDenied", "Access Denied", status=403)
    place = account.home.s3 / bucket
    if place.is_dir():
        return
    if not make:
        error = ServiceError("NoSuchBucket", "The specified bucket does not exist", status=404)
        raise error
    _check_bucket(bucket)
    place.mkdir(parents=True, exist_ok=True)


def _check_bucket(bucket: str) -> None:
    if not _BUCKET.fullmatch(bucket):
        raise ServiceError("InvalidBucketName", f"The specified bucket is not valid: {bucket}")


def _uri(params: JsonObject) -> str:
    return f"s3://{params['Bucket']}/{params['Key']}"


def _only(params: JsonObject, *known: str) -> None:
    """Refuse parameters whose loss a later read would show."""
    for name in params:
        if (
            name not in known
            and name not in ("Bucket", "Key", "ExpectedBucketOwner")
            and name not in _WITHOUT_EFFECT
            and not name.startswith("Checksum")
        ):
            raise ServiceError(
                "NotImplemented",
                f"the local object store doesn't keep {name}: leave it out, or use real S3",
                status=400,  # S3 says 501, which clients try again
            )


def _info(account: Account, params: JsonObject) -> ObjectInfo:
    bucket_there(account, params)
    info = store_of(account).head(_uri(params))
    if info is None:
        raise ServiceError("NoSuchKey", "The specified key does not exist.", status=404)
    for name, wanted in (("IfMatch", True), ("IfNoneMatch", False)):
        if name in params and (str(params[name]).strip('"') == etag(info).strip('"')) is not wanted:
            raise ServiceError(
                "PreconditionFailed" if wanted else "304",
                "At least one of the pre-conditions you specified did not hold" if wanted else "Not Modified",
                status=412 if wanted else 304,
            )
    return info


def _list_buckets(account: Account, params: JsonObject) -> JsonObject:
    prefix = params.get("Prefix", "")
    try:
        entries = sorted(entry for entry in account.home.s3.iterdir() if _BUCKET.fullmatch(entry.name))
    except FileNotFoundError:
        entries = []
    return {
        "Buckets": [
            {"Name": entry.name, "CreationDate": entry.stat().st_mtime}
            for entry in entries
            if entry.is_dir() and entry.name.startswith(prefix)
        ],
        "Owner": {"ID": account.number},
    }


def _head_bucket(account: Account, params: JsonObject) -> JsonObject:
    try:
        bucket_there(account, params)
    except ServiceError as error:
        raise _without_body(error) from error
    return {"BucketRegion": account.region}


def _create_bucket(account: Account, params: JsonObject) -> JsonObject:
    bucket_there(account, params, make=True)
    return {"Location": f"/{params['Bucket']}"}


def _put_object(account: Account, params: JsonObject) -> JsonObject:
    _only(params, "Body")
    bucket_there(account, params, make=True)
    with store_of(account).writing(_uri(params)) as file:
        copy_stream(params.get("Body", b""), file)
    info = store_of(account).head(_uri(params))
    return {"ETag": etag(info)} if info is not None else {}


def _head_object(account: Account, params: JsonObject) -> JsonObject:
    try:
        return _headers(_info(account, params))
    except ServiceError as error:
        raise _without_body(error) from error


def _get_object(account: Account, params: JsonObject) -> JsonObject:
    _only(params, "Range", "IfMatch", "IfNoneMatch")
    info = _info(account, params)
    headers = _headers(info)
    start, stop = _range(params.get("Range"), info.size)
    if "Range" in params:
        headers["ContentRange"] = f"bytes {start}-{stop - 1}/{info.size}"
    headers["ContentLength"] = stop - start
    headers["Body"] = Slice(info.path.open("rb"), start, stop - start)
    return headers


def _range(text: str | None, size: int) -> tuple[int, int]:
    found = _RANGE.fullmatch(text or "")
    if found is None or not any(found.groups()):
        return 0, size
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if int(first) >= size:
        raise ServiceError("InvalidRange", "The requested range is not satisfiable", status=416)
    return int(first), min(int(last) + 1, size) if last else size


def _headers(info: ObjectInfo) -> JsonObject:
    return {
        "AcceptRanges": "bytes",
        "LastModified": info.mtime_ns // 1_000_000_000,
        "ContentLength": info.size,
        "ETag": etag(info),
        "ContentType": "binary/octet-stream",
        "Metadata": {},
    }


def _without_body(error: ServiceError) -> ServiceError:
    """The answer to HEAD has no body: clients make the code of the status alone."""
    names = {403: "Forbidden", 404: "Not Found", 412: "Precondition Failed", 304: "Not Modified"}
    return ServiceError(str(error.status), names.get(error.status, "Bad Request"), status=error.status)


def _delete_object(account: Account, params: JsonObject) -> JsonObject:
    _only(params)
    bucket_there(account, params)
    store_of(account).delete(_uri(params))
    return {}


def _delete_objects(account: Account, params: JsonObject) -> JsonObject:
    bucket_there(account, params)
    deleted, errors = [], []
    for each in params["Delete"]["Objects"]:
        try:
            store_of(account).delete(f"s3://{params['Bucket']}/{each['Key']}")
            deleted.append({"Key": each["Key"]})
        except ClientError as error:
            errors.append({"Key": each["Key"], "Code": "InvalidArgument", "Message": str(error)})
    if params["Delete"].get("Quiet"):
        deleted = []
    return {name: found for name, found in (("Deleted", deleted), ("Errors", errors)) if found}


def _copy_object(account: Account, params: JsonObject) -> JsonObject:
    _only(params, "CopySource", "MetadataDirective", "TaggingDirective")
    source = params["CopySource"]
    if isinstance(source, Mapping):
        bucket, key = source["Bucket"], source["Key"]
    else:
        bucket, _, key = unquote(str(source)).lstrip("/").partition("/")
    info = _info(account, {"Bucket": bucket, "Key": key})
    bucket_there(account, params, make=True)
    copied = store_of(account).put_file(_uri(params), info.path)
    return {"CopyObjectResult": {"ETag": etag(copied), "LastModified": copied.mtime_ns // 1_000_000_000}}


def _list_objects_v2(account: Account, params: JsonObject) -> JsonObject:
    after = params.get("ContinuationToken") or params.get("StartAfter") or ""
    answer = _listing(account, params, after)
    if answer["IsTruncated"]:
        answer["NextContinuationToken"] = answer.pop("_last")
    answer.pop("_last", None)
    answer["KeyCount"] = len(answer.get("Contents", ())) + len(answer.get("CommonPrefixes", ()))
    return answer


def _list_objects(account: Account, params: JsonObject) -> JsonObject:
    answer = _listing(account, params, params.get("Marker", ""))
    last = answer.pop("_last", None)
    if answer["IsTruncated"]:
        answer["NextMarker"] = last
    return answer


def _listing(account: Account, params: JsonObject, after: str) -> JsonObject:
    bucket_there(account, params)
    bucket, prefix, delimiter = params["Bucket"], params.get("Prefix", ""), params.get("Delimiter", "")
    most = min(params.get("MaxKeys", _PAGE), _PAGE)
    contents: list[JsonObject] = []
    common: list[str] = []
    last = ""
    truncated = False
    for name, info in _names(store_of(account).list(f"s3://{bucket}/{prefix}"), prefix, delimiter):
        if name <= after or (info is None and common and common[-1] == name):
            continue
        if len(contents) + len(common) >= most:
            truncated = True
            break
        last = name
        if info is None:
            common.append(name)
        else:
            contents.append(
                {
                    "Key": name,
                    "LastModified": info.mtime_ns // 1_000_000_000,
                    "ETag": etag(info),
                    "Size": info.size,
                    "StorageClass": "STANDARD",
                }
            )
    coded: Callable[[str], str] = quote if params.get("EncodingType") == "url" else str
    answer: JsonObject = {"Name": bucket, "Prefix": coded(prefix), "MaxKeys": most, "IsTruncated": truncated}
    if delimiter:
        answer["Delimiter"] = coded(delimiter)
    if contents:
        answer["Contents"] = [{**each, "Key": coded(each["Key"])} for each in contents]
    if common:
        answer["CommonPrefixes"] = [{"Prefix": coded(each)} for each in common]
    return {**answer, "_last": last}


def _names(
    found: Iterator[ObjectInfo], prefix: str, delimiter: str
) -> Iterator[tuple[str, ObjectInfo | None]]:
    """Keys with their objects; those that share a prefix up to the delimiter as that prefix, with None."""
    for info in found:
        at = info.key.find(delimiter, len(prefix)) if delimiter else -1
        if at >= 0:
            yield info.key[: at + len(delimiter)], None
        else:
            yield info.key, info


OPERATIONS: Final[Mapping[str, Callable[[Account, JsonObject], JsonObject]]] = {
    "CopyObject": _copy_object,
    "CreateBucket": _create_bucket,
    "DeleteObject": _delete_object,
    "DeleteObjects": _delete_objects,
    "GetObject": _get_object,
    "HeadBucket": _head_bucket,
    "HeadObject": _head_object,
    "ListBuckets": _list_buckets,
    "ListObjects": _list_objects,
    "ListObjectsV2": _list_objects_v2,
    "PutObject": _put_object,
}

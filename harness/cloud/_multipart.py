"""S3's uploads in parts: each part a temporary file of the object store until the upload is complete.

What an upload that nobody finished left goes with the store's other temporary files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from harness.cloud._account import Account
from harness.cloud._errors import ServiceError
from harness.cloud._s3 import bucket_there, copy_stream, etag, store_of
from harness.model import JsonObject

__all__ = ["OPERATIONS"]

_ID: Final = re.compile(r"[0-9a-f]{32}")


def _create(account: Account, params: JsonObject) -> JsonObject:
    bucket_there(account, params, make=True)
    upload = os.urandom(16).hex()
    _path(account, upload, "key").write_text(f"{params['Bucket']}/{params['Key']}")
    return {"Bucket": params["Bucket"], "Key": params["Key"], "UploadId": upload}


def _upload_part(account: Account, params: JsonObject) -> JsonObject:
    upload = _known(account, params)
    part = _path(account, upload, str(params["PartNumber"]))
    draft = part.with_name(f"{part.name}.{os.urandom(4).hex()}")
    with draft.open("wb") as file:
        copy_stream(params.get("Body", b""), file)
    draft.rename(part)  # a part that is sent again replaces the first
    return {"ETag": _part_tag(part)}


def _complete(account: Account, params: JsonObject) -> JsonObject:
    upload = _known(account, params)
    listed = params.get("MultipartUpload", {}).get("Parts", ())
    numbers = [part["PartNumber"] for part in listed]
    if not numbers or numbers != sorted(set(numbers)):
        raise ServiceError("InvalidPartOrder", "The list of parts was not in ascending order.")
    paths = [_path(account, upload, str(number)) for number in numbers]
    for path, part in zip(paths, listed, strict=True):
        if not path.exists() or _part_tag(path).strip('"') != str(part.get("ETag", "")).strip('"'):
            raise ServiceError("InvalidPart", f"Part {part['PartNumber']} was not found, or is another.")
    uri = f"s3://{params['Bucket']}/{params['Key']}"
    with store_of(account).writing(uri) as target:
        for path in paths:
            with path.open("rb") as source:
                copy_stream(source, target)
    _remove(account, upload)
    info = store_of(account).head(uri)
    return {
        "Bucket": params["Bucket"],
        "Key": params["Key"],
        "Location": uri,
        **({"ETag": etag(info)} if info is not None else {}),
    }


def _abort(account: Account, params: JsonObject) -> JsonObject:
    _remove(account, _known(account, params))
    return {}


def _known(account: Account, params: JsonObject) -> str:
    upload = str(params["UploadId"])
    found = _ID.fullmatch(upload) and _path(account, upload, "key")
    if not found or not found.exists() or found.read_text() != f"{params['Bucket']}/{params['Key']}":
        raise ServiceError("NoSuchUpload", "The specified multipart upload does not exist.", status=404)
    return upload


def _path(account: Account, upload: str, name: str) -> Path:
    return store_of(account).private("tmp") / f"upload-{upload}-{name}"


def _part_tag(path: Path) -> str:
    status = path.stat()
    return f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'


def _remove(account: Account, upload: str) -> None:
    for path in store_of(account).private("tmp").glob(f"upload-{upload}-*"):
        path.unlink(missing_ok=True)


OPERATIONS: Final[Mapping[str, Callable[[Account, JsonObject], JsonObject]]] = {
    "AbortMultipartUpload": _abort,
    "CompleteMultipartUpload": _complete,
    "CreateMultipartUpload": _create,
    "UploadPart": _upload_part,
}

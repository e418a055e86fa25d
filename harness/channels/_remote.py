"""Real S3, read through boto3; never written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import ClientError
from harness.model import LocalOptions
from harness.objects import Progress, out_of_space

__all__ = ["RemoteObject", "RemoteS3", "open_remote"]

_PART: Final = 16 << 20
_CONCURRENCY: Final = 16
_LOOK: Final = 0.05
_PIECE: Final = 1 << 20
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object of real S3 as it was listed."""

    bucket: str
    key: str
    etag: str
    size: int

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def identity(self) -> str:
        """Changes whenever the content does."""
        return f"{self.etag}:{self.size}"


def open_remote(local: LocalOptions, region: str | None = None, client: Any = None) -> RemoteS3 | str:
    """Real S3, or in one sentence why it isn't asked. `client`: a boto3 S3 client to use instead."""
    if local.offline:
        return "--offline forbids to ask Amazon S3"
    if client is None:
        import boto3
        import botocore.config
        import botocore.exceptions

        try:
            session = boto3.Session(region_name=region)
            if session.get_credentials() is None:
                return "Amazon S3 wasn't asked because there are no AWS credentials"
            client = session.client(
                "s3",
                config=botocore.config.Config(
                    max_pool_connections=_CONCURRENCY + 2, retries={"max_attempts": 5, "mode": "standard"}
                ),
            )
        except botocore.exceptions.BotoCoreError as error:
            return f"Amazon S3 can't be asked ({error})"
    return RemoteS3(client)


class RemoteS3:
    """A boto3 S3 client's reading half. Methods raise ClientError in SageMaker's words."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def list(self, bucket: str, prefix: str) -> list[RemoteObject]:
        """Every object whose key begins with the prefix, in S3's order."""
        found = []
        with _told(f"s3://{bucket}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            for page in pages:
                for row in page.get("Contents", ()):
                    found.append(RemoteObject(bucket, row["Key"], row["ETag"].strip('"'), row["Size"]))
        return found

    def head(self, bucket: str, key: str) -> RemoteObject | None:
        """The object, or None when there is none."""
        from botocore.exceptions import ClientError as AwsError

        with _told(f"s3://{bucket}/{key}"):
            try:
                answer = self._client.head_object(Bucket=bucket, Key=key)
            except AwsError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return None
                raise
        return RemoteObject(bucket, key, answer["ETag"].strip('"'), answer["ContentLength"])

    def read(self, found: RemoteObject) -> bytes:
        """The whole content of a small object."""
        with _told(found.uri):
            data: bytes = self._client.get_object(Bucket=found.bucket, Key=found.key)["Body"].read()
            return data

    def stream(self, found: RemoteObject) -> Iterator[bytes]:
        """The content of an object of any size, piece by piece; goes on where a connection broke off."""
        from botocore.exceptions import ConnectionError as BrokenError
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        done = failures = 0
        while done < found.size:
            with _told(found.uri):
                try:
                    body = self._client.get_object(
                        Bucket=found.bucket,
                        Key=found.key,
                        IfMatch=f'"{found.etag}"',  # one that changed since it was listed is refused
                        **({"Range": f"bytes={done}-"} if done else {}),
                    )["Body"]
                    while piece := body.read(_PIECE):
                        done += len(piece)
                        failures = 0
                        yield piece
                    if done < found.size:
                        raise IncompleteReadError(actual_bytes=done, expected_bytes=found.size)
                except (BrokenError, HTTPClientError, IncompleteReadError):
                    failures += 1
                    if failures >= _ATTEMPTS:
                        raise
                    time.sleep(0.1 * 2**failures)

    def download(
        self, wanted: Sequence[tuple[RemoteObject, Path]], progress: Progress | None, what: str
    ) -> None:
        """Each object into its path, in parallel and big ones in ranges; a path is there whole or not.

        `progress` is called from this thread only.
        """
        from boto3.s3.transfer import TransferConfig, create_transfer_manager
        from s3transfer.subscribers import BaseSubscriber

        lock = threading.Lock()
        done = 0

        class Watch(BaseSubscriber):  # type: ignore[misc]  # s3transfer has no types
            def __init__(self, found: RemoteObject) -> None:
                self._found = found

            def on_queued(self, future: Any, **_: Any) -> None:
                # The listing told both: no HEAD for each object, and one that changed is refused.
                future.meta.provide_transfer_size(self._found.size)
                if hasattr(future.meta, "provide_object_etag"):  # s3transfer >= 0.13
                    future.meta.provide_object_etag(f'"{self._found.etag}"')

            def on_progress(self, bytes_transferred: int, **_: Any) -> None:
                nonlocal done
                with lock:
                    done += bytes_transferred

        total = sum(found.size for found, _ in wanted)
        config = TransferConfig(
            max_concurrency=_CONCURRENCY, multipart_threshold=_PART, multipart_chunksize=_PART
        )
        with create_transfer_manager(self._client, config) as manager:
            pending = []
            for found, path in wanted:
                pending.append(
                    (
                        found,
                        path,
                        manager.download(found.bucket, found.key, str(path), subscribers=[Watch(found)]),
                    )
                )
                if progress is not None:
                    progress(done, total, what)
            for found, path, future in pending:
                with _told(found.uri):
                    if progress is not None:
                        while not future.done():
                            time.sleep(_LOOK)
                            progress(done, total, what)
                    future.result()
                    size = path.stat().st_size
                if size != found.size:
                    raise ClientError(
                        f"Data download failed: {found.uri} changed while it was downloaded "
                        f"({found.size} bytes listed, {size} received); start the job again"
                    )
                path.chmod(0o644)  # contract: B6
        if progress is not None:
            progress(total, total, what)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """boto3's errors as the job's."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError
    from botocore.exceptions import ClientError as AwsError
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

    try:
        yield
    except (AwsError, BotoCoreError, Boto3Error, RetriesExceededError, S3DownloadFailedError) as error:
        raise ClientError(f"Data download failed: {uri} ({error})") from error
    except OSError as error:
        if out_of_space(error):
            raise ClientError(
                f"Data download failed:Insufficient disk space (while downloading {uri})"  # contract: E32
            ) from error
        raise ClientError(f"Data download failed: {uri} ({error.strerror or error})") from error

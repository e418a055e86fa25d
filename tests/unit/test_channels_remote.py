"""Real S3, by boto3 over a real socket from a small server of this test's own."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from harness.channels import Feeder, collect, extract_source, materialise_source, open_remote, stage
from harness.channels._remote import RemoteS3
from harness.errors import ClientError
from harness.model import JsonObject, LocalOptions, Upload
from harness.objects import ObjectStore
from harness.outputs import CheckpointSync

PAGE = 3


class Bucket:
    """What the server has, and what it was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.gets: list[str] = []
        self.heads: list[str] = []
        self.writes: list[str] = []
        self.port = 0
        self.old = ""
        """An ETag that listings tell and objects no longer have."""
        self.lie = 0
        """Bytes by which listings are wrong."""
        self.breaks = 0
        """How many more answers break off in the middle."""

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="AKIDEXAMPLE",
            aws_secret_access_key="x",
            region_name="us-east-1",
        )


def handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content_Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD" and len(body) > 100_000 and bucket.breaks:
                bucket.breaks -= 1
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(body)

        def error(self, status: int, code: str) -> None:
            self.answer(status, f"<Error><Code>{code}</Code><Message>told by S3</Message></Error>".encode())

        def listing(self, query: dict[str, list[str]]) -> None:
            prefix = query.get("prefix", [""])[0]
            start = query.get("continuation-token", [""])[0]
            keys = sorted((k for k in bucket.objects if k.startswith(prefix) and k > start), key=str.encode)
            rows = "".join(
                f"<Contents><Key>{escape(key)}</Key><ETag>&quot;{bucket.old or self.etag(key)}&quot;</ETag>"
                f"<Size>{len(bucket.objects[key]) + bucket.lie}</Size></Contents>"
                for key in keys[:PAGE]
            )
            more = keys[PAGE - 1] if len(keys) > PAGE else ""
            token = f"<NextContinuationToken>{escape(more)}</NextContinuationToken>" if more else ""
            self.answer(
                200,
                (
                    f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
                    f"{token}{rows}</ListBucketResult>"
                ).encode(),
            )

        def etag(self, key: str) -> str:
            return hashlib.md5(bucket.objects[key]).hexdigest()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            name, _, key = unquote(parts.path).lstrip("/").partition("/")
            if name != "real":
                self.error(
                    404 if name == "absent" else 403, "NoSuchBucket" if name == "absent" else "AccessDenied"
                )
            elif "list-type" in parts.query:
                self.listing(parse_qs(parts.query))
            elif key not in bucket.objects:
                self.error(404, "NoSuchKey")
            else:
                data = bucket.objects[key]
                headers = {"ETag": f'"{self.etag(key)}"'}
                if self.command == "HEAD":
                    bucket.heads.append(key)
                    self.answer(200, b"", **headers, Content_Length=str(len(data)))
                    return
                if self.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
                    self.error(412, "PreconditionFailed")
                    return
                bucket.gets.append(key)
                if asked := self.headers.get("Range"):
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    end = min(int(last or len(data)), len(data) - 1)
                    headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
                    self.answer(206, data[int(first) : end + 1], **headers)
                else:
                    self.answer(200, data, **headers)

        do_HEAD = do_GET  # noqa: N815

        def refuse(self) -> None:
            bucket.writes.append(f"{self.command} {self.path}")
            self.error(403, "AccessDenied")

        do_PUT = do_POST = do_DELETE = refuse  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    return Handler


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(bucket))
    bucket.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield bucket
        assert bucket.writes == []  # real S3 is never written
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "s3")


def request(uri: str, kind: str = "S3Prefix") -> JsonObject:
    source = {"S3DataType": kind, "S3Uri": uri}
    return {
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "InputDataConfig": [{"ChannelName": "training", "DataSource": {"S3DataSource": source}}],
    }


def fetch(bucket: Bucket, store: ObjectStore, uri: str, **more: Any) -> tuple[dict[str, bytes], bool]:
    root = store.root.parent
    kind = more.pop("kind", "S3Prefix")
    channel = stage(
        request(uri, kind),
        (),
        objects=store,
        cache=root / "cache",
        job_dir=root / "job",
        hosts=["algo-1"],
        local=LocalOptions(),
        s3=bucket.client(),
        **more,
    )["algo-1"][0]
    found = channel.mount.source
    return {
        str(p.relative_to(found)): p.read_bytes() for p in found.rglob("*") if p.is_file()
    }, channel.reused


def test_objects_are_downloaded_once(bucket: Bucket, store: ObjectStore) -> None:
    bucket.objects = {f"data/{n}/é {n}.bin": bytes([n]) * n for n in range(8)}
    bucket.objects |= {"data/": b"", "data/big": bytes(range(256)) * (40 << 12), "data2/x": b"x"}
    wanted = {
        key[5:]: body for key, body in bucket.objects.items() if key.startswith("data/") and key != "data/"
    }
    told: list[tuple[int, int, str]] = []
    found, reused = fetch(bucket, store, "s3://real/data/", progress=lambda *args: told.append(args))
    assert found == wanted
    assert not reused
    assert ("downloading channel training" in told[0][2], told[-1][0]) == (
        True,
        sum(map(len, wanted.values())),
    )
    assert bucket.gets.count("data/big") > 1  # in ranges
    assert bucket.heads == []  # the listing told everything
    bucket.gets.clear()
    assert fetch(bucket, store, "s3://real/data/") == (wanted, True)
    assert bucket.gets == []
    bucket.objects["data/1/é 1.bin"] = b"2"
    found, reused = fetch(bucket, store, "s3://real/data/")
    assert (found["1/é 1.bin"], reused) == (b"2", False)
    assert set(bucket.gets) == {"data/1/é 1.bin"}  # only what changed
    assert collect(store.root.parent / "cache") > 0


def test_the_local_store_comes_first(bucket: Bucket, store: ObjectStore) -> None:
    bucket.objects = {"data/a": b"remote"}
    store.put_bytes("s3://real/data/a", b"local")
    assert fetch(bucket, store, "s3://real/data/")[0] == {"a": b"local"}


def test_manifests_from_both(bucket: Bucket, store: ObjectStore) -> None:
    bucket.objects = {"list": b'[{"prefix": "s3://real/data/"}, "a", "b"]', "data/a": b"remote"}
    store.put_bytes("s3://real/data/b", b"local")
    assert fetch(bucket, store, "s3://real/list", kind="ManifestFile")[0] == {"a": b"remote", "b": b"local"}


@pytest.mark.parametrize("key", ["data/../../../evil", "data//absolute", "data/a/./b"])
def test_keys_that_reach_outside(bucket: Bucket, store: ObjectStore, tmp_path: Path, key: str) -> None:
    bucket.objects = {"data/good": b"g", key: b"evil"}
    with pytest.raises(ClientError, match="can't be a file below") as caught:
        fetch(bucket, store, "s3://real/data/")
    assert key in str(caught.value)
    assert bucket.gets == []
    assert not any(path.name in ("evil", "absolute") for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://real/nothing/", "No S3 objects found"),
        ("s3://absent/x", "NoSuchBucket.*told by S3"),
        ("s3://forbidden/x", "AccessDenied.*told by S3"),
    ],
)
def test_what_s3_says_is_told(bucket: Bucket, store: ObjectStore, uri: str, words: str) -> None:
    with pytest.raises(ClientError, match=f"Data download failed.*{words}"):
        fetch(bucket, store, uri)


@pytest.mark.parametrize(("old", "lie"), [("", -1), ("", 1), ("outdated", 0)])
def test_an_object_that_changes_meanwhile(bucket: Bucket, store: ObjectStore, old: str, lie: int) -> None:
    bucket.objects = {"data/a": bytes(20 << 20) if old else b"abc"}  # only ranges can be torn
    bucket.old, bucket.lie = old, lie
    with pytest.raises(ClientError, match="s3://real/data/a"):
        fetch(bucket, store, "s3://real/data/")
    left = [path for path in (store.root.parent / "cache").rglob("*") if path.is_file()]
    assert {path.parent.name for path in left} == {"locks"}


def test_s3_out_of_reach() -> None:
    import boto3
    import botocore.config

    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=botocore.config.Config(retries={"max_attempts": 0}),
    )
    with pytest.raises(ClientError, match=r"Data download failed: s3://real/x .*127.0.0.1:9"):
        RemoteS3(client).list("real", "x")


def test_offline_and_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert "--offline" in str(open_remote(LocalOptions(offline=True)))
    assert "no AWS credentials" in str(open_remote(LocalOptions()))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert isinstance(open_remote(LocalOptions(), "eu-west-1"), RemoteS3)


def test_a_source_archive_in_s3(bucket: Bucket, store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("t")
    materialise_source(Upload(path=tmp_path / "train.py", uri="s3://real/s.tar.gz", kind="source"), store)
    bucket.objects["s.tar.gz"] = store.path("s3://real/s.tar.gz").read_bytes()
    store.delete("s3://real/s.tar.gz")
    extract_source("s3://real/s.tar.gz", store, tmp_path / "code", remote=RemoteS3(bucket.client()))
    assert [path.name for path in (tmp_path / "code").iterdir()] == ["train.py"]


def test_checkpoints_come_from_s3_and_stay_here(bucket: Bucket, store: ObjectStore, tmp_path: Path) -> None:
    bucket.objects = {"ckpt/1.pt": b"one", "ckpt/": b""}
    directory = tmp_path / "ml/checkpoints"

    def sync() -> CheckpointSync:
        return CheckpointSync(
            store, "s3://real/ckpt/", {"algo-1": directory}, local=LocalOptions(), client=bucket.client()
        )

    first = sync()
    assert first.restore() == 1
    assert (directory / "1.pt").read_bytes() == b"one"
    assert "Amazon S3" in first.warnings[0]
    (directory / "2.pt").write_bytes(b"two")
    assert first.sync(final=True).uploaded == 1
    assert [info.key for info in store.list("s3://real/")] == ["ckpt/1.pt", "ckpt/2.pt"]
    bucket.objects["ckpt/3.pt"] = b"three"
    assert sync().restore() == 2  # the local place isn't empty any more


# --- Pipe mode


@contextlib.contextmanager
def feeding(
    bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, **channel: Any
) -> Iterator[tuple[Feeder, Path]]:
    """A process that streams from the bucket, with the user's own credentials."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    root = store.root.parent
    asked = request("s3://real/data/")
    asked["AlgorithmSpecification"]["TrainingInputMode"] = "Pipe"
    source = {key: channel.pop(key) for key in ("S3DataType", "S3Uri", "AttributeNames") if key in channel}
    asked["InputDataConfig"][0] |= channel
    asked["InputDataConfig"][0]["DataSource"]["S3DataSource"] |= source
    common: dict[str, Any] = {"objects": store, "local": LocalOptions(), "region": "us-east-1"}
    staged = stage(asked, (), cache=root / "cache", job_dir=root / "job", hosts=["algo-1"], **common)
    (root / "ml/input/data").mkdir(parents=True)
    feeder = Feeder("job", staged, trees={"algo-1": root / "ml"}, uploads=(), **common)
    try:
        yield feeder, root / "ml/input/data/training_0"
    finally:
        feeder.close()
    assert not (root / "cache").exists()  # contract: E29


def test_pipe_streams_from_s3(bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    big = bytes(range(256)) * 12_000
    bucket.objects = {"data/a": b"first", "data/b": big, "data/c": b"", "data/d": b"last"}
    bucket.breaks = 3
    with feeding(bucket, store, monkeypatch) as (feeder, fifo):
        assert fifo.read_bytes() == b"first" + big + b"last"  # contract: E14
        assert feeder.problem() is None
    assert bucket.breaks == 0
    assert bucket.gets == ["data/a", *["data/b"] * 4, "data/d"]


def test_records_and_gzip_from_s3(
    bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.objects = {"data/a": gzip.compress(b"text")}
    told = {"RecordWrapperType": "RecordIO", "CompressionType": "Gzip"}
    with feeding(bucket, store, monkeypatch, **told) as (_, fifo):
        assert fifo.read_bytes() == bytes.fromhex("0a23d7ce04000000") + b"text"  # contract: E15, E17


def test_an_augmented_manifest_of_s3(
    bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.objects = {"list": b'{"x-ref": "s3://real/one", "y": 1}\n', "one": b"image"}
    told = {
        "S3DataType": "AugmentedManifestFile",
        "S3Uri": "s3://real/list",
        "AttributeNames": ["y", "x-ref"],
    }
    with feeding(bucket, store, monkeypatch, **told) as (_, fifo):
        assert fifo.read_bytes() == b"1image"  # contract: E21


def test_an_object_of_s3_that_changed(
    bucket: Bucket, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.objects = {"data/a": b"one"}
    with feeding(bucket, store, monkeypatch) as (feeder, fifo):
        bucket.objects["data/a"] = b"two"
        threading.Thread(target=fifo.read_bytes, daemon=True).start()
        while (problem := feeder.problem()) is None:
            time.sleep(0.01)
        assert "s3://real/data/a" in str(problem)
        assert "PreconditionFailed" in str(problem)


def test_fast_file_of_s3_says_that_it_is_not_lazy(bucket: Bucket, store: ObjectStore) -> None:
    bucket.objects = {"data/a": b"one"}
    asked = request("s3://real/data/")
    asked["InputDataConfig"][0]["InputMode"] = "FastFile"
    root = store.root.parent
    channel = stage(
        asked,
        (),
        objects=store,
        cache=root / "cache",
        job_dir=root / "job",
        hosts=["algo-1"],
        local=LocalOptions(),
        s3=bucket.client(),
    )["algo-1"][0]
    assert (channel.mount.source / "a").read_bytes() == b"one"
    assert "downloaded before the start" in channel.warnings[0]

"""The local object store: S3's meaning of keys and prefixes over plain files."""

from __future__ import annotations

import os
import random
import resource
import threading
from pathlib import Path

import pytest

from harness.errors import ClientError, DiskError
from harness.objects import ObjectStore, all_plain, check_key, local_name, parse_uri

ODD_KEYS = [
    "a//b",
    "../escape",
    "a/../../escape",
    "./a",
    "a/.",
    "/absolute",
    "marker/",
    "x" * 256,
    "d/" + "é" * 128,
    "nul\0l",
    ".harness-tmp.x",
]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "s3")


def keys(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key for info in store.list(prefix)]


def put(store: ObjectStore, *names: str) -> None:
    for name in names:
        store.put_bytes(f"s3://b/{name}", name.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b c", ("bucket", "a/b c")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket//a", ("bucket", "/a")),
        ("https://s3.us-east-1.amazonaws.com/bucket/key", ("bucket", "key")),
        ("https://my.bucket.s3.eu-west-1.amazonaws.com/k/e/y", ("my.bucket", "k/e/y")),
    ],
)
def test_uris(uri: str, expected: tuple[str, str]) -> None:
    assert parse_uri(uri) == expected  # contract: E30


@pytest.mark.parametrize(
    "uri", ["", "bucket/key", "s3:///key", "file:///etc", "s3://../x", "s3://.harness/x"]
)
def test_no_uris(uri: str) -> None:
    with pytest.raises(ClientError):
        parse_uri(uri)


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513])
def test_keys_that_s3_refuses(key: str) -> None:
    with pytest.raises(ClientError):
        check_key(key)


@pytest.mark.parametrize(
    ("prefix", "key", "name"),
    [
        ("data/", "data/a/b.csv", "a/b.csv"),
        ("data", "data/a.csv", "a.csv"),  # what the SDK's upload_data returns has no slash
        ("data/train", "data/train-1.csv", "train-1.csv"),  # sagemaker-python-sdk#3612
        ("data/train.csv", "data/train.csv", "train.csv"),
        ("data", "data2/a.csv", "data2/a.csv"),
        ("", "a/b", "a/b"),
        ("data/", "data/", ""),
    ],
)
def test_local_names(prefix: str, key: str, name: str) -> None:
    assert local_name(prefix, key) == name  # contract: E6


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_names_are_found_among_many(key: str) -> None:
    fine = ["a", "a/b.c", "..a", "a..", ".a/b", "é" * 63]
    assert all_plain(fine)
    for at in range(len(fine) + 1):
        assert not all_plain([*fine[:at], key, *fine[at:]])
    assert not all_plain([*fine, ""])


def test_objects_are_plain_files(store: ObjectStore) -> None:
    os.umask(os.umask(0o077))
    info = store.put_bytes("s3://b/a/b.txt", b"hello")
    assert info.path == store.root / "b/a/b.txt" == store.path("s3://b/a/b.txt")
    assert info.path.read_bytes() == b"hello"
    assert info.path.stat().st_mode & 0o777 == 0o644  # contract: B6
    assert store.delete("s3://b/a/b.txt")
    assert not store.delete("s3://b/a/b.txt")
    assert sorted(path.name for path in (store.root / "b").iterdir()) == []


def test_a_prefix_is_a_string(store: ObjectStore) -> None:
    put(store, "train/a", "train2/b", "train.csv", "test/c", "trai")
    assert keys(store, "s3://b/train") == ["train.csv", "train/a", "train2/b"]  # contract: E5
    assert keys(store, "s3://b/train/") == ["train/a"]
    assert keys(store, "s3://b/train/a") == ["train/a"]
    assert keys(store, "s3://b/train/a/") == []
    assert keys(store, "s3://nothing/") == []


def test_listing_is_in_byte_order(store: ObjectStore) -> None:
    names = ["a-b", "a/z", "a/b/c", "a0", "a.b", "Z", "é", "\U0001f600", "\uffee", "a/b-c"]
    put(store, *names)
    assert keys(store, "s3://b/") == sorted(names, key=str.encode)


def test_random_trees_list_as_s3_lists(store: ObjectStore) -> None:
    dice = random.Random(7)
    expected: set[str] = set()
    for _ in range(400):
        key = "".join(dice.choice("ab-./0é") for _ in range(dice.randint(1, 6)))
        if dice.random() < 0.7:
            put(store, key)
            expected.add(key)
        else:
            assert store.delete(f"s3://b/{key}") == (key in expected)
            expected.discard(key)
        prefix = "".join(dice.choice("ab-./0é") for _ in range(dice.randint(0, 2)))
        wanted = sorted((k for k in expected if k.startswith(prefix)), key=str.encode)
        assert keys(store, f"s3://b/{prefix}") == wanted
    for info in store.list("s3://b/"):
        assert info.path.read_bytes() == info.key.encode()
        assert store.head(info.uri) == info
    assert sorted(path.name for path in store.root.iterdir()) == [".harness", "b"]  # nothing escaped


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_that_cannot_be_files(store: ObjectStore, key: str, tmp_path: Path) -> None:
    uri = f"s3://b/{key}"
    info = store.put_bytes(uri, b"body")
    assert keys(store, "s3://b/") == [key]
    assert store.exists(uri)
    assert info.path.read_bytes() == b"body"
    assert info.path.resolve().is_relative_to(store.root / ".harness")
    assert list(tmp_path.iterdir()) == [store.root]
    assert store.delete(uri)
    assert keys(store, "s3://b/") == []


def test_a_key_that_is_also_a_folder(store: ObjectStore) -> None:
    put(store, "a", "a/b", "c/d", "c")
    assert keys(store, "s3://b/") == ["a", "a/b", "c", "c/d"]
    store.delete("s3://b/a")
    put(store, "a/b")
    assert (store.root / "b/a/b").read_bytes() == b"a/b"
    assert keys(store, "s3://b/") == ["a/b", "c", "c/d"]


def test_dropped_files_are_objects(store: ObjectStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("x")
    (store.root / "b/sub").mkdir(parents=True)
    (store.root / "b/sub/one").write_text("1")
    (store.root / "b/linked").symlink_to(outside)
    (store.root / "b/loop").symlink_to(store.root / "b")
    assert keys(store, "s3://b/") == ["linked/x", "sub/one"]
    with pytest.raises(ClientError, match="symbolic link"):
        store.put_bytes("s3://b/linked/y", b"")
    with pytest.raises(ClientError, match="symbolic link"):
        store.delete("s3://b/linked/x")
    assert sorted(outside.iterdir()) == [outside / "x"]
    (store.root / "b/dangling").symlink_to("nowhere")
    with pytest.raises(ClientError, match="dangling"):
        keys(store, "s3://b/")


def test_put_file_copies_or_adopts(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.write_bytes(b"one")
    source.chmod(0o600)
    copied = store.put_file("s3://b/copy", source)
    source.write_bytes(b"two")  # in place: a copy must not follow
    assert copied.path.read_bytes() == b"one"
    inode = source.stat().st_ino
    adopted = store.put_file("s3://b/moved", source, move=True)
    assert adopted.inode == inode
    assert adopted.path.stat().st_mode & 0o777 == 0o644
    assert not source.exists()


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "link"])
def test_only_files_are_stored(store: ObjectStore, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind == "directory":
        source.mkdir()
    elif kind == "fifo":
        os.mkfifo(source)
    elif kind == "link":
        source.symlink_to("/etc/hostname")
    with pytest.raises(ClientError, match="source"):
        store.put_file("s3://b/k", source, move=kind == "link")
    assert keys(store, "s3://b/") == []


def test_a_failed_put_leaves_the_old_object(store: ObjectStore) -> None:
    put(store, "k")

    def fail() -> None:
        with store.writing("s3://b/k") as file:
            file.write(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert store.path("s3://b/k").read_bytes() == b"k"
    assert list(store.private("tmp").iterdir()) == []


def test_a_full_disk_is_told(store: ObjectStore) -> None:
    put(store, "k")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DiskError, match="no space left for s3://b/k"):
            store.put_bytes("s3://b/k", bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.path("s3://b/k").read_bytes() == b"k"
    assert list(store.private("tmp").iterdir()) == []


def test_the_fingerprint_follows_every_change(store: ObjectStore) -> None:
    put(store, "p/a", "p/b", "q/a")
    seen = {store.fingerprint("s3://b/p/")}

    def changed() -> bool:
        print_ = store.fingerprint("s3://b/p/")
        new = print_ not in seen
        seen.add(print_)
        return new

    assert not changed()
    put(store, "q/z")
    assert not changed()
    put(store, "p/a")  # the same bytes, a new object
    assert changed()
    put(store, "p/c")
    assert changed()
    store.delete("s3://b/p/b")
    assert changed()
    store.path("s3://b/p/a").write_bytes(b"P/a")  # by hand, the same size
    assert changed()
    put(store, "p//odd")
    assert changed()


def test_readers_see_whole_objects(store: ObjectStore) -> None:
    stop = threading.Event()
    torn: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            data = store.path("s3://b/d/k").read_bytes() if store.exists("s3://b/d/k") else b""
            if len(set(data)) > 1 or len(data) not in (0, 100_000):
                torn.append(data[:10])

    store.put_bytes("s3://b/d/k", b"0" * 100_000)
    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(100):
        store.put_bytes("s3://b/d/k", str(turn % 10).encode() * 100_000)
    stop.set()
    thread.join()
    assert torn == []


def test_puts_and_deletes_beside_each_other(store: ObjectStore) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(100):
                put(store, f"d/e/{name}")
                store.delete(f"s3://b/d/e/{name}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert keys(store, "s3://b/") == []


def test_sweep_removes_what_killed_writers_left(store: ObjectStore) -> None:
    put(store, "k")
    left = store.private("tmp") / "1.dead"
    left.write_bytes(bytes(10))
    beside = store.root / "b/.harness-tmp.1.dead"
    beside.write_bytes(bytes(5))
    assert keys(store, "s3://b/") == ["k"]
    assert store.sweep() == 0
    assert store.sweep(older_than=-1) == 15
    assert not left.exists()
    assert not beside.exists()
    assert keys(store, "s3://b/") == ["k"]

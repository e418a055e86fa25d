"""Checkpoints: down before the start, up while the job runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.errors import ClientError
from harness.objects import ObjectStore
from harness.outputs import CheckpointSync

URI = "s3://b/ckpt/"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "s3")


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, Path]:
    return {name: tmp_path / name / "ml/checkpoints" for name in ("algo-1", "algo-2")}


def write(directory: Path, name: str, content: bytes, age: float = 60) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def objects(store: ObjectStore, prefix: str = "s3://b/") -> dict[str, bytes]:
    return {info.key: info.path.read_bytes() for info in store.list(prefix)}


def local(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_every_host_gets_every_checkpoint(store: ObjectStore, hosts: dict[str, Path]) -> None:
    store.put_bytes("s3://b/ckpt/1.pt", b"one")
    store.put_bytes("s3://b/ckpt/sub/2.pt", b"two")
    store.put_bytes("s3://b/ckpt/marker/", b"")
    store.put_bytes("s3://b/ckpt-2/no.pt", b"no")
    sync = CheckpointSync(store, URI, hosts)
    assert sync.restore() == 2
    for directory in hosts.values():
        assert local(directory) == {"1.pt": b"one", "sub/2.pt": b"two"}  # contract: F12
    assert sync.warnings == ()
    write(hosts["algo-1"], "1.pt", b"in place")
    assert objects(store)["ckpt/1.pt"] == b"one"  # no shared inode
    assert local(hosts["algo-2"])["1.pt"] == b"one"


def test_nothing_to_restore_makes_the_directories(store: ObjectStore, hosts: dict[str, Path]) -> None:
    assert CheckpointSync(store, URI, hosts).restore() == 0
    assert all(directory.is_dir() for directory in hosts.values())


def test_a_prefix_without_slash_brings_siblings(store: ObjectStore, hosts: dict[str, Path]) -> None:
    store.put_bytes("s3://b/ckpt/a", b"a")
    store.put_bytes("s3://b/ckpt-2/b", b"b")
    sync = CheckpointSync(store, "s3://b/ckpt", hosts)
    assert sync.restore() == 2
    assert local(hosts["algo-1"]) == {"a": b"a", "ckpt-2/b": b"b"}  # contract: F17
    assert "s3://b/ckpt-2/b" in sync.warnings[0]
    (hosts["algo-1"] / "ckpt-2/b").unlink()
    sync.sync()
    assert objects(store) == {"ckpt/a": b"a", "ckpt-2/b": b"b"}


def test_changes_go_up_and_deletions_too(store: ObjectStore, hosts: dict[str, Path]) -> None:
    store.put_bytes("s3://b/ckpt/old", b"old")
    store.put_bytes("s3://b/ckpt/kept", b"kept")
    sync = CheckpointSync(store, URI, hosts)
    sync.restore()
    assert sync.sync().uploaded == 0  # what was restored isn't new
    one = hosts["algo-1"]
    write(one, "new/1.pt", b"1")
    (one / "old").unlink()
    store.put_bytes("s3://b/ckpt/other", b"of others")
    done = sync.sync()
    assert (done.uploaded, done.deleted, done.size) == (1, 1, 1)
    assert objects(store) == {
        "ckpt/new/1.pt": b"1",
        "ckpt/kept": b"kept",
        "ckpt/other": b"of others",
    }  # F13, F14
    assert not (one / "other").exists()
    write(one, "new/1.pt", b"2", age=50)  # the same size, in place
    (one / "new/2.pt").write_bytes(b"x")
    os.utime(one / "new/2.pt", (time.time() - 40,) * 2)
    assert sync.sync().uploaded == 2
    (one / "new/1.pt").rename(one / "new/latest.pt")
    done = sync.sync(final=True)
    assert (done.uploaded, done.deleted) == (1, 1)
    assert objects(store)["ckpt/new/latest.pt"] == b"2"
    assert "ckpt/new/1.pt" not in objects(store)


def test_half_written_files_wait(store: ObjectStore, hosts: dict[str, Path]) -> None:
    sync = CheckpointSync(store, URI, hosts)
    sync.restore()
    write(hosts["algo-1"], "fresh", b"half", age=0)
    done = sync.sync()
    assert (done.uploaded, done.waiting) == (0, 1)  # contract: F15
    assert objects(store) == {}
    assert sync.sync(final=True).uploaded == 1
    assert objects(store) == {"ckpt/fresh": b"half"}


def test_a_file_that_changes_while_it_is_read_waits(
    store: ObjectStore, hosts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = CheckpointSync(store, URI, hosts)
    sync.restore()
    path = write(hosts["algo-1"], "big", b"1" * 100)
    real = os.copy_file_range

    def meanwhile(source: int, target: int, count: int) -> int:
        if count and os.fstat(source).st_size:
            with path.open("ab") as file:
                file.write(b"2")
        return real(source, target, 50)

    monkeypatch.setattr(os, "copy_file_range", meanwhile)
    assert sync.sync().waiting == 1
    assert objects(store) == {}
    monkeypatch.undo()
    assert sync.sync(final=True).uploaded == 1


def test_hosts_that_write_one_name(store: ObjectStore, hosts: dict[str, Path]) -> None:
    sync = CheckpointSync(store, URI, hosts)
    sync.restore()
    write(hosts["algo-2"], "x", b"later", age=10)
    write(hosts["algo-1"], "x", b"sooner", age=20)
    write(hosts["algo-1"], "same", b"s")
    write(hosts["algo-2"], "same", b"s")
    assert sync.sync().uploaded == 3
    assert objects(store) == {"ckpt/x": b"later", "ckpt/same": b"s"}  # contract: F16
    assert len(sync.warnings) == 1
    assert "algo-1 and algo-2" in sync.warnings[0]
    (hosts["algo-1"] / "x").unlink()  # it isn't the object any more
    assert sync.sync().deleted == 0
    (hosts["algo-2"] / "x").unlink()
    assert sync.sync().deleted == 1


def test_one_host_prunes_what_all_restored(store: ObjectStore, hosts: dict[str, Path]) -> None:
    store.put_bytes("s3://b/ckpt/old", b"old")
    sync = CheckpointSync(store, URI, hosts)
    sync.restore()
    (hosts["algo-1"] / "old").unlink()
    assert sync.sync().deleted == 1
    assert sync.sync(final=True).uploaded == 0
    assert objects(store) == {}


def test_a_new_supervisor_goes_on(store: ObjectStore, hosts: dict[str, Path]) -> None:
    store.put_bytes("s3://b/ckpt/old", b"old")
    second = CheckpointSync(store, URI, hosts)  # made before the first restores
    CheckpointSync(store, URI, hosts).restore()
    write(hosts["algo-1"], "new", b"n")
    assert second.sync().uploaded == 1
    (hosts["algo-1"] / "old").unlink()
    third = CheckpointSync(store, URI, hosts)
    done = third.sync(final=True)
    assert (done.uploaded, done.deleted) == (0, 1)
    assert objects(store) == {"ckpt/new": b"n"}
    assert list(store.private("checkpoints").iterdir()) == []


def test_a_directory_that_is_gone_deletes_nothing(store: ObjectStore, hosts: dict[str, Path]) -> None:
    store.put_bytes("s3://b/ckpt/old", b"old")
    sync = CheckpointSync(store, URI, hosts)
    sync.restore()
    for directory in hosts.values():
        directory.rename(directory.with_name("moved"))
    directory = hosts["algo-1"]
    directory.symlink_to("/etc")
    assert sync.sync(final=True).deleted == 0
    assert objects(store) == {"ckpt/old": b"old"}
    assert any("algo-1 has no checkpoint directory" in warning for warning in sync.warnings)


def test_links_and_special_files_stay(store: ObjectStore, hosts: dict[str, Path]) -> None:
    sync = CheckpointSync(store, URI, hosts)
    sync.restore()
    one = hosts["algo-1"]
    write(one, "a", b"a")
    (one / "latest").symlink_to("a")
    (one / "shadow").symlink_to("/etc/shadow")
    (one / "etc").symlink_to("/etc")
    os.mkfifo(one / "fifo")
    sync.sync(final=True)
    assert objects(store) == {"ckpt/a": b"a"}
    assert len(sync.warnings) == 4


def test_an_object_that_is_no_file(store: ObjectStore, hosts: dict[str, Path]) -> None:
    store.put_bytes("s3://b/ckpt/../../evil", b"")
    with pytest.raises(ClientError, match="evil"):
        CheckpointSync(store, URI, hosts).restore()

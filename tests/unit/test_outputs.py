"""Artifacts: model.tar.gz and output.tar.gz, the failure file."""

from __future__ import annotations

import os
import random
import resource
import socket
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harness.errors import ClientError
from harness.objects import ObjectStore
from harness.outputs import copy_uncompressed, pack, read_failure

Tree = Mapping[str, bytes | None]


def plant(root: Path, tree: Tree) -> Path:
    """Files, and directories where the content is None."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    return root


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def unpack(archive: Path) -> dict[str, bytes | str | None]:
    found: dict[str, bytes | str | None] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            assert member.name not in found
            source = tar.extractfile(member) if member.isreg() else None
            found[member.name] = (
                source.read() if source is not None else member.linkname if member.issym() else None
            )
    return found


@pytest.fixture
def ml(tmp_path: Path) -> Path:
    path = tmp_path / "ml"
    path.mkdir()
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_the_root_of_the_archive_is_the_directory(ml: Path, tmp_path: Path) -> None:
    tree = {"model.pth": b"weights", "code/train.py": b"x = 1", "empty": None, "zero": b""}
    root = plant(ml / "model", tree)
    (root / "code/train.py").chmod(0o750)
    os.utime(root / "model.pth", (1_600_000_000, 1_600_000_000.5))
    packed = pack({"algo-1": root}, tmp_path / "out/model.tar.gz")
    assert packed is not None
    assert packed.files == 3
    assert packed.size == (tmp_path / "out/model.tar.gz").stat().st_size
    assert unpack(tmp_path / "out/model.tar.gz") == {**tree, "code": None}  # contract: F1
    with tarfile.open(tmp_path / "out/model.tar.gz") as tar:
        script, weights = tar.getmember("code/train.py"), tar.getmember("model.pth")
        assert (script.mode, script.uid, script.uname) == (0o750, 0, "root")
        assert weights.mtime == 1_600_000_000
    assert names(tmp_path / "out") == ["model.tar.gz"]
    subprocess.run(["gzip", "-t", str(tmp_path / "out/model.tar.gz")], check=True)


@pytest.mark.parametrize("there", [True, False])
def test_nothing_gives_no_archive(ml: Path, tmp_path: Path, there: bool) -> None:
    if there:
        (ml / "model").mkdir()
    assert pack({"algo-1": ml / "model"}, tmp_path / "model.tar.gz") is None  # contract: F5
    assert copy_uncompressed({"algo-1": ml / "model"}, tmp_path / "out") is None
    assert names(tmp_path) == ["ml"]


def test_hosts_are_merged_and_clashes_told(tmp_path: Path) -> None:
    trees = {
        "algo-10": plant(tmp_path / "10/ml/model", {"same": b"s", "differs": b"10", "ten": b"10"}),
        "algo-2": plant(
            tmp_path / "2/ml/model", {"same": b"s", "differs": b"two", "d/two": b"2", "kind/x": b""}
        ),
        "algo-1": plant(
            tmp_path / "1/ml/model", {"same": b"s", "differs": b"one", "d/one": b"1", "kind": b"f"}
        ),
    }
    packed = pack(trees, tmp_path / "model.tar.gz")
    assert packed is not None
    assert packed.clashes == ("differs", "kind")  # contract: F4
    assert unpack(tmp_path / "model.tar.gz") == {
        "same": b"s",
        "differs": b"one",
        "d": None,
        "d/one": b"1",
        "d/two": b"2",
        "kind": b"f",
        "ten": b"10",
    }


def test_links_and_special_files(ml: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    root = plant(ml / "model", {"d/real": b"r"})
    (root / "latest").symlink_to("d/real")
    (root / "absolute").symlink_to("/etc/hostname")
    (root / "up").symlink_to("../../secret")
    (root / "self").symlink_to(".")
    (root / "sneaky").symlink_to("self/../../../secret")
    (root / "above").symlink_to("self/..")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(root)
        try:
            sock.bind("socket")
        finally:
            os.chdir(here)
        packed = pack({"algo-1": root}, tmp_path / "model.tar.gz")
    assert packed is not None
    assert unpack(tmp_path / "model.tar.gz") == {"d": None, "d/real": b"r", "latest": "d/real", "self": "."}
    told = "\n".join(packed.warnings)  # contract: F26
    for name in ("absolute", "up", "sneaky", "above", "fifo", "socket", "latest"):
        assert f"algo-1:{name}" in told
    copied = copy_uncompressed({"algo-1": root}, tmp_path / "out")
    assert copied is not None
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == {
        "real": b"r",
        "latest": b"r",
    }


def test_a_link_in_place_of_the_directory_is_not_followed(ml: Path, tmp_path: Path) -> None:
    plant(tmp_path / "private", {"key": b"k"})
    (ml / "model").symlink_to(tmp_path / "private")
    with pytest.raises(ClientError, match="Artifact upload failed: on algo-1 model"):
        pack({"algo-1": ml / "model"}, tmp_path / "model.tar.gz")
    (ml / "output").symlink_to(tmp_path)
    with pytest.raises(ClientError, match="Artifact upload failed"):
        pack({"algo-1": ml / "output/private"}, tmp_path / "output.tar.gz")


def test_files_without_any_permission_are_packed(ml: Path, tmp_path: Path) -> None:
    root = plant(ml / "model", {"d/locked": b"x"})
    (root / "d/locked").chmod(0)
    packed = pack({"algo-1": root}, tmp_path / "model.tar.gz")
    assert packed is not None
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        assert tar.getmember("d/locked").mode == 0


def test_files_that_change_while_they_are_read(ml: Path, tmp_path: Path) -> None:
    size = 24 << 20
    root = plant(ml / "model", {"a-cut": bytes(size), "b-grows": b"g", "c-goes": b"c", "d": b"d"})
    called = []

    def progress(done: int, total: int, what: str) -> None:
        called.append((done, total, what))
        if len(called) == 1:
            os.truncate(root / "a-cut", 10)
            (root / "c-goes").unlink()

    packed = pack({"algo-1": root}, tmp_path / "model.tar.gz", progress=progress)
    assert packed is not None
    found = unpack(tmp_path / "model.tar.gz")
    assert found == {"a-cut": bytes(size), "b-grows": b"g", "d": b"d"}
    assert packed.warnings == (
        "a-cut changed while it was packed: its copy may be torn",
        "c-goes vanished before it was packed",
    )
    assert called[-1][:2] == (size + 3, size + 3)
    assert [done for done, _, _ in called] == sorted(done for done, _, _ in called)


def test_random_trees_survive(tmp_path: Path) -> None:
    dice = random.Random(3)
    for turn in range(20):
        tree: dict[str, bytes | None] = {}
        for _ in range(dice.randint(1, 12)):
            depth = dice.randint(1, 4)
            name = "/".join(
                dice.choice(["a", "b", "é", "x" * 120, " "]) + str(level) for level in range(depth)
            )
            tree[name + ".f"] = dice.randbytes(dice.choice([0, 1, 511, 512, 513, 3_000_000]))
        root = plant(tmp_path / f"{turn}/ml/model", tree)
        packed = pack({"algo-1": root}, tmp_path / "model.tar.gz")
        assert packed is not None
        assert packed.files == len(tree)
        assert {k: v for k, v in unpack(tmp_path / "model.tar.gz").items() if v is not None} == tree
        with tarfile.open(tmp_path / "model.tar.gz") as tar:
            assert tar.getnames() == sorted(tar.getnames())


def test_the_same_tree_gives_the_same_bytes(ml: Path, tmp_path: Path) -> None:
    root = plant(ml / "model", {"a": bytes(3_000_000), "b/c": os.urandom(2_000_000)})
    pack({"algo-1": root}, tmp_path / "one.tar.gz")
    pack({"algo-1": root}, tmp_path / "two.tar.gz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()


def test_a_full_disk_while_packing(ml: Path, small_disk: Path) -> None:
    root = plant(ml / "model", {"weights": os.urandom(16 << 20)})
    (small_disk / "model.tar.gz").write_bytes(b"old")
    with pytest.raises(ClientError, match=r"^Artifact upload failed:Insufficient disk space") as caught:
        pack({"algo-1": root}, small_disk / "model.tar.gz")
    assert caught.value.failure_reason.startswith(
        "ClientError: Artifact upload failed:Insufficient disk space"
    )
    assert names(small_disk) == ["model.tar.gz"]  # contract: F22
    assert (small_disk / "model.tar.gz").read_bytes() == b"old"
    assert (root / "weights").stat().st_size == 16 << 20
    with pytest.raises(ClientError, match="Insufficient disk space"):
        copy_uncompressed({"algo-1": root}, small_disk / "out")
    assert [path for path in (small_disk / "out").rglob("*") if path.is_file()] == []


def test_a_file_size_limit_while_packing(ml: Path, tmp_path: Path) -> None:
    root = plant(ml / "model", {"weights": os.urandom(8 << 20)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(ClientError, match="Insufficient disk space"):
            pack({"algo-1": root}, tmp_path / "out/model.tar.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path / "out") == []


def test_an_archive_in_the_store_is_an_object(ml: Path, tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "s3")
    uri = "s3://b/job/output/model.tar.gz"
    plant(ml / "model", {"w": bytes(20 << 20)})
    seen: list[list[str]] = []
    pack(
        {"algo-1": ml / "model"},
        store.path(uri),
        progress=lambda *_: seen.append([info.key for info in store.list("s3://b/")]),
    )
    assert len(seen) > 1
    assert not any(seen[:-1])  # nothing of it is visible before it is whole
    assert store.exists(uri)
    copied = copy_uncompressed({"algo-1": ml / "model"}, store.path("s3://b/job/output/model/"))
    assert copied is not None
    assert store.exists("s3://b/job/output/model/w")  # contract: F8, F9


@pytest.mark.parametrize("content", [b"", b"Exception: x", b"\xff\x00\xfe", "é".encode() * 2000])
def test_the_failure_file(ml: Path, content: bytes) -> None:
    plant(ml / "output", {"failure": content})
    told = read_failure(ml)
    assert told is not None
    assert content.startswith(told)
    assert (
        told.decode("utf-8", "replace")[:1024] == content.decode("utf-8", "replace")[:1024]
    )  # contract: F21


def test_a_huge_failure_file_is_read_at_once(ml: Path) -> None:
    plant(ml / "output", {"failure": b"x"})
    os.truncate(ml / "output/failure", 1 << 40)
    told = read_failure(ml)
    assert told is not None
    assert len(told) >= 1024


@pytest.mark.parametrize("kind", ["none", "fifo", "link", "linked directory", "directory", "dangling"])
def test_no_failure_file(ml: Path, tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "host", {"failure": b"secret of the machine"})
    failure = ml / "output/failure"
    if kind == "linked directory":
        (ml / "output").symlink_to(tmp_path / "host")
    else:
        failure.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(failure)
    elif kind == "link":
        failure.symlink_to(tmp_path / "host/failure")
    elif kind == "directory":
        failure.mkdir()
    elif kind == "dangling":
        failure.symlink_to("nothing")
    assert read_failure(ml) is None

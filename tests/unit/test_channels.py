"""Staging: which files a host finds in a channel, from where, and what it costs the second time."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from harness.channels import StagedChannel, collect, stage, used
from harness.errors import ClientError
from harness.model import JsonObject, LocalOptions, Upload
from harness.objects import ObjectStore

TARGET = PurePosixPath("/opt/ml/input/data/training")


class Bench:
    """A state directory, and a job to stage for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = ObjectStore(root / "s3")
        self.cache = root / "cache"

    def put(self, *keys: str) -> None:
        for key in keys:
            self.objects.put_bytes(f"s3://b/{key}", key.encode())

    def stage(
        self,
        *channels: JsonObject,
        uploads: Sequence[Upload] = (),
        hosts: Sequence[str] = ("algo-1",),
        mode: str = "File",
        **more: Any,
    ) -> dict[str, tuple[StagedChannel, ...]]:
        options: dict[str, Any] = {"local": LocalOptions(offline=True), **more}
        return stage(
            {"AlgorithmSpecification": {"TrainingInputMode": mode}, "InputDataConfig": list(channels)},
            uploads,
            objects=self.objects,
            cache=self.cache,
            job_dir=self.root / "jobs/job",
            hosts=hosts,
            **options,
        )

    def one(self, channel: JsonObject, **more: Any) -> StagedChannel:
        return self.stage(channel, **more)["algo-1"][0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def s3(uri: str, *, name: str = "training", kind: str = "S3Prefix", **more: Any) -> JsonObject:
    channel = {key: more.pop(key) for key in ("InputMode", "ShuffleConfig", "ContentType") if key in more}
    source = {"S3DataType": kind, "S3Uri": uri, **more}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **channel}


def file_system(path: str, *, kind: str = "EFS", access: str = "ro", **more: Any) -> JsonObject:
    source = {
        "FileSystemId": "fs-0123456789abcdef0",
        "FileSystemType": kind,
        "DirectoryPath": path,
        "FileSystemAccessMode": access,
    }
    return {"ChannelName": "training", "DataSource": {"FileSystemDataSource": source}, **more}


def seen(channel: StagedChannel) -> dict[str, bytes]:
    root = channel.mount.source
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def upload(path: Path, uri: str = "s3://b/job/input/training/") -> Upload:
    return Upload(path=path, uri=uri, kind="channel", channel="training")


# --- the local object store


def test_a_prefix_of_the_store(bench: Bench) -> None:
    bench.put("data/a.csv", "data/sub/b.csv", "data2/c.csv")
    channel = bench.one(s3("s3://b/data/", ContentType="text/csv"))
    assert seen(channel) == {"a.csv": b"data/a.csv", "sub/b.csv": b"data/sub/b.csv"}
    assert (channel.mode, channel.mount.mode, channel.mount.target) == ("File", "overlay", TARGET)  # B8
    assert (channel.files, channel.size) == (2, 24)
    assert (channel.distribution, channel.content_type) == ("FullyReplicated", "text/csv")
    assert json.loads(channel.manifest or b"") == [{"prefix": "s3://b/data/"}, "a.csv", "sub/b.csv"]  # B7
    for directory in (channel.mount.source, channel.mount.source / "sub"):
        assert directory.stat().st_mode & 0o777 == 0o755  # contract: B6
    assert (channel.mount.source / "a.csv").stat().st_mode & 0o777 == 0o644


def test_a_prefix_is_a_string(bench: Bench) -> None:
    bench.put("train/a", "train2/b", "train.csv", "test/c")
    channel = bench.one(s3("s3://b/train"))
    assert sorted(seen(channel)) == ["a", "train.csv", "train2/b"]  # contract: E5, E6
    assert "train.csv" in channel.warnings[0]
    assert json.loads(channel.manifest or b"") == [{"prefix": "s3://b/"}, "train.csv", "train/a", "train2/b"]
    whole = bench.one(s3("s3://b/tra"))
    assert sorted(seen(whole)) == ["train.csv", "train/a", "train2/b"]
    assert whole.warnings == ()
    assert sorted(seen(bench.one(s3("s3://b/train.csv")))) == ["train.csv"]


def test_fast_file_is_read_only_and_takes_folders(bench: Bench) -> None:
    bench.put("train/a", "train2/b")
    channel = bench.one(s3("s3://b/train", InputMode="FastFile"))
    assert (channel.mode, channel.mount.mode) == ("FastFile", "ro")  # contract: B16, E1
    assert sorted(seen(channel)) == ["a"]
    with pytest.raises(ClientError, match="whole folders"):  # contract: E9
        bench.one(s3("s3://b/tra"), mode="FastFile")


def test_markers_are_directories(bench: Bench) -> None:
    bench.put("data/a")
    for marker in ("data/", "data/empty/"):
        bench.objects.put_bytes(f"s3://b/{marker}", b"")
    channel = bench.one(s3("s3://b/data/"))
    assert sorted(
        str(path.relative_to(channel.mount.source)) for path in channel.mount.source.rglob("*")
    ) == [
        "a",
        "empty",
    ]  # contract: E7
    assert channel.files == 1


@pytest.mark.parametrize(
    "key", ["data/../../evil", "data//a", "data/" + "x" * 256, "data/sub/", "data/./a", "data/"]
)
def test_keys_that_can_be_no_files(bench: Bench, key: str) -> None:
    bench.put("data/good", key)
    with pytest.raises(ClientError, match="Data download failed") as caught:
        bench.one(s3("s3://b/data/"))
    assert f"s3://b/{key}" in str(caught.value)
    assert list((bench.cache / "channels").glob("*")) == []


def test_a_file_and_a_folder_at_once(bench: Bench) -> None:
    bench.put("data/a", "data/a/b")
    with pytest.raises(ClientError, match="'a/b' is a file and a folder at once"):
        bench.one(s3("s3://b/data/"))
    assert list((bench.cache / "channels").iterdir()) == []


def test_nothing_matches(bench: Bench) -> None:
    with pytest.raises(ClientError) as caught:
        bench.one(s3("s3://b/nothing/"))
    assert caught.value.failure_reason.startswith(  # contract: E7
        'ClientError: Data download failed: No S3 objects found under S3 URL "s3://b/nothing/"'
    )
    assert str(bench.objects.root) in str(caught.value)
    assert "--offline" in str(caught.value)


def test_content_is_frozen_and_reused(bench: Bench) -> None:
    bench.put("data/a", "data/b")
    first = bench.one(s3("s3://b/data/"))
    assert not first.reused
    again = bench.one(s3("s3://b/data/"))
    assert again.reused
    assert again.mount.source == first.mount.source
    bench.objects.put_bytes("s3://b/data/a", b"changed")
    bench.objects.delete("s3://b/data/b")
    assert seen(first) == {"a": b"data/a", "b": b"data/b"}
    third = bench.one(s3("s3://b/data/"))  # contract: E31
    assert not third.reused
    assert seen(third) == {"a": b"changed"}
    assert (third.mount.source / "a").stat().st_ino == bench.objects.path("s3://b/data/a").stat().st_ino


def test_data_on_another_file_system_is_copied(bench: Bench) -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("needs a second file system")
    place = Path("/dev/shm") / f"harness-test-{os.getpid()}"
    try:
        bench.cache = place
        bench.put("data/a")
        first = bench.one(s3("s3://b/data/"))
        assert seen(first) == {"a": b"data/a"}
        assert (first.mount.source / "a").stat().st_mode & 0o777 == 0o644
        assert bench.one(s3("s3://b/data/")).reused
    finally:
        shutil.rmtree(place)


def test_no_space(bench: Bench, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        bench.cache = small
        bench.objects.put_bytes("s3://b/data/big", bytes(2 << 20))
        with pytest.raises(ClientError) as caught:
            bench.one(s3("s3://b/data/"))
        assert caught.value.failure_reason.startswith(  # contract: E32
            "ClientError: Data download failed:Insufficient disk space"
        )
        assert list((small / "channels").iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_jobs_that_stage_the_same_at_once(bench: Bench) -> None:
    bench.put(*(f"data/{number}" for number in range(300)))
    results: list[StagedChannel] = []
    threads = [
        threading.Thread(target=lambda: results.append(bench.one(s3("s3://b/data/")))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.mount.source for result in results}) == 1
    assert sorted(result.reused for result in results) == [False, True, True, True]
    assert len(list((bench.cache / "channels").iterdir())) == 1


# --- several hosts


def test_shards_are_disjoint_and_complete(bench: Bench) -> None:
    dice = random.Random(5)
    bench.put(*(f"data/{dice.randrange(10**6)}" for _ in range(23)))
    hosts = [f"algo-{number}" for number in (1, 10, 2, 3)]
    for extra in ({}, {"ShuffleConfig": {"Seed": 7}}):
        channel = s3("s3://b/data/", S3DataDistributionType="ShardedByS3Key", **extra)
        shares = [bench.stage(channel, hosts=hosts)[host][0] for host in hosts]
        files = [set(seen(share)) for share in shares]
        assert sorted(map(len, files)) == [5, 6, 6, 6]  # contract: E23
        assert set.union(*files) == {info.key[5:] for info in bench.objects.list("s3://b/data/")}
        assert sum(map(len, files)) == 23
        assert shares[0].distribution == "ShardedByS3Key"
        assert [set(json.loads(share.manifest or b"")[1:]) for share in shares] == files
    plain = bench.stage(s3("s3://b/data/", S3DataDistributionType="ShardedByS3Key"), hosts=hosts)
    keys = [info.key[5:] for info in bench.objects.list("s3://b/data/")]
    assert sorted(seen(plain["algo-2"][0])) == keys[1::4]  # round-robin, hosts by number


def test_fewer_objects_than_hosts(bench: Bench) -> None:
    bench.put("data/a")
    staged = bench.stage(
        s3("s3://b/data/", S3DataDistributionType="ShardedByS3Key"), hosts=("algo-1", "algo-2")
    )
    assert [seen(staged[host][0]) for host in ("algo-1", "algo-2")] == [{"a": b"data/a"}, {}]
    assert "algo-2 gets no object" in staged["algo-2"][0].warnings[0]


def test_replicated_data_is_one_snapshot(bench: Bench) -> None:
    bench.put("data/a")
    staged = bench.stage(s3("s3://b/data/"), hosts=("algo-1", "algo-2"))
    assert staged["algo-1"][0].mount == staged["algo-2"][0].mount  # contract: E22


def test_instance_groups(bench: Bench) -> None:
    bench.put("data/a")
    staged = bench.stage(
        s3("s3://b/data/", InstanceGroupNames=["gpu"]),
        s3("s3://b/data/", name="all"),
        hosts=("algo-1", "algo-2"),
        groups={"algo-1": "cpu", "algo-2": "gpu"},
    )
    assert {host: [c.name for c in channels] for host, channels in staged.items()} == {
        "algo-1": ["all"],
        "algo-2": ["training", "all"],
    }  # contract: E25


# --- manifests


def manifest(bench: Bench, *rows: Any) -> None:
    bench.objects.put_bytes("s3://m/list.manifest", json.dumps(rows).encode())


def test_a_manifest_names_objects(bench: Bench) -> None:
    bench.put("data/a", "data/sub/b", "data/c")
    manifest(bench, {"prefix": "s3://b/data/"}, "sub/b", "a")
    channel = bench.one(s3("s3://m/list.manifest", kind="ManifestFile"))
    assert seen(channel) == {"a": b"data/a", "sub/b": b"data/sub/b"}  # contract: E18, E19
    assert json.loads(channel.manifest or b"") == [{"prefix": "s3://b/data/"}, "a", "sub/b"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "must be a JSON array"),
        ([{"prefix": "s3://b/data/"}], "must be a JSON array"),
        ([{"prefix": "s3://b/data/"}, 3], "must be a JSON array"),
        ([{"prefix": "b/data"}, "a"], "no S3 URI"),
        ([{"prefix": "s3://b/data/"}, "a", "gone"], "s3://b/data/gone.*which the manifest"),
        ([{"prefix": "s3://b/"}, "../evil"], "No S3 objects|can't be a file"),
    ],
)
def test_bad_manifests(bench: Bench, rows: list[Any], message: str) -> None:
    bench.put("data/a")
    manifest(bench, *rows)
    with pytest.raises(ClientError, match=message):
        bench.one(s3("s3://m/list.manifest", kind="ManifestFile"))


def test_a_manifest_that_is_no_json_or_not_there(bench: Bench) -> None:
    bench.objects.put_bytes("s3://m/list.manifest", b"\xff{")
    for uri, message in (("s3://m/list.manifest", "is no JSON"), ("s3://m/gone", "No S3 objects")):
        with pytest.raises(ClientError, match=message):
            bench.one(s3(uri, kind="ManifestFile"))


# --- local paths


def test_a_local_directory_is_mounted_where_it_lies(bench: Bench, tmp_path: Path) -> None:
    data = plant(tmp_path / "mine", "b", "a/c")
    channel = bench.one(s3("s3://b/job/input/training/"), uploads=[upload(data)])
    assert (channel.mount.source, channel.mount.mode, channel.reused) == (data, "overlay", True)
    assert (channel.files, channel.size) == (2, 4)
    assert json.loads(channel.manifest or b"") == [{"prefix": "s3://b/job/input/training/"}, "a/c", "b"]
    fast = bench.one(s3("s3://b/job/input/training/"), uploads=[upload(data)], mode="FastFile")
    assert fast.mount.mode == "ro"
    assert not (bench.cache / "channels").exists()


def test_a_local_file_is_a_channel_of_one(bench: Bench, tmp_path: Path) -> None:
    plant(tmp_path / "mine", "a.csv")
    one = upload(tmp_path / "mine/a.csv", "s3://b/job/input/training/a.csv")
    channel = bench.one(s3(one.uri), uploads=[one])
    assert seen(channel) == {"a.csv": b"a.csv"}
    assert json.loads(channel.manifest or b"") == [{"prefix": "s3://b/job/input/training/"}, "a.csv"]
    assert bench.one(s3(one.uri), uploads=[one]).reused


def test_links_that_lead_out_are_followed(bench: Bench, tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "big", "dir/x")
    data = plant(tmp_path / "mine", "a")
    (data / "inside").symlink_to("a")
    assert bench.one(s3("s3://b/x/"), uploads=[upload(data, "s3://b/x/")]).mount.source == data
    (data / "big").symlink_to(tmp_path / "elsewhere/big")
    (data / "dir").symlink_to("../elsewhere/dir")
    channel = bench.one(s3("s3://b/x/"), uploads=[upload(data, "s3://b/x/")])
    assert channel.mount.source != data  # a host would see dangling links
    assert seen(channel) == {"a": b"a", "inside": b"a", "big": b"big", "dir/x": b"dir/x"}
    assert not any(path.is_symlink() for path in channel.mount.source.rglob("*"))


def test_sharded_local_data(bench: Bench, tmp_path: Path) -> None:
    data = plant(tmp_path / "mine", "a", "b", "c")
    staged = bench.stage(
        s3("s3://b/x/", S3DataDistributionType="ShardedByS3Key"),
        uploads=[upload(data, "s3://b/x/")],
        hosts=("algo-1", "algo-2"),
    )
    assert sorted(seen(staged["algo-1"][0])) == ["a", "c"]
    assert sorted(seen(staged["algo-2"][0])) == ["b"]


@pytest.mark.parametrize("kind", ["missing", "empty", "dangling", "loop"])
def test_local_paths_that_cannot_be(bench: Bench, tmp_path: Path, kind: str) -> None:
    data = tmp_path / "mine"
    if kind != "missing":
        data.mkdir()
    if kind == "dangling":
        (data / "link").symlink_to("nowhere")
    if kind == "loop":
        (data / "link").symlink_to(data)
    with pytest.raises(ClientError, match="Data download failed") as caught:
        bench.one(s3("s3://b/x/"), uploads=[upload(data, "s3://b/x/")])
    assert str(data / "link" if kind in ("dangling", "loop") else data) in str(caught.value)


def test_special_files_are_told(bench: Bench, tmp_path: Path) -> None:
    data = plant(tmp_path / "mine", "a")
    os.mkfifo(data / "fifo")
    channel = bench.one(s3("s3://b/x/"), uploads=[upload(data, "s3://b/x/")])
    assert channel.files == 1
    assert "fifo" in channel.warnings[0]


UNREADABLE = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from harness.channels._items import read_tree
from harness.errors import ClientError
os.setgid(65534)
os.setuid(65534)
try:
    read_tree(Path(sys.argv[1]), "training")
except ClientError as error:
    print(error)
"""


def test_the_first_unreadable_file_is_named(bench: Bench, tmp_path: Path) -> None:
    data = plant(tmp_path / "mine", "a", "b", "c")
    (data / "b").chmod(0)
    named = f"Data download failed: channel training can't read {data / 'b'} (permission denied)"
    if os.geteuid():
        with pytest.raises(ClientError) as caught:
            bench.one(s3("s3://b/x/"), uploads=[upload(data, "s3://b/x/")])
        assert str(caught.value) == named
        return
    # Root can read everything: a child gives it up, its modules imported before.
    for parent in (data, *data.parents[:-2]):
        parent.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", UNREADABLE, str(data), str(Path(__file__).parents[2])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == named


# --- file systems


@pytest.mark.parametrize(
    ("kind", "path", "directory"),
    [
        ("EFS", "/", "."),
        ("EFS", "/data/train", "data/train"),
        ("FSxLustre", "/fsxname/data", "data"),
        ("FSxLustre", "/data/train", "data/train"),
    ],
)
@pytest.mark.parametrize("access", ["ro", "rw"])
def test_file_systems(
    bench: Bench, tmp_path: Path, kind: str, path: str, directory: str, access: str
) -> None:
    root = plant(tmp_path / "efs", "data/train/a")
    local = LocalOptions(file_systems={"fs-0123456789abcdef0": str(root)})
    channel = bench.one(file_system(path, kind=kind, access=access), local=local)
    assert channel.mount.source == root / directory  # contract: B17
    assert channel.mount.mode == access
    assert channel.manifest is None
    assert channel.distribution is None


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        (file_system("/data"), r"\[local.file_systems\] \"fs-0123456789abcdef0\" = "),
        (file_system("/../etc"), "may not contain"),
        (file_system("/nothing"), "is no directory"),
        (file_system("/", InputMode="FastFile"), "File mode only"),  # contract: E4
    ],
)
def test_file_systems_that_cannot_be(bench: Bench, tmp_path: Path, channel: JsonObject, message: str) -> None:
    mapped: Mapping[str, str] = {} if "local.file" in message else {"fs-0123456789abcdef0": str(tmp_path)}
    with pytest.raises(ClientError, match=message):
        bench.one(channel, local=LocalOptions(file_systems=mapped))


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        (s3("s3://b/x/", kind="AugmentedManifestFile"), "Pipe mode only, not File"),  # contract: E20
        (s3("s3://b/x/", kind="Converse"), "Converse"),  # contract: E28
        (s3("s3://b/x", kind="ManifestFile", InputMode="FastFile"), "S3Prefix only"),  # contract: E8
        ({"ChannelName": "training", "DataSource": {"DatasetSource": {}}}, "DatasetSource"),
    ],
)
def test_what_does_not_run_here(bench: Bench, channel: JsonObject, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        bench.one(channel)


# --- the cache


def test_collect_spares_what_is_mounted(bench: Bench) -> None:
    bench.put("old/a", "new/b")
    old = bench.one(s3("s3://b/old/"))
    bench.objects.delete("s3://b/old/a")  # now only the snapshot holds it
    new = bench.one(s3("s3://b/new/"))
    assert used(bench.root / "jobs/job") == (new.mount.source,)
    assert collect(bench.cache, keep=used(bench.root / "jobs/job"), dry_run=True) == len(b"old/a")
    assert old.mount.source.exists()
    assert collect(bench.cache, keep=used(bench.root / "jobs/job")) == len(b"old/a")
    assert not old.mount.source.exists()
    assert seen(new) == {"b": b"new/b"}
    assert collect(bench.cache) == 0  # the store still has b
    assert list((bench.cache / "channels").iterdir()) == []
    assert collect(bench.root / "nothing") == 0
    assert bench.objects.exists("s3://b/new/b")


def test_progress_reaches_the_total(bench: Bench) -> None:
    bench.put("data/a", "data/b")
    told: list[tuple[int, int, str]] = []
    bench.one(s3("s3://b/data/"), progress=lambda *args: told.append(args))
    assert told[-1] == (12, 12, "staging channel training")


@pytest.fixture
def many(bench: Bench) -> Iterator[Bench]:
    for folder in range(50):
        place = bench.objects.root / f"b/data/{folder:02}"
        place.mkdir(parents=True)
        for number in range(1000):
            (place / f"{number:04}").touch()
    yield bench
    shutil.rmtree(bench.root)


@pytest.mark.slow
def test_fifty_thousand_files_again(many: Bench) -> None:
    first = many.one(s3("s3://b/data/"))
    assert first.files == 50_000
    inode = first.mount.source.stat().st_ino
    start = time.perf_counter()
    again = many.one(s3("s3://b/data/"))
    taken = time.perf_counter() - start
    assert again.reused
    assert again.mount.source.stat().st_ino == inode  # nothing was made again
    print(f"50,000 unchanged files staged in {taken:.2f} s")  # measured in tests/bench, not judged here


# --- FastFile where the files lie


def test_a_fast_file_channel_is_mounted_as_it_is(bench: Bench, tmp_path: Path) -> None:
    """Whatever its size, nothing is done for an object; one that changes is seen changed. contract: E8, E10"""
    bench.put("data/a.csv", "data/sub/b.csv", "data2/c")
    for marker in ("data/", "data/sub/"):
        bench.objects.put_bytes(f"s3://b/{marker}", b"")
    plant(tmp_path / "mine", "x", "y/z")
    stored = bench.one(s3("s3://b/data/"), mode="FastFile")
    mine = bench.one(s3("s3://b/job/input/training/"), mode="FastFile", uploads=[upload(tmp_path / "mine")])
    for channel, place, names in (
        (stored, bench.objects.root / "b/data", ["a.csv", "sub/b.csv"]),
        (mine, tmp_path / "mine", ["x", "y/z"]),
    ):
        assert (channel.mount.source, channel.mount.mode) == (place, "ro")
        assert (channel.files, channel.reused) == (2, True)
        assert json.loads(channel.manifest or b"")[1:] == names
    assert not bench.cache.exists()


@pytest.mark.parametrize("odd", ["key that is no file", "marker of no folder", "link", "hidden", "sharded"])
def test_fast_file_without_a_directory_of_just_these(bench: Bench, tmp_path: Path, odd: str) -> None:
    bench.put("data/a", "data/b")
    wanted, hosts, more = ["a", "b"], ["algo-1"], {}
    if odd == "key that is no file":
        bench.put("data/x", "data/x/y")
        with pytest.raises(ClientError, match="a file and a folder at once"):
            bench.one(s3("s3://b/data/"), mode="FastFile")
        return
    if odd == "marker of no folder":
        bench.objects.put_bytes("s3://b/data/empty/", b"")
    elif odd == "link":
        plant(tmp_path / "elsewhere", "c")
        (bench.objects.root / "b/data/linked").symlink_to(tmp_path / "elsewhere")
        wanted.append("linked/c")
    elif odd == "hidden":
        (bench.objects.root / "b/data").chmod(0o700)
    else:
        hosts, more = ["algo-1", "algo-2"], {"S3DataDistributionType": "ShardedByS3Key"}
    staged = bench.stage(s3("s3://b/data/", **more), mode="FastFile", hosts=hosts)
    assert sorted(name for host in hosts for name in seen(staged[host][0])) == wanted  # contract: E23
    for host in hosts:
        [channel] = staged[host]
        assert (channel.mount.mode, bench.cache in channel.mount.source.parents) == ("ro", True)


def test_fast_file_of_nothing(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClientError, match="it is empty"):  # contract: E7
        bench.one(s3("s3://b/job/input/training/"), mode="FastFile", uploads=[upload(tmp_path / "empty")])


def test_fast_file_takes_no_longer_for_large_files(bench: Bench, tmp_path: Path) -> None:
    """No file is opened, or even looked at: not one that can't be read. contract: E8"""
    plant(tmp_path / "data", "a", "b")
    (tmp_path / "data/b").chmod(0)
    staged = bench.one(s3("s3://b/job/input/training/"), mode="FastFile", uploads=[upload(tmp_path / "data")])
    assert staged.files == 2


# --- the volume


@pytest.mark.parametrize(
    ("mode", "instance", "fits"),
    [
        ("File", "ml.m5.large", False),  # contract: E32
        ("FastFile", "ml.m5.large", True),  # contract: E29
        ("Pipe", "ml.m5.large", True),
        ("File", "ml.g5.2xlarge", True),  # contract: B11: its own disks
    ],
)
def test_data_must_fit_on_the_volume(
    bench: Bench, tmp_path: Path, mode: str, instance: str, fits: bool
) -> None:
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/big").open("wb") as file:
        file.truncate((1 << 30) + 1)
    request = {
        "AlgorithmSpecification": {"TrainingInputMode": mode},
        "InputDataConfig": [s3("s3://b/job/input/training/")],
        "ResourceConfig": {"InstanceType": instance, "InstanceCount": 1, "VolumeSizeInGB": 1},
    }

    def staged() -> None:
        stage(
            request,
            [upload(tmp_path / "data")],
            objects=bench.objects,
            cache=bench.cache,
            job_dir=bench.root / "jobs/job",
            hosts=["algo-1"],
            local=LocalOptions(offline=True),
        )

    if fits:
        staged()
    else:
        with pytest.raises(
            ClientError, match=r"Data download failed:Insufficient disk space \(algo-1 gets 1\.0 GiB"
        ):
            staged()

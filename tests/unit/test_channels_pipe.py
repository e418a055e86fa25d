"""Pipe mode without a host: a real feeding process, real FIFOs, this process as the reader."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.channels import Feeder, stage
from harness.channels._recordio import LARGEST, frames, padding
from harness.channels._streams import Stream, share
from harness.errors import ClientError, InternalServerError, JobError
from harness.model import JsonObject, LocalOptions, Upload
from harness.objects import ObjectStore

PATIENCE = 20.0


class Place:
    """An object store, and the /opt/ml of some hosts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = ObjectStore(root / "s3")

    def put(self, **objects: bytes) -> None:
        for key, data in objects.items():
            self.objects.put_bytes(f"s3://b/data/{key}", data)

    def data(self, host: str = "algo-1") -> Path:
        return self.root / host / "ml/input/data"

    @contextlib.contextmanager
    def feeding(
        self,
        *channels: JsonObject,
        hosts: Sequence[str] = ("algo-1",),
        uploads: Sequence[Upload] = (),
        local: LocalOptions | None = None,
    ) -> Iterator[Feeder]:
        local = local or LocalOptions(offline=True)
        staged = stage(
            {"AlgorithmSpecification": {"TrainingInputMode": "Pipe"}, "InputDataConfig": list(channels)},
            uploads,
            objects=self.objects,
            cache=self.root / "cache",
            job_dir=self.root / "jobs/job",
            hosts=hosts,
            local=local,
        )
        for host in hosts:
            self.data(host).mkdir(parents=True, exist_ok=True)
        feeder = Feeder(
            "job",
            staged,
            trees={host: self.root / host / "ml" for host in hosts},
            objects=self.objects,
            uploads=uploads,
            local=local,
            region=None,
        )
        try:
            yield feeder
        finally:
            feeder.close()

    def read(self, name: str, host: str = "algo-1") -> bytes:
        return self.await_fifo(name, host).read_bytes()

    def await_fifo(self, name: str, host: str = "algo-1") -> Path:
        path = self.data(host) / name
        until(path.exists)
        return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def channel(name: str = "training", uri: str = "s3://b/data/", **more: Any) -> JsonObject:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri}
    source |= {key: more.pop(key) for key in list(more) if key in _OF_SOURCE}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **more}


_OF_SOURCE = ("S3DataType", "S3DataDistributionType", "AttributeNames")


def records(data: bytes) -> list[bytes]:
    """As AWS's own reader takes RecordIO apart."""
    found, at, parts = [], 0, b""
    while at < len(data):
        magic, word = struct.unpack_from("<II", data, at)
        assert magic == 0xCED7230A
        length, flag = word & (1 << 29) - 1, word >> 29
        parts += data[at + 8 : at + 8 + length]
        pad = -length % 4
        assert data[at + 8 + length : at + 8 + length + pad] == bytes(pad)
        at += 8 + length + pad
        if flag not in (1, 2):
            found.append(parts)
            parts = b""
    return found


# --- epochs


def test_an_epoch_is_a_fifo(place: Place) -> None:
    place.put(b=b"second\n", a=b"first\n", c=b"third\n")
    with place.feeding(channel()) as feeder:
        # contract: E11. The first is there before any host can look, a directory never.
        assert stat.filemode((place.data() / "training_0").lstat().st_mode) == "prw-r--r--"
        assert [path.name for path in place.data().iterdir()] == ["training_0"]
        for epoch in range(3):
            assert place.read(f"training_{epoch}") == b"first\nsecond\nthird\n"  # contract: E14
        assert feeder.problem() is None
    assert list(place.data().iterdir()) == []


def test_the_next_fifo_comes_after_the_close(place: Place) -> None:
    place.put(a=b"x" * 10)
    with place.feeding(channel()), (place.data() / "training_0").open("rb") as file:
        assert file.read() == b"x" * 10
        time.sleep(0.3)
        assert not (place.data() / "training_1").exists()  # contract: E12
        file.close()
        place.await_fifo("training_1")
        assert not (place.data() / "training_0").exists()


def test_a_reader_may_close_early(place: Place) -> None:
    place.put(a=b"head", b=b"x" * 8_000_000)
    with place.feeding(channel()) as feeder:
        for epoch in range(3):
            with place.await_fifo(f"training_{epoch}").open("rb", buffering=0) as file:
                assert file.read(4) == b"head"  # contract: E12
        assert place.read("training_3") == b"head" + b"x" * 8_000_000
        assert feeder.problem() is None


def test_a_reader_that_is_killed(place: Place) -> None:
    place.put(a=b"x" * 8_000_000)
    with place.feeding(channel()) as feeder:
        script = "import sys\nfile = open(sys.argv[1], 'rb', 0)\nfile.read(9)\ninput()"
        fifo = str(place.data() / "training_0")
        reader = subprocess.Popen([sys.executable, "-c", script, fifo], stdin=subprocess.PIPE)
        with reader:
            time.sleep(0.3)
            reader.kill()
        assert len(place.read("training_1")) == 8_000_000
        assert feeder.problem() is None


def test_a_slow_reader_holds_the_feeder_back(place: Place) -> None:
    (place.root / "data").mkdir()
    with (place.root / "data/big").open("wb") as file:
        file.truncate(1 << 30)
    uploads = [Upload(path=place.root / "data", uri="s3://b/data/", kind="channel")]
    with place.feeding(channel(), uploads=uploads), (place.data() / "training_0").open("rb", 0) as fifo:
        fifo.read(1)
        [process] = feeders()
        time.sleep(0.3)
        before = process.memory_info().rss
        spent = process.cpu_times().user
        time.sleep(0.5)
        assert process.memory_info().rss - before < 4 << 20
        assert process.cpu_times().user - spent < 0.2  # it waits


def test_two_readers_share_the_stream(place: Place) -> None:
    place.put(a=bytes(range(256)) * 20_000)
    with place.feeding(channel()):
        counts = []

        def read() -> None:
            with (place.data() / "training_0").open("rb", 0) as file:
                count = 0
                while piece := file.read(4096):
                    count += len(piece)
                counts.append(count)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(counts) == 2
        assert sum(counts) == 256 * 20_000  # contract: E13
        place.await_fifo("training_1")


def test_channels_are_independent(place: Place) -> None:
    place.put(a=b"x" * 3_000_000)
    place.objects.put_bytes("s3://b/other/a", b"other")
    with place.feeding(channel(), channel("never"), channel("other", "s3://b/other/")):
        with (place.data() / "training_0").open("rb", 0) as file:  # contract: E13
            assert file.read(1) == b"x"
            for epoch in range(5):
                assert place.read(f"other_{epoch}") == b"other"
            assert place.read("never_0") == b"x" * 3_000_000
        assert place.read("training_1") == b"x" * 3_000_000


def test_a_directory_in_the_place_of_a_fifo(place: Place) -> None:
    place.put(a=b"x")
    channels = channel(), channel("training_3", InputMode="File")
    with pytest.raises(ClientError, match="training has its FIFO for epoch 3"), place.feeding(*channels):
        pass
    with place.feeding(channel(), channel("training_x", InputMode="File"), channel("training_3")):
        assert place.read("training_3_0") == b"x"


def test_a_reader_that_stays_delays_only_its_own_channel(place: Place) -> None:
    place.put(a=b"x")
    with place.feeding(channel(), channel("other")):
        with (place.data() / "training_0").open("rb") as file:
            assert file.read() == b"x"
            for epoch in range(3):
                assert place.read(f"other_{epoch}") == b"x"
            assert not (place.data() / "training_1").exists()
        assert place.read("training_1") == b"x"  # contract: E12, E13


# --- what is in it


def test_records(place: Place) -> None:
    objects = {"a": b"", "b": b"x", "c": b"four", "d": bytes(range(256)) * 5000}
    place.put(**objects)
    with place.feeding(channel(RecordWrapperType="RecordIO")):  # contract: E15
        data = place.read("training_0")
    assert data[:8] == bytes.fromhex("0a23d7ce00000000")  # contract: E16
    assert records(data) == list(objects.values())


def test_records_that_are_too_long_for_one_header() -> None:
    assert [(header.hex(), length) for header, length in frames(5)] == [("0a23d7ce05000000", 5)]
    for length in (LARGEST, LARGEST + 1, 2 * LARGEST, 3 * LARGEST + 7):
        parts = list(frames(length))
        flags = [struct.unpack("<II", header)[1] >> 29 for header, _ in parts]
        assert sum(part for _, part in parts) == length
        assert all(part % 4 == 0 for _, part in parts[:-1])
        assert flags == ([0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3])  # contract: E16
        assert (length + len(padding(length))) % 4 == 0


@pytest.mark.parametrize("wrapper", ["None", "RecordIO"])
def test_gzip_is_decompressed(place: Place, wrapper: str) -> None:
    text = b"some text\n" * 300_000
    two = gzip.compress(b"one ") + gzip.compress(b"two")
    place.put(a=gzip.compress(text), b=two, c=gzip.compress(b"") + b"\0" * 512)
    with place.feeding(channel(CompressionType="Gzip", RecordWrapperType=wrapper)):  # contract: E17
        data = place.read("training_0")
    assert (records(data) if wrapper == "RecordIO" else data) == (
        [text, b"one two", b""] if wrapper == "RecordIO" else text + b"one two"
    )


def test_without_gzip_bytes_come_as_they_are(place: Place) -> None:
    packed = gzip.compress(b"text")
    place.put(a=packed)
    with place.feeding(channel()):
        assert place.read("training_0") == packed


def test_a_manifest_is_streamed_in_its_order(place: Place) -> None:
    place.put(a=b"a", b=b"b", c=b"c")
    rows = [{"prefix": "s3://b/data/"}, "c", "a"]
    place.objects.put_bytes("s3://b/list", json.dumps(rows).encode())
    with place.feeding(channel(uri="s3://b/list", S3DataType="ManifestFile")):
        assert place.read("training_0") == b"ca"  # contract: E14, E18


def test_markers_are_no_content(place: Place) -> None:
    place.put(a=b"a")
    place.objects.put_bytes("s3://b/data/", b"")
    place.objects.put_bytes("s3://b/data/folder/", b"")
    with place.feeding(channel(RecordWrapperType="RecordIO")):
        assert records(place.read("training_0")) == [b"a"]  # contract: E7


def test_objects_whose_keys_cannot_be_files(place: Place) -> None:
    place.put(**{"a//b": b"1", "a": b"2", "../c": b"3"})
    with pytest.raises(ClientError, match="can't be a file"), place.feeding(channel()):
        pass


# --- order and shares


def test_shuffling_is_new_in_each_epoch(place: Place) -> None:
    names = [chr(ord("a") + number) for number in range(20)]
    place.put(**{name: name.encode() for name in names})
    epochs = {}
    for attempt in range(2):
        with place.feeding(channel(ShuffleConfig={"Seed": 7})):  # contract: E24
            epochs[attempt] = [place.read(f"training_{epoch}").decode() for epoch in range(3)]
    assert epochs[0] == epochs[1]
    assert len({*epochs[0], "".join(names)}) == 4
    assert all(sorted(order) == names for order in epochs[0])


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_shares_are_disjoint_and_complete(seed: int | None, hosts: int) -> None:
    names = tuple(f"algo-{number + 1}" for number in range(hosts))
    stream = Stream(channel="c", hosts=names, sharded=True, seed=seed, gzip=False, recordio=False, sources=())
    moved = False
    for count in (0, 1, 5, 1000):
        for epoch in range(3):
            shares = [list(share(stream, host, epoch, count)) for host in names]
            assert sorted(itertools.chain(*shares)) == list(range(count))  # contract: E23
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            moved = moved or shares[0] != list(share(stream, names[0], 0, count))
    assert moved == (seed is not None)  # contract: E24


def test_hosts_get_their_shares(place: Place) -> None:
    names = "abcdefg"
    place.put(**{name: name.encode() for name in names})
    place.objects.put_bytes("s3://b/all/x", b"everything")
    hosts = ["algo-1", "algo-2", "algo-10"]
    channels = (
        channel(S3DataDistributionType="ShardedByS3Key", ShuffleConfig={"Seed": 1}),
        channel("whole", "s3://b/all/"),
    )
    with place.feeding(*channels, hosts=hosts):
        for epoch in range(2):
            got = [place.read(f"training_{epoch}", host).decode() for host in hosts]
            assert sorted("".join(got)) == sorted(names)  # contract: E23
            assert sorted(map(len, got)) == [2, 2, 3]
        for host in hosts:
            assert place.read("whole_0", host) == b"everything"  # contract: E22


# --- augmented manifests


LINES = [
    {"image-ref": "s3://b/images/one.jpg", "label": 1, "words": "é – a text", "box": {"left": [1, 2]}},
    {"image-ref": "s3://b/images/two.jpg", "label": 0, "words": "", "box": None},
]


def augmented(place: Place, lines: Sequence[Any] = LINES, **more: Any) -> JsonObject:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    place.objects.put_bytes("s3://b/lists/train.manifest", text.encode() + b"\n\n")
    for name in ("one", "two"):
        place.objects.put_bytes(f"s3://b/images/{name}.jpg", name.encode() * 100_000)
    options = {
        "RecordWrapperType": "RecordIO",
        "AttributeNames": ["label", "image-ref", "box", "words"],
        **more,
    }
    return channel(uri="s3://b/lists/train.manifest", S3DataType="AugmentedManifestFile", **options)


def test_attributes_are_streamed_in_order(place: Place) -> None:
    with place.feeding(augmented(place)):
        assert records(place.read("training_0")) == [  # contract: E20, E21
            *(b"1", b"one" * 100_000, b'{"left":[1,2]}', "é – a text".encode()),
            *(b"0", b"two" * 100_000, b"null", b""),
        ]


def test_without_a_wrapper_nothing_is_between_them(place: Place) -> None:
    told = augmented(place, RecordWrapperType="None", AttributeNames=["words", "image-ref", "label"])
    with place.feeding(told):
        assert (
            place.read("training_0")
            == "é – a text".encode() + b"one" * 100_000 + b"1" + b"two" * 100_000 + b"0"
        )


def test_lines_are_shuffled_and_shared(place: Place) -> None:
    lines = [{"n": number, "m": -number} for number in range(30)]
    told = augmented(
        place,
        lines,
        AttributeNames=["n", "m"],
        ShuffleConfig={"Seed": 5},
        S3DataDistributionType="ShardedByS3Key",
    )
    orders = []
    with place.feeding(told, hosts=["algo-1", "algo-2"]):
        for epoch in range(2):
            got = [records(place.read(f"training_{epoch}", host)) for host in ("algo-1", "algo-2")]
            for found in got:
                assert [-int(n) for n in found[::2]] == [int(m) for m in found[1::2]]  # lines stay whole
            orders.append([int(n) for found in got for n in found[::2]])
            assert sorted(orders[-1]) == list(range(30))  # contract: E23, E24
    assert orders[0] != orders[1]


def test_a_reference_into_an_upload(place: Place, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"mine")
    uploads = [Upload(path=tmp_path / "images", uri="s3://up/job/images/", kind="channel")]
    told = augmented(place, [{"x-ref": "s3://up/job/images/a.jpg"}], AttributeNames=["x-ref"])
    with place.feeding(told, uploads=uploads):
        assert records(place.read("training_0")) == [b"mine"]


# --- what goes wrong


def problem(feeder: Feeder) -> JobError:
    until(lambda: feeder.problem() is not None)
    found = feeder.problem()
    assert found is not None
    return found


@contextlib.contextmanager
def reader_of(place: Place) -> Iterator[list[bytes]]:
    """A thread that reads the first epoch; what it has got when that has ended, if ever."""
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(place.read("training_0")), daemon=True)
    thread.start()
    yield got
    thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 of s3://b/lists/train.manifest is no JSON"),
        ("[1]", "line 2 of s3://b/lists/train.manifest is no JSON object"),
        ('{"label": 1}', "has no attribute 'image-ref', which AttributeNames asks for; it has label"),
        ('{"label": 1, "image-ref": 5}', "has no S3 URI in 'image-ref'"),
        ('{"label": 1, "image-ref": "s3://b/images/no.jpg"}', "finds no object s3://b/images/no.jpg"),
    ],
)
def test_lines_that_are_wrong(place: Place, line: str, words: str) -> None:
    told = augmented(place, [LINES[0], line], AttributeNames=["label", "image-ref"])
    with reader_of(place) as got, place.feeding(told) as feeder:
        error = problem(feeder)
        assert isinstance(error, ClientError)
        assert error.failure_reason.startswith("ClientError: Data download failed: channel training")
        assert words in str(error)
        assert got == []  # the epoch doesn't look as if it had ended


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"labels": 1}', "the first line of s3://b/lists/train.manifest has no attribute 'label'"),
        ("no JSON", "the first line of s3://b/lists/train.manifest is no JSON"),
        (" ", "the augmented manifest s3://b/lists/train.manifest is empty"),
    ],
)
def test_a_first_line_that_is_wrong_is_seen_before_the_start(place: Place, line: str, words: str) -> None:
    told = augmented(place, [line], AttributeNames=["label"])
    with pytest.raises(ClientError, match=words), place.feeding(told):
        pass


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"no gzip", "is no gzip file"), (gzip.compress(b"text" * 1000)[:-9], "ends too early")],
)
def test_gzip_that_is_none(place: Place, data: bytes, words: str) -> None:
    place.put(a=data)
    with reader_of(place) as got, place.feeding(channel(CompressionType="Gzip")) as feeder:
        assert words in str(problem(feeder))
        assert got == []


def test_an_object_that_is_gone(place: Place) -> None:
    place.put(a=b"1", b=b"2")
    with place.feeding(channel()) as feeder:
        place.objects.delete("s3://b/data/b")
        with reader_of(place) as got:
            error = problem(feeder)
            assert "No such file or directory" in str(error)
            assert str(place.root / "s3/b/data/b") in str(error)
            assert got == []
            feeder.close()
    assert feeder.problem() is error


@pytest.mark.parametrize("other", ["link to a file", "link to a FIFO", "file"])
def test_something_else_in_the_place_of_a_fifo(place: Place, other: str) -> None:
    place.put(a=b"data")
    secret = place.root / "secret"
    os.mkfifo(secret) if other == "link to a FIFO" else secret.write_text("keep")
    with place.feeding(channel()) as feeder:
        with (place.data() / "training_0").open("rb") as file:
            file.read()
            if other == "file":
                (place.data() / "training_1").write_text("mine")
            else:
                (place.data() / "training_1").symlink_to(secret)
        assert "put something else in the place of /opt/ml/input/data/training_1" in str(problem(feeder))
    assert other == "link to a FIFO" or secret.read_text() == "keep"


def feeders(parent: int | None = None) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(parent).children(recursive=True)
        if "harness.channels" in child.cmdline()
    ]


def test_a_feeder_that_is_killed_is_noticed(place: Place) -> None:
    place.put(a=b"x" * 8_000_000)
    with place.feeding(channel()) as feeder, (place.data() / "training_0").open("rb", 0) as file:
        file.read(1)
        [process] = feeders()
        process.kill()
        error = problem(feeder)
        assert isinstance(error, InternalServerError)
        assert "was killed by signal 9" in str(error)


@pytest.mark.parametrize("blocked", ["in open", "in write"])
def test_closing_ends_a_feeder_that_waits(place: Place, blocked: str) -> None:
    place.put(a=b"x" * 8_000_000)
    with place.feeding(channel()) as feeder, contextlib.ExitStack() as stack:
        if blocked == "in write":
            file = stack.enter_context((place.data() / "training_0").open("rb", 0))
            file.read(1)
        [process] = feeders()
        began = time.monotonic()
        feeder.close()
        assert time.monotonic() - began < 5
        assert not process.is_running()
        assert list(place.data().iterdir()) == []


PARENT = """
import os, sys, time
from pathlib import Path
from tests.unit.test_channels_pipe import Place, channel

place = Place(Path(sys.argv[1]))
with place.feeding(channel()):
    if os.fork() == 0:
        time.sleep(60)  # has all descriptors of its parent, the feeder's standard input too
    print("fed", flush=True)
    time.sleep(60)
"""


def test_a_feeder_dies_with_its_parent(place: Place) -> None:
    place.put(a=b"x" * 8_000_000)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(place.root)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"fed\n"
            [process] = feeders(parent.pid)
            parent.kill()
            until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


# --- the pace of S3


def timed(place: Place, local: LocalOptions, size: int) -> float:
    with place.feeding(channel(), local=local):
        began = time.monotonic()
        assert len(place.read("training_0")) == size
        return time.monotonic() - began


def test_latency_is_per_object(place: Place) -> None:
    place.put(**{f"o{number}": b"x" for number in range(10)})
    assert timed(place, LocalOptions(offline=True, s3_latency_ms=50), 10) >= 0.5


def test_throughput_is_of_the_host(place: Place) -> None:
    place.put(a=random.Random(1).randbytes(1_000_000))
    with place.feeding(channel(), channel("other"), local=LocalOptions(offline=True, s3_throughput_mbps=20)):
        began = time.monotonic()
        with reader_of(place) as got:
            assert len(place.read("other_0")) == 1_000_000
        took = time.monotonic() - began
    assert [len(data) for data in got] == [1_000_000]
    assert took >= 0.65  # 16 Mbit at 20 Mbit/s, of which a tenth of a second may come at once


def test_file_mode_takes_as_long_to_download(place: Place) -> None:
    place.put(**{f"o{number}": b"x" * 1000 for number in range(32)})
    told: list[tuple[int, int, str]] = []

    def staged(mode: str, **pace: float) -> float:
        began = time.monotonic()
        stage(
            {"AlgorithmSpecification": {"TrainingInputMode": mode}, "InputDataConfig": [channel()]},
            (),
            objects=place.objects,
            cache=place.root / "cache",
            job_dir=place.root / "jobs/job",
            hosts=["algo-1", "algo-2"],
            local=LocalOptions(offline=True, **pace),
            progress=lambda *what: told.append(what),
        )
        return time.monotonic() - began

    assert staged("File") < 0.5
    assert staged("File", s3_latency_ms=250) >= 0.5  # 16 at a time
    assert staged("File", s3_throughput_mbps=0.512) >= 0.5
    assert staged("FastFile", s3_latency_ms=300) >= 0.3  # one listing
    assert any("pace" in what for _, _, what in told)


def test_what_the_feeding_process_is_told() -> None:
    stream = Stream(
        channel="c",
        hosts=("algo-1",),
        sharded=False,
        seed=2,
        gzip=True,
        recordio=True,
        sources=[],
        attributes=("a",),
    )
    told: Mapping[str, Any] = json.loads(json.dumps(stream.to_json()))
    assert Stream.from_json(dict(told)) == stream

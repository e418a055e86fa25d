"""Input modes: what a script waits for its data."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.bench import rows
from tests.bench.rows import Measured

OBJECTS = 100_000


def pipe_of_large_files(place: Path, runs: int) -> Measured:
    """40 files of 10 MB."""
    return _pipe(place, runs, files=40, size=10_000_000)


def pipe_of_small_files(place: Path, runs: int) -> Measured:
    """20,000 files of 10 kB, each a RecordIO record: `cat` needn't frame anything."""
    return _pipe(place, runs, files=20_000, size=10_000, RecordWrapperType="RecordIO")


def fast_file(place: Path, runs: int) -> Measured:
    """From the start of staging 100,000 objects to what the host mounts, beside a listing of them by `find`."""
    from harness.channels import stage
    from harness.model import LocalOptions
    from harness.objects import ObjectStore

    folder = place / "s3/b/data"
    _plant(folder, OBJECTS, b"x" * 100)
    objects = ObjectStore(place / "s3")
    measured = Measured(unit="s", compare="none")
    for number in range(runs + 1):
        before = time.perf_counter()
        with Path(os.devnull).open("wb") as null:
            subprocess.run(["find", str(folder)], stdout=null, check=True)
        measured.theirs.append(time.perf_counter() - before)
        before = time.perf_counter()
        staged = stage(
            _request("FastFile"),
            (),
            objects=objects,
            cache=place / "cache",
            job_dir=place / f"jobs/{number}",
            hosts=["algo-1"],
            local=LocalOptions(offline=True),
        )["algo-1"][0]
        measured.ours.append(time.perf_counter() - before)
        assert staged.files == OBJECTS
    assert not (place / "cache").exists()  # nothing was linked or copied
    measured.note = "theirs: `find` of the same directory"
    return rows.warmed(measured)


def sharding(place: Path, runs: int) -> Measured:
    """100,000 objects over seven hosts, in three epochs: dealing them out, and whether each is dealt once."""
    from harness.channels._streams import Stream, share

    del place
    hosts = tuple(f"algo-{number + 1}" for number in range(7))
    stream = Stream(channel="c", hosts=hosts, sharded=True, seed=1, gzip=False, recordio=False, sources=())
    measured = Measured(unit="s", compare="none")
    for _ in range(runs + 1):
        before = time.perf_counter()
        shares = [[share(stream, host, epoch, OBJECTS) for host in hosts] for epoch in range(3)]
        measured.ours.append(time.perf_counter() - before)
        for epoch in shares:
            assert sorted(number for part in epoch for number in part) == list(range(OBJECTS))
    measured.note = "disjoint and complete in every epoch"
    return rows.warmed(measured)


def _pipe(place: Path, runs: int, *, files: int, size: int, **channel: Any) -> Measured:
    """One epoch, from the opening of its FIFO to its end, beside `cat` of the same files into a FIFO."""
    data = place / "data"
    _plant(data, files, os.urandom(size), folders=1)
    measured = Measured(unit="s", compare="speed-up")
    fifo = place / "cat"
    with _fed(place, data, channel) as names:
        for number in range(runs + 1):
            path = names / f"training_{number}"
            while not path.exists():
                time.sleep(0.001)
            time.sleep(0.2)  # the machine is quiet again
            measured.ours.append(_drain(path))
            os.mkfifo(fifo)
            with subprocess.Popen(["sh", "-c", 'exec cat "$0"/*/* > "$1"', str(data), str(fifo)]):
                time.sleep(0.2)
                measured.theirs.append(_drain(fifo))
            fifo.unlink()
    total = files * size / 1e6
    speeds = [total / min(side[1:]) for side in (measured.ours, measured.theirs)]
    measured.note = f"at best {speeds[0]:,.0f} MB/s, cat {speeds[1]:,.0f} MB/s"
    return rows.warmed(measured)


@contextlib.contextmanager
def _fed(place: Path, data: Path, channel: Mapping[str, Any]) -> Iterator[Path]:
    from harness.channels import Feeder, stage
    from harness.model import LocalOptions, Upload
    from harness.objects import ObjectStore

    objects, local = ObjectStore(place / "s3"), LocalOptions(offline=True)
    uploads = [Upload(path=data, uri="s3://b/data/", kind="channel")]
    staged = stage(
        _request("Pipe", channel),
        uploads,
        objects=objects,
        cache=place / "cache",
        job_dir=place / "jobs/bench",
        hosts=["algo-1"],
        local=local,
    )
    names = place / "ml/input/data"
    names.mkdir(parents=True)
    feeder = Feeder(
        "bench",
        staged,
        trees={"algo-1": place / "ml"},
        objects=objects,
        uploads=uploads,
        local=local,
        region=None,
    )
    try:
        yield names
    finally:
        feeder.close()


def _request(mode: str, channel: Mapping[str, Any] | None = None) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://b/data/"}
    return {
        "AlgorithmSpecification": {"TrainingInputMode": mode},
        "InputDataConfig": [
            {"ChannelName": "training", "DataSource": {"S3DataSource": source}, **(channel or {})}
        ],
    }


def _plant(root: Path, files: int, content: bytes, folders: int = 100) -> None:
    each = -(-files // folders)
    for folder in range(folders):
        directory = root / f"{folder:03}"
        directory.mkdir(parents=True)
        for number in range(min(each, files - folder * each)):
            (directory / f"{number:05}").write_bytes(content)


def _drain(path: Path) -> float:
    """Seconds from opening to the end."""
    buffer = bytearray(1 << 20)
    before = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - before

"""Input modes in whole jobs: what a script finds, in both engines, and what becomes of who feeds it."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.home import Home
from harness.lifecycle import end_idle, recover, warm_sets
from harness.objects import ObjectStore
from harness.spec import load
from harness.store import Store
from harness.targets import local
from tests.jobs.conftest import Job, Submit

READER = """
    import errno, json, os, stat, sys, time

    DATA = "/opt/ml/input/data"

    def epoch(channel, number):
        path = f"{DATA}/{channel}_{number}"
        while not os.path.exists(path):
            time.sleep(0.001)
        assert stat.S_ISFIFO(os.stat(path).st_mode)
        with open(path, "rb") as file:
            return file.read()

    """


@pytest.fixture
def objects(home: Path) -> ObjectStore:
    return ObjectStore(Home(home).s3)


def s3(uri: str, **more: Any) -> dict[str, Any]:
    return {"s3_data": uri, **more}


def feeders(job: Job) -> list[psutil.Process]:
    """Every process of this machine that feeds the job's FIFOs."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "harness.channels" in words and words[-1] == job.name:
            found.append(process)
    return found


def supervisor(job: Job) -> int:
    return int((job.home.job(job.name) / "supervisor.lock").read_text())


EVERYTHING = (
    READER
    + """
    told = {
        "listing": sorted(os.listdir(DATA)),
        "config": json.load(open("/opt/ml/input/config/inputdataconfig.json")),
        "variable": os.environ["SM_CHANNEL_STREAM"],
        "shards": [epoch("stream", n).decode() for n in range(3)],
        "records": epoch("records", 0).hex(),
        "unzipped": epoch("unzipped", 0).decode(),
        "lines": epoch("lines", 0).hex(),
        "file": open(DATA + "/file/a").read(),
        "fast": open(DATA + "/fast/sub/a").read(),
    }
    for name, change in (("write", lambda: open(DATA + "/fast/new", "w")), ("remove", lambda: os.remove(DATA + "/fast/sub/a"))):
        try:
            change()
        except OSError as error:
            told[name] = errno.errorcode[error.errno]
    open(DATA + "/file/a", "w").close()
    open(DATA + "/file/new", "w").close()
    with open("/opt/ml/model/" + os.environ["SM_CURRENT_HOST"] + ".json", "w") as file:
        json.dump(told, file)
    """
)


def test_every_input_mode_at_once(run: Submit, objects: ObjectStore, engine_name: str) -> None:
    for number in range(5):
        objects.put_bytes(f"s3://b/many/{number}", str(number).encode())
    objects.put_bytes("s3://b/one/sub/a", b"one")
    objects.put_bytes("s3://b/one/a", b"one")
    objects.put_bytes("s3://b/zip/a.gz", gzip.compress(b"text"))
    objects.put_bytes("s3://b/list", b'{"label": 7, "image-ref": "s3://b/one/a"}\n')
    job = run(
        EVERYTHING,
        engine=engine_name,
        instance_count=2,
        inputs={
            "stream": s3("s3://b/many/", input_mode="Pipe", distribution="ShardedByS3Key", shuffle_config=3),
            "records": s3("s3://b/many/", input_mode="Pipe", record_wrapping="RecordIO"),
            "unzipped": s3("s3://b/zip/", input_mode="Pipe", compression="Gzip"),
            "lines": s3(
                "s3://b/list",
                input_mode="Pipe",
                record_wrapping="RecordIO",
                s3_data_type="AugmentedManifestFile",
                attribute_names=["image-ref", "label"],
            ),
            "file": s3("s3://b/one/"),
            "fast": s3("s3://b/one/", input_mode="FastFile"),
        },
    )
    assert job.record.status == "Completed", (job.record.failure_reason, job.log())
    archive = job.archive() or {}
    first, second = (json.loads(archive[f"algo-{host}.json"]) for host in (1, 2))
    for told in (first, second):
        # contract: E11, B7
        assert told["listing"] == [
            *("fast", "fast-manifest", "file", "file-manifest"),
            *("lines_0", "records_0", "stream_0", "unzipped_0"),
        ]
        assert told["config"]["stream"]["TrainingInputMode"] == "Pipe"  # contract: C18, E1
        assert told["config"]["fast"]["TrainingInputMode"] == "FastFile"
        assert told["config"]["records"]["RecordWrapperType"] == "RecordIO"
        assert told["variable"] == "/opt/ml/input/data/stream"
        assert told["unzipped"] == "text"  # contract: E17
        assert (told["file"], told["fast"]) == ("one", "one")  # contract: E3, E8
        assert (told["write"], told["remove"]) == ("EROFS", "EROFS")  # contract: B16, E8
        frame = struct.pack("<II", 0xCED7230A, 1)
        assert told["records"] == "".join((frame + bytes([48 + n, 0, 0, 0])).hex() for n in range(5))
        assert bytes.fromhex(told["lines"]).endswith(frame + b"7\0\0\0")  # contract: E16, E21
    for epoch in range(3):  # contract: E23, E24
        assert sorted(first["shards"][epoch] + second["shards"][epoch]) == list("01234")
    assert len(set(first["shards"])) > 1
    assert objects.path("s3://b/one/a").read_bytes() == b"one"
    assert feeders(job) == []


WAITING = (
    READER
    + """
    file = open(DATA + "/training_0", "rb", 0)
    file.read(1)
    print("reading", flush=True)
    time.sleep(600)
    """
)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/big").open("wb") as file:
        file.truncate(1 << 28)
    return tmp_path / "data"


def piped(path: Path) -> dict[str, Any]:
    return {"training": {"path": path, "input_mode": "Pipe"}}


def test_stopping_while_the_feeder_waits(submit: Submit, big: Path) -> None:
    job = submit(WAITING, engine="sandbox", inputs=piped(big), local={"stop_grace": 0.5})
    job.until_log(b"reading")
    [feeder] = feeders(job)
    local.stop(job.name, home=job.home)
    assert job.wait().status == "Stopped"
    assert not feeder.is_running()


ENOUGH = (
    READER
    + """
    with open(DATA + "/training_0", "rb", 0) as file:
        file.read(1)
        print("begun", flush=True)
        time.sleep(1)
        file.read()
    os.mkdir("/opt/ml/model/saved")
    open("/opt/ml/model/saved/weights", "w").close()
    """
)


def test_a_feeder_that_dies_is_no_end_of_data(submit: Submit, big: Path, engine_name: str) -> None:
    """The script sees an end of file and is content; the job must not be. contract: G21"""
    job = submit(ENOUGH, engine=engine_name, inputs=piped(big))
    job.until_log(b"begun")
    [feeder] = feeders(job)
    feeder.kill()
    record = job.wait()
    assert record.status == "Failed"
    assert (record.failure_reason or "").startswith("InternalServerError: the process that fed")
    assert feeders(job) == []


UNREADABLE = (
    READER
    + """
    os.mkdir("/opt/ml/model/saved")
    open("/opt/ml/model/saved/weights", "w").close()
    print("go", flush=True)
    time.sleep(1)
    epoch("training", 0)
    """
)


def test_data_that_cannot_be_read_ends_the_job(submit: Submit, tmp_path: Path) -> None:
    """A reader waits, rather than to take what it has for the whole epoch."""
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).write_bytes(b"x")
    job = submit(UNREADABLE, engine="sandbox", inputs=piped(tmp_path / "data"))
    job.until_log(b"go")
    (tmp_path / "data/b").unlink()
    record = job.wait()
    assert record.status == "Failed"
    assert (record.failure_reason or "").startswith("ClientError: Data download failed: channel training")
    assert job.archive() == {"saved/weights": b""}  # contract: F6


@pytest.mark.docker
def test_kill_9_of_the_supervisor_ends_the_attempt(submit: Submit, objects: ObjectStore) -> None:
    """What fed the channels dies with it; no script goes on with half an epoch. contract: G21"""
    for number in range(2000):
        objects.put_bytes(f"s3://b/many/{number:04}", b"x" * 1000)
    script = (
        READER
        + """
    attempt = os.path.exists("/opt/ml/checkpoints/seen")
    open("/opt/ml/checkpoints/seen", "w").close()
    with open(DATA + "/training_0", "rb") as file:
        data = file.read(1000)
        print("begun", flush=True)
        if not attempt:
            time.sleep(2)
        data += file.read()
    open(f"/opt/ml/model/{len(data)}", "w").close()
    """
    )
    job = submit(
        script,
        engine="docker",
        inputs={"training": s3("s3://b/many/", input_mode="Pipe")},
        checkpoint_s3_uri="s3://b/checkpoints/",
        max_retry_attempts=1,
        local={"s3_throughput_mbps": 30, "checkpoint_interval": 0.2},
    )
    job.until_log(b"begun")
    time.sleep(0.5)
    [feeder] = feeders(job)
    os.kill(supervisor(job), signal.SIGKILL)
    job.until(lambda: not feeder.is_running(), seconds=5)
    with Store(job.home) as store:
        job.until(lambda: recover(job.home, store) or job.record.attempt == 2, seconds=20)
    record = job.wait()
    assert (record.status, record.attempt) == ("Completed", 2), record.failure_reason
    assert list(job.archive() or {}) == ["2000000"]
    assert feeders(job) == []


def test_a_warm_host_is_fed_too(write_spec: Callable[..., Path], home: Path, objects: ObjectStore) -> None:
    objects.put_bytes("s3://b/x/a", b"data")
    script = READER + "print('got', [epoch('training', n) for n in range(2)], flush=True)\n"
    spec = write_spec(
        script,
        engine="sandbox",
        inputs={"training": s3("s3://b/x/", input_mode="Pipe")},
        local={"warm": True, "warm_idle": 60},
    )
    place = Home(home)
    for number in range(3):
        job = Job(place, local.submit(load(spec, job_name=f"warm-{number}"), home=place).name)
        assert job.wait().status == "Completed", job.log()
        assert b"got [b'data', b'data']" in job.log()
        assert job.record.result["warm"]["reused"] == (number > 0), job.record.result["warm"]
        assert feeders(job) == []
        job.until(lambda: all(found["state"] == "idle" for found in warm_sets(place)))
    end_idle(place, "the test is over")


def test_a_volume_that_is_too_small(run: Submit, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with (tmp_path / "data/big").open("wb") as file:
        file.truncate((1 << 30) + 1)
    told = {"engine": "sandbox", "volume_size": 1}
    job = run("", inputs={"training": {"path": tmp_path / "data"}}, **told)
    assert job.record.status == "Failed"
    reason = job.record.failure_reason or ""
    assert reason.startswith("ClientError: Data download failed:Insufficient disk space")  # contract: E32
    for mode in ("FastFile", "Pipe"):  # contract: E29
        job = run("", inputs={"training": {"path": tmp_path / "data", "input_mode": mode}}, **told)
        assert job.record.status == "Completed", job.record.failure_reason

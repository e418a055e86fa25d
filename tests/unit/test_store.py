"""The store: what is durable, what is unique, what other processes see."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import JobExistsError, StoreError, UsageError
from harness.home import Home
from harness.lifecycle._capacity import slots, try_claim
from harness.model import Gpu, HostPlan, LocalOptions, MetricPoint, Plan, Spec, Upload
from harness.store import HostRecord, JobRecord, Progress, StopRequest, Store, from_json, to_json


def make_spec(name: str) -> Spec:
    return Spec(
        request={
            "TrainingJobName": name,
            "ResourceConfig": {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        },
        local=LocalOptions(images={"a:*": "b"}, stop_grace=5),
        uploads=(Upload(path=Path("/x"), uri="s3://b/k", kind="channel", channel="training"),),
    )


def make_plan(gpus: int = 0, hosts: int = 1) -> Plan:
    return Plan(
        engine="fake",
        engine_reason="asked for",
        image=None,
        image_asked=None,
        image_note="",
        hosts=tuple(
            HostPlan(
                name=f"algo-{n + 1}",
                instance_type="ml.p4d.24xlarge",
                instance_group="g",
                cloud_gpus=8,
                gpus=gpus,
            )
            for n in range(hosts)
        ),
        network_interface="eth0",
        shm_bytes=1,
        memory_bytes=None,
        cpus=1,
        disk_free_bytes=1,
        python=None,
        world_size=1,
        cloud_world_size=8,
        treatments=(),
    )


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with Store(Home(home)) as opened:
        yield opened


def create(store: Store, name: str = "job-1", **plan: int) -> JobRecord:
    return store.create_job(make_spec(name), make_plan(**plan), message="Starting")


def test_spec_and_plan_survive_the_round_trip(store: Store) -> None:
    spec, plan = make_spec("job-1"), make_plan(gpus=2)
    store.create_job(spec, plan, message="m")
    record = store.job("job-1")
    assert from_json(Spec, record.spec) == spec
    assert from_json(Plan, record.plan) == plan
    assert record.request == spec.request


def test_unknown_members_of_a_record_are_left_out() -> None:
    assert from_json(Progress, {**to_json(Progress(what="x", done=1, total=2)), "new": 1}).done == 1


def test_a_name_is_taken_for_ever(store: Store) -> None:
    """# contract: G35"""
    create(store)
    store.transition("job-1", "Completed", "done", status="Completed")
    with pytest.raises(JobExistsError, match="job-1 exists already"):
        create(store)
    with pytest.raises(JobExistsError):
        store.check_free("job-1")


def test_transitions_close_one_another(store: Store) -> None:
    """# contract: G4"""
    create(store)
    store.transition("job-1", "Pending", "waiting")
    store.transition("job-1", "Downloading", "a")
    store.transition("job-1", "Downloading", "b")
    store.transition("job-1", "Completed", "done", status="Completed")
    items = store.transitions("job-1")
    assert [(item.status, item.message) for item in items] == [
        ("Starting", "Starting"),
        ("Pending", "waiting"),
        ("Downloading", "b"),
        ("Completed", "done"),
    ]
    assert all(item.end is not None for item in items)
    assert [a.end for a in items[:-1]] == [b.start for b in items[1:]]


def test_a_terminal_job_never_changes(store: Store) -> None:
    create(store)
    store.transition("job-1", "Stopped", "stopped", status="Stopped")
    store.transition("job-1", "Failed", "late", status="Failed")
    assert store.summary("job-1").status == "Stopped"
    with pytest.raises(UsageError, match="training job is in status Stopped"):  # contract: G11
        store.request_stop("job-1", StopRequest.STOP)


def test_a_stop_request_only_grows(store: Store) -> None:
    create(store)
    store.request_stop("job-1", StopRequest.KILL)
    assert store.request_stop("job-1", StopRequest.STOP).stop_request is StopRequest.KILL


def test_unknown_job_gets_a_suggestion(store: Store) -> None:
    create(store, "mnist-2026")
    with pytest.raises(UsageError, match="did you mean mnist-2026"):
        store.job("mnist-2025")


def test_metrics_come_back_in_order_and_after(store: Store) -> None:
    create(store)
    points = [MetricPoint(name="l", value=float(n), timestamp_ms=n, host="algo-1") for n in range(3)]
    store.add_metrics("job-1", points)
    store.add_metrics(
        "job-1", [MetricPoint(name="CPUUtilization", value=1, timestamp_ms=9, host="algo-1")], sampled=True
    )
    found = store.metrics("job-1", sampled=False)
    assert [point for _, point in found] == points
    assert [point.value for _, point in store.metrics("job-1", after=found[1][0], sampled=False)] == [2.0]


def test_hosts_are_replaced_by_the_next_attempt(store: Store) -> None:
    create(store)
    store.put_hosts("job-1", [HostRecord(name="algo-1", stream="a", gpus=(0, 1))])
    store.host_ended("job-1", "algo-1", 137, oom_killed=True)
    assert store.hosts("job-1") == (
        HostRecord(name="algo-1", stream="a", gpus=(0, 1), exit_code=137, oom_killed=True),
    )
    store.put_hosts("job-1", [HostRecord(name="algo-1", stream="b")])
    assert store.hosts("job-1")[0].exit_code is None


def test_an_exception_rolls_back(store: Store) -> None:
    create(store)

    def fail_halfway() -> None:
        with store.transaction():
            store.transition("job-1", "Pending", "x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert store.summary("job-1").secondary_status == "Starting"


def _write_for_ever(home: Home) -> None:
    with Store(home) as store:
        n = 0
        while True:
            with store.transaction():
                store.set_progress("job-1", Progress(what="x", done=n, total=n))
                store.merge_result("job-1", n=n)
            n += 1


def test_kill_9_of_a_writer_leaves_whole_transactions(store: Store) -> None:
    home = store.home
    create(store)
    writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(home,))
    writer.start()
    deadline = time.monotonic() + 30
    while (store.progress("job-1") or Progress(what="", done=0, total=0)).done < 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    progress = store.progress("job-1")
    assert progress is not None
    assert store.job("job-1").result["n"] == progress.done
    with contextlib.closing(sqlite3.connect(home.db)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_read_only_home_is_one_clear_error(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(StoreError, match="file"):
        Store(Home(place / "home"))


def test_newer_schema_is_refused(store: Store) -> None:
    home = store.home
    store.close()
    with contextlib.closing(sqlite3.connect(home.db)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer harness"):
        Store(home)


GPUS = tuple(Gpu(index=n, uuid=f"GPU-{n}", name="x", memory_bytes=1) for n in range(2))


def pend(store: Store, name: str, **plan: int) -> None:
    create(store, name, **plan)
    store.transition(name, "Pending", "waiting")


def test_a_gpu_is_never_two_jobs(store: Store) -> None:
    for name in ("a", "b"):
        pend(store, name, gpus=1)
    first = try_claim(store, "a", hosts=1, gpus=1, machine=GPUS)
    second = try_claim(store, "b", hosts=1, gpus=2, machine=GPUS)
    assert first == GPUS[:1]
    assert second is None
    store.transition("a", "Completed", "", status="Completed")
    assert try_claim(store, "b", hosts=1, gpus=2, machine=GPUS) == GPUS


def test_a_claim_is_found_again_after_a_crash(store: Store) -> None:
    pend(store, "a", gpus=1)
    first = try_claim(store, "a", hosts=1, gpus=1, machine=GPUS)
    assert try_claim(store, "a", hosts=1, gpus=1, machine=GPUS) == first


def test_first_come_first_served(store: Store) -> None:
    for name in ("a", "b", "c"):
        pend(store, name)
    assert try_claim(store, "a", hosts=slots(), gpus=0, machine=()) == ()
    assert try_claim(store, "b", hosts=slots(), gpus=0, machine=()) is None
    store.release("a")
    store.transition("a", "Training", "")
    assert try_claim(store, "c", hosts=1, gpus=0, machine=()) is None, "b is older and still waits"
    assert try_claim(store, "b", hosts=slots(), gpus=0, machine=()) == ()


def test_a_job_of_more_hosts_than_slots_runs_alone(store: Store) -> None:
    pend(store, "big")
    assert try_claim(store, "big", hosts=slots() * 10, gpus=0, machine=()) == ()

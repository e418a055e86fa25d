"""Deaths and requests at the worst moments: whatever happens when, a job ends once, truly, and cleanly.

A supervisor is forked from the test's own process, so what a test replaces before it submits (a function
that kills its own process at a chosen step, say) happens in the first supervisor and only there: those
that take over later are new interpreters.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import engines, outputs
from harness.contract import messages
from harness.engines.docker import DockerEngine
from harness.engines.sandbox import SandboxEngine
from harness.errors import EngineError, StoreError
from harness.home import Home
from harness.lifecycle import _capacity, _clean, _keeper, _supervisor, owned, recover
from harness.lifecycle import _prepare as _preparation
from harness.lifecycle._owner import own
from harness.model import Plan, Spec
from harness.spec import load
from harness.store import Store
from harness.targets import local
from tests.jobs.conftest import Job, Submit, processes_of
from tests.jobs.test_crashes import COUNTING, assert_nothing_left, supervisor, take_over

QUICK = """
    import pathlib
    print("said", flush=True)
    for n in range(50):
        pathlib.Path(f"/opt/ml/model/part-{n}").write_text("weights")
    """
WHOLE = {f"part-{n}": b"weights" for n in range(50)}

Patch = pytest.MonkeyPatch


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(
    monkeypatch: Patch,
    owner: Any,
    name: str,
    *,
    when: Callable[..., bool] = lambda *_, **__: True,
    after: bool,
) -> None:
    """Kill the process before or after the first call of `owner.name` that `when` is true of."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        fatal = when(*arguments, **named)
        if fatal and not after:
            die()
        result = original(*arguments, **named)
        if fatal:
            die()
        return result

    monkeypatch.setattr(owner, name, call)


def until_dead(job: Job) -> None:
    job.until(lambda: not owned(job.home, job.name), seconds=20)


def unowned(home: Path, spec: Path, name: str) -> Job:
    """A job on record whose supervisor died at once."""
    place = Home(home)
    compiled: Spec = load(spec, job_name=name)
    plan: Plan = local.make_plan(compiled, place)
    with Store(place) as store:
        store.create_job(compiled, plan, message=messages.STARTING)
    return Job(place, name)


# ------------------------------------------------------------------------- who owns a job


def test_a_lost_job_gets_one_supervisor_however_many_look(
    write_spec: Callable[..., Path], home: Path, unique: str
) -> None:
    """Not one for each look while the first is still starting: on a slow machine they would pile up."""
    job = unowned(home, write_spec("import time; time.sleep(1)", engine="sandbox"), unique)
    with Store(job.home) as store:
        assert [recover(job.home, store) for _ in range(5)] == [[unique], [], [], [], []]
    assert len(supervisors(unique)) == 1
    job.wait()


def supervisors(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "harness.lifecycle" in words and name in words:
                found.append(process)
    return found


def test_a_supervisor_that_cannot_be_started_leaves_no_job(
    write_spec: Callable[..., Path], home: Path, monkeypatch: Patch
) -> None:
    """What `submit` refuses must not run when the next command comes by."""

    def refuse(*_: Any) -> None:
        raise StoreError("no process can be started")

    monkeypatch.setattr(local, "spawn", refuse)
    with pytest.raises(StoreError):
        local.submit(load(write_spec("", engine="sandbox"), job_name="never"), home=Home(home))
    with Store(Home(home)) as store:
        assert store.unfinished() == []


def test_the_engine_works_in_the_home_of_the_job(
    write_spec: Callable[..., Path], tmp_path: Path, monkeypatch: Patch
) -> None:
    """Whatever $HARNESS_HOME says where the job was submitted: whoever takes over must find its hosts."""
    other = Home(tmp_path / "other")
    script = 'import os\nopen("/opt/ml/model/x", "w").write("x")\n'
    seen = tmp_path / "seen"
    original = engines.open_engine

    def look(name: str) -> Any:
        seen.write_text(str(Home.find().root))
        return original(name)

    monkeypatch.setattr(_keeper, "open_engine", look)
    name = local.submit(load(write_spec(script, engine="sandbox")), home=other).name
    assert local.wait(name, home=other).status == "Completed"
    assert seen.read_text() == str(other.root)


# ------------------------------------------------------------ kill -9 at each step of a job

_STEPS: dict[str, tuple[Any, str, Callable[..., bool], bool]] = {
    "before anything": (_keeper, "open_engine", lambda *_: True, False),
    "with its claims": (_supervisor, "try_claim", lambda *_, **__: True, True),
    "while channels are staged": (_preparation, "stage", lambda *_, **__: True, False),
    "before hosts are on record": (Store, "put_hosts", lambda *_: True, False),
    "when all hosts have ended": (Store, "host_ended", lambda *_, **__: True, True),
    "when its end is decided": (Store, "merge_result", lambda *_, **entries: "outcome" in entries, True),
    "before packing": (outputs, "pack", lambda *_, **__: True, False),
    "when packed": (outputs, "pack", lambda *_, **__: True, True),
    "when all is up": (Store, "merge_result", lambda *_, **entries: "artifacts" in entries, True),
    "before its terminal transition": (
        Store,
        "transition",
        lambda *arguments, **_: arguments[2] == "Completed",
        False,
    ),
}


@pytest.mark.parametrize("step", _STEPS)
def test_kill_9_at_a_step_that_can_be_taken_again(submit: Submit, monkeypatch: Patch, step: str) -> None:
    """The script ran to its end, or hadn't begun: the job completes, with everything in its model."""
    owner, name, when, after = _STEPS[step]
    die_at(monkeypatch, owner, name, when=when, after=after)
    job = submit(QUICK, engine="sandbox", checkpoint_s3_uri="s3://b/c/")
    until_dead(job)
    assert not job.record.ended_for_good
    take_over(job)
    record = job.wait()
    assert (record.status, record.failure_reason) == ("Completed", None)
    assert job.archive() == WHOLE
    assert job.log().count(b"said\n") == 1
    assert_nothing_left(job, "sandbox")
    with Store(job.home) as store:
        assert [store.claims(kind) for kind in ("slot", "gpu", "port")] == [{}, {}, {}]


def test_kill_9_while_the_hosts_directories_are_removed(submit: Submit, monkeypatch: Patch) -> None:
    """What is half removed must not be packed again over the whole model."""
    original = engines.remove_tree

    def half(path: Path) -> None:
        if (path / "algo-1/ml/model/part-0").exists():
            (path / "algo-1/ml/model/part-0").unlink()
            die()
        original(path)

    monkeypatch.setattr(_clean, "remove_tree", half)
    job = submit(QUICK, engine="sandbox")
    until_dead(job)
    take_over(job)
    assert job.wait().status == "Completed"
    assert job.archive() == WHOLE
    assert not (job.home.job(job.name) / "hosts").exists()


def test_kill_9_while_a_job_is_being_stopped(submit: Submit) -> None:
    """It was to be stopped, and it is: that its hosts died faster changes nothing."""
    job = submit(
        """
        import signal, time
        open("/opt/ml/model/kept", "w").close()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("up", flush=True)
        time.sleep(600)
        """,
        engine="sandbox",
        local={"stop_grace": 60},
        checkpoint_s3_uri="s3://b/c/",
    )
    job.until_log(b"up")
    local.stop(job.name, home=job.home)
    job.until(lambda: job.record.status == "Stopping")
    os.kill(supervisor(job), signal.SIGKILL)
    until_dead(job)
    take_over(job)
    record = job.wait()
    assert (record.status, record.secondary_status, record.failure_reason) == ("Stopped", "Stopped", None)
    assert job.archive() == {"kept": b""}
    assert_nothing_left(job, "sandbox")


def test_kill_9_after_a_lost_attempt_starts_the_next_one(submit: Submit) -> None:
    """# contract: G21: how the hosts of one attempt ended says nothing about the next."""
    job = submit(COUNTING.format(lines=20), engine="sandbox", max_retry_attempts=1)
    job.until_log(b"line 5 ")
    launchers = [process for process in processes_of(job) if process.pid != supervisor(job)]
    launcher = launchers[0].parents()[0]
    assert launcher.pid != supervisor(job)
    launcher.kill()
    record = job.wait()
    assert (record.status, record.failure_reason, record.attempt) == ("Completed", None, 2)
    assert job.log().count(b"\nline ") == 20
    assert_nothing_left(job, "sandbox")


@pytest.mark.docker
def test_docker_rm_of_a_host_is_retried_where_it_was_asked_for(submit: Submit) -> None:
    """# contract: G21"""
    job = submit(COUNTING.format(lines=20), engine="docker", max_retry_attempts=1)
    job.until_log(b"line 5 ")
    subprocess.run(["docker", "rm", "-f", *containers(job)], check=True, capture_output=True)
    record = job.wait()
    assert (record.status, record.failure_reason, record.attempt) == ("Completed", None, 2)
    assert_nothing_left(job, "docker")


@pytest.mark.docker
def test_a_host_that_lived_on_is_gone_before_the_next_attempt(submit: Submit) -> None:
    """Of two containers one was lost with the supervisor; the other would be in the way."""
    job = submit(COUNTING.format(lines=30), engine="docker", instance_count=2, max_retry_attempts=1)
    job.until_log(b"line 5 ")
    job.until_log(b"line 5 ", "algo-2")
    os.kill(supervisor(job), signal.SIGKILL)
    until_dead(job)
    subprocess.run(["docker", "rm", "-f", containers(job)[0]], check=True, capture_output=True)
    take_over(job)
    record = job.wait()
    assert (record.status, record.failure_reason, record.attempt) == ("Completed", None, 2)
    assert [job.log(host).count(b"\nline ") for host in ("algo-1", "algo-2")] == [30, 30]
    assert_nothing_left(job, "docker")


def containers(job: Job) -> list[str]:
    return subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label=harness.job={job.name}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


# --------------------------------------------------------------------------- time limits


def test_time_without_a_supervisor_does_not_change_how_a_job_ended(
    submit: Submit, monkeypatch: Patch
) -> None:
    """# contract: G6: its hosts ended within MaxRuntime; when somebody looked is another matter."""
    die_at(monkeypatch, Store, "host_ended", after=True)
    job = submit(QUICK, engine="sandbox", max_run=2)
    until_dead(job)
    time.sleep(2.5)
    take_over(job)
    record = job.wait()
    assert (record.status, record.secondary_status) == ("Completed", "Completed")


@pytest.mark.docker
def test_a_container_that_ended_without_a_supervisor_ended_by_itself(submit: Submit) -> None:
    """# contract: G6"""
    job = submit(COUNTING.format(lines=20), engine="docker", max_run=5)
    job.until_log(b"line 5 ")
    os.kill(supervisor(job), signal.SIGKILL)
    until_dead(job)
    time.sleep(5)
    take_over(job)
    record = job.wait()
    assert (record.status, record.secondary_status) == ("Completed", "Completed")
    assert job.log().count(b"\nline ") == 20


def test_a_clock_that_jumps_ends_no_job(submit: Submit, monkeypatch: Patch, tmp_path: Path) -> None:
    """MaxRuntime is time that passed, not what a clock says that was set, or slept through the night."""
    jumped, real = tmp_path / "jumped", time.time
    monkeypatch.setattr(time, "time", lambda: real() + 10 * 86400 * jumped.exists())
    job = submit(COUNTING.format(lines=15), engine="sandbox")
    job.until_log(b"line 3 ")
    jumped.touch()
    record = job.wait()
    assert (record.status, record.secondary_status) == ("Completed", "Completed")


def test_max_wait_ends_a_job_that_is_pending(submit: Submit) -> None:
    """# contract: G8"""
    blocker = submit("import time; time.sleep(600)", engine="sandbox", instance_count=_capacity.slots())
    blocker.until(lambda: blocker.record.secondary_status == "Training")
    job = submit(
        "", engine="sandbox", use_spot_instances=True, max_run=1, max_wait=2, checkpoint_s3_uri="s3://b/c/"
    )
    record = job.wait()
    assert (record.status, record.secondary_status) == ("Stopped", "MaxWaitTimeExceeded")
    assert 1.5 < (record.ended or 0) - record.created < 6
    local.stop(blocker.name, now=True, home=blocker.home)
    blocker.wait()
    assert_nothing_left(job, "sandbox")


# --------------------------------------------------------------- stops at every phase


def test_a_kill_ends_an_upload(submit: Submit, monkeypatch: Patch) -> None:
    """A stop lets it finish, as the cloud does. Who says `--now` doesn't wait for gigabytes."""

    def slowly(*_: Any, progress: Callable[[int, int, str], None], **__: Any) -> None:
        for done in range(300):
            progress(done, 300, "packing")
            time.sleep(0.1)

    monkeypatch.setattr(outputs, "pack", slowly)
    job = submit(QUICK, engine="sandbox")
    job.until(lambda: job.record.secondary_status == "Uploading")
    local.stop(job.name, home=job.home)
    time.sleep(0.5)
    assert job.record.secondary_status == "Uploading"
    started = time.monotonic()
    local.stop(job.name, now=True, home=job.home)
    record = job.wait()
    assert time.monotonic() - started < 5
    assert record.status == "Stopped"
    assert any("kept in" in note for note in record.result["notes"])
    assert_nothing_left(job, "sandbox")


@pytest.mark.parametrize("phase", ["Starting", "Downloading"])
def test_a_stop_before_the_hosts_start(submit: Submit, monkeypatch: Patch, phase: str) -> None:
    owner, name = {
        "Starting": (_keeper, "open_engine"),
        "Downloading": (_preparation, "stage"),
    }[phase]
    original = getattr(owner, name)

    def late(*arguments: Any, **named: Any) -> Any:
        time.sleep(1)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, late)
    job = submit("print('ran', flush=True)", engine="sandbox")
    job.until(lambda: job.record.secondary_status == phase)
    local.stop(job.name, home=job.home)
    record = job.wait()
    assert (record.status, record.training_start) == ("Stopped", None)
    assert_nothing_left(job, "sandbox")


@pytest.mark.docker
def test_a_stop_while_containers_start(submit: Submit, monkeypatch: Patch) -> None:
    original = DockerEngine.start

    def late(self: DockerEngine, launch: Any) -> Any:
        host = original(self, launch)
        time.sleep(1)
        return host

    monkeypatch.setattr(DockerEngine, "start", late)
    job = submit(COUNTING.format(lines=6000), engine="docker", instance_count=2)
    job.until(lambda: containers(job))
    local.stop(job.name, now=True, home=job.home)
    assert job.wait().status == "Stopped"
    assert_nothing_left(job, "docker")


# --------------------------------------------------------------------------- cleaning up


def test_what_cannot_be_removed_does_not_change_how_a_job_ended(submit: Submit, monkeypatch: Patch) -> None:
    original = engines.remove_tree

    def refuse(path: Path) -> None:
        if path.exists():
            raise PermissionError(13, "Permission denied", str(path))
        original(path)

    with monkeypatch.context() as patch:
        patch.setattr(_clean, "remove_tree", refuse)
        job = submit(QUICK, engine="sandbox")
    record = job.wait()
    assert (record.status, record.failure_reason) == ("Completed", None)
    assert any("Permission denied" in note for note in record.result["notes"])
    until_dead(job)
    local.collect(home=job.home)
    assert not (job.home.job(job.name) / "hosts").exists()


@pytest.mark.docker
def test_gc_removes_what_an_engine_could_not(submit: Submit, monkeypatch: Patch) -> None:
    """The daemon was away when the job ended: its containers are not forgotten."""
    calls = iter([False])

    def away(*_: Any) -> None:
        if next(calls, True):
            raise EngineError("nobody listens")

    with monkeypatch.context() as patch:
        patch.setattr(DockerEngine, "close", away)
        job = submit("raise SystemExit(1)", engine="docker")
    record = job.wait()
    assert record.status == "Failed"
    assert any("harness gc" in note for note in record.result["notes"])
    until_dead(job)
    assert containers(job)
    local.collect(home=job.home)
    assert containers(job) == []
    assert_nothing_left(job, "docker")


def test_gc_of_a_record_without_a_directory(submit: Submit) -> None:
    """A gc that was killed after it had removed the directory: the next one finishes its work."""
    job = submit("", engine="sandbox")
    job.wait()
    until_dead(job)
    shutil.rmtree(job.home.job(job.name))
    assert local.collect(home=job.home, everything=True)["jobs"] == [job.name]
    with Store(job.home) as store:
        assert store.jobs() == []


# --------------------------------------------------------------------------- many at once


def test_ten_jobs_at_once_take_their_turns(submit: Submit, monkeypatch: Patch, unique: str) -> None:
    """First come, first served, and never more hosts than there are slots."""
    monkeypatch.setattr(_capacity, "slots", lambda: 2)
    jobs = [
        submit("import time; time.sleep(0.3)", engine="sandbox", job_name=f"{unique}-{n}") for n in range(10)
    ]
    most = 0
    with Store(jobs[0].home) as store:
        while store.unfinished():
            most = max(most, len(store.claims("slot")))
            time.sleep(0.02)
    records = [job.wait() for job in jobs]
    assert {record.status for record in records} == {"Completed"}
    assert most <= 2
    began = [record.training_start or 0 for record in records]
    # Two start at about the same moment; none overtakes one that came before its neighbour.
    assert all(began[n] <= began[n + 2] for n in range(8))
    for job in jobs:
        until_dead(job)


def test_ten_processes_make_one_state_directory(home: Path) -> None:
    """They all find it empty and set up its database."""
    home.rmdir()
    command = [
        sys.executable,
        "-c",
        "from harness.home import Home; from harness.store import Store; Store(Home.find())",
    ]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(10)]
    assert [process.communicate()[1] for process in started] == [b""] * 10


LOOKER = """
from harness.home import Home
from harness.lifecycle import owned
print("ready", flush=True)
while True:
    owned(Home.find(), "job")
"""


def test_a_lock_that_is_looked_at_can_still_be_taken(home: Path) -> None:
    """`owned` takes it too, for a moment: that must not send an owner away."""
    place = Home(home)
    looker = subprocess.Popen(
        [sys.executable, "-c", LOOKER],
        stdout=subprocess.PIPE,
    )
    try:
        assert looker.stdout is not None
        looker.stdout.readline()
        for _ in range(50):
            with own(place, "job") as mine:
                assert mine
    finally:
        looker.kill()
        looker.communicate()


def test_engines_are_closed_by_name(home: Path) -> None:
    """What gc relies on: closing a job that left nothing is nothing."""
    del home
    SandboxEngine().close("nobody")


# ------------------------------------------------------------------------------- Ctrl-C

INTERRUPTED = """
import os, signal, sys
from harness.__main__ import main
from {module} import {owner}
original = {owner}.{name}
def interrupted(*arguments, **named):
    for _ in range({times}):
        os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments, **named)
{owner}.{name} = interrupted
sys.exit(main())
"""


def interrupted(spec: Path, name: str, where: tuple[str, str, str], times: int, *options: str) -> str:
    """`harness run` that gets Ctrl-C when it calls that function; what it printed."""
    module, owner, function = where
    code = INTERRUPTED.format(module=module, owner=owner, name=function, times=times)
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(spec), "--job-name", name, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("options", [(), ("--detach",)], ids=["attached", "detached"])
def test_ctrl_c_when_the_job_is_on_record_already(
    write_spec: Callable[..., Path], home: Path, times: int, options: tuple[str, ...], unique: str
) -> None:
    """Whoever looks next must not find a job that was interrupted, and start it."""
    spec = write_spec("import time; time.sleep(600)", engine="sandbox", local={"stop_grace": 1})
    interrupted(spec, unique, ("harness.targets", "local", "spawn"), times, *options)
    job = Job(Home(home), unique)
    assert job.record.status == "Stopped"
    assert_nothing_left(job, "sandbox")


def test_ctrl_c_before_the_job_is_on_record_stops_no_other_of_its_name(
    submit: Submit, write_spec: Callable[..., Path]
) -> None:
    job = submit(COUNTING.format(lines=10), engine="sandbox")
    spec = write_spec("", engine="sandbox")
    interrupted(spec, job.name, ("harness.store", "Store", "check_free"), 2)
    assert job.wait().status == "Completed"


# --------------------------------------------------------------------------- checkpoints


def test_checkpoints_beside_a_running_job(submit: Submit, run: Submit, engine_name: str) -> None:
    """# contract: F12, F14, F15: synced while it runs, deletions too; restored on each host, at any path."""
    options: dict[str, Any] = {
        "engine": engine_name,
        "checkpoint_s3_uri": "s3://b/ckpt/",
        "checkpoint_local_path": "/var/ckpt",
        "local": {"checkpoint_interval": 0.3},
    }
    job = submit(
        """
        import pathlib, time
        place = pathlib.Path("/var/ckpt")
        for name in ("kept", "dropped"):
            (place / name).write_text(name)
        print("written", flush=True)
        time.sleep(3)
        (place / "dropped").unlink()
        (place / "late").write_text("late")
        print("dropped", flush=True)
        """,
        **options,
    )
    stored = job.home.s3 / "b/ckpt"
    job.until(lambda: (stored / "dropped").exists())
    assert not job.record.ended_for_good
    assert job.wait().status == "Completed"
    assert sorted(path.name for path in stored.iterdir()) == ["kept", "late"]
    again = run(
        "import os\nprint(f'found {sorted(os.listdir(\"/var/ckpt\"))}', flush=True)",
        instance_count=2,
        **options,
    )
    for host in ("algo-1", "algo-2"):
        assert b"found ['kept', 'late']" in again.log(host)
    assert_nothing_left(again, engine_name)

"""Processes that die in mid-job: whatever is killed, the job ends truly and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.home import Home
from harness.lifecycle import owned, recover
from harness.store import Store
from harness.targets import local
from tests.jobs.conftest import Job, Submit, processes_of

COUNTING = """
    import os, time
    for n in range({lines}):
        print(f"line {{n}} " + os.environ["SM_CURRENT_HOST"], flush=True)
        time.sleep(0.1)
    open("/opt/ml/model/done", "w").close()
    """


def supervisor(job: Job) -> int:
    job.until(lambda: owned(job.home, job.name))
    return int((job.home.job(job.name) / "supervisor.lock").read_text())


def to_containers(job: Job, *verb: str) -> None:
    """Run a docker command on the running containers of the job, behind the harness's back."""
    ids = subprocess.run(
        ["docker", "ps", "-q", "--filter", f"label=harness.job={job.name}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert ids
    subprocess.run(["docker", *verb, *ids], check=True, capture_output=True)


def take_over(job: Job) -> list[str]:
    with Store(job.home) as store:
        return recover(job.home, store)


def assert_nothing_left(job: Job, engine_name: str) -> None:
    job.until(lambda: not owned(job.home, job.name), seconds=20)
    assert processes_of(job) == []
    if engine_name == "docker":
        for kind in (["ps", "-aq"], ["network", "ls", "-q"], ["volume", "ls", "-q"]):
            listed = subprocess.run(
                ["docker", *kind, "--filter", f"label=harness.job={job.name}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert listed.stdout == "", kind
    assert job.name not in Path("/proc/mounts").read_text()
    foreign = [path for path in job.home.root.rglob("*") if path.lstat().st_uid != os.getuid()]
    assert foreign == []


@pytest.mark.docker
def test_kill_9_of_the_supervisor_in_docker(submit: Submit) -> None:
    """The container lives on; a new supervisor attaches to it and loses no line."""
    job = submit(COUNTING.format(lines=60), engine="docker", instance_count=2)
    job.until_log(b"line 10 ")
    os.kill(supervisor(job), signal.SIGKILL)
    time.sleep(1)
    assert job.record.status == "InProgress"
    assert take_over(job) == [job.name]
    record = job.wait()
    assert record.status == "Completed", record.failure_reason
    for host in ("algo-1", "algo-2"):
        lines = [line for line in job.log(host).splitlines() if line.startswith(b"line ")]
        assert lines == [f"line {n} {host}".encode() for n in range(60)]
    assert job.archive() == {"done": b""}
    assert_nothing_left(job, "docker")


def test_kill_9_of_the_supervisor_in_the_sandbox(submit: Submit) -> None:
    """Its hosts die with it, at once; the next command gives the job its true end."""
    job = submit(COUNTING.format(lines=600), engine="sandbox", instance_count=2)
    job.until_log(b"line 5 ")
    assert len(processes_of(job)) >= 2
    os.kill(supervisor(job), signal.SIGKILL)
    job.until(lambda: not processes_of(job), seconds=5)
    take_over(job)
    record = job.wait()
    assert record.status == "Failed"
    assert (record.failure_reason or "").startswith("InternalServerError: ")
    assert f"what the hosts wrote was kept in {job.home.job(job.name) / 'hosts'}" in record.result["notes"]
    assert (job.home.job(job.name) / "hosts/algo-1/ml/model").is_dir()
    assert_nothing_left(job, "sandbox")


def test_a_killed_supervisors_job_is_retried_where_it_was_asked_for(submit: Submit) -> None:
    """# contract: G21"""
    job = submit(COUNTING.format(lines=20), engine="sandbox", max_retry_attempts=1)
    job.until_log(b"line 5 ")
    os.kill(supervisor(job), signal.SIGKILL)
    job.until(lambda: not owned(job.home, job.name))
    take_over(job)
    record = job.wait()
    assert record.status == "Completed", record.failure_reason
    assert record.attempt == 2
    assert [item.status for item in record.transitions].count("Starting") == 2
    assert_nothing_left(job, "sandbox")


def test_kill_9_before_training_starts_the_job_anew(submit: Submit, home: Path) -> None:
    """A job that still waits for the machine loses its supervisor, and nothing else."""
    from harness.lifecycle._capacity import slots

    blocker = submit("import time; time.sleep(600)", engine="sandbox", instance_count=slots())
    blocker.until(lambda: blocker.record.secondary_status == "Training")
    job = submit("print('ran', flush=True)", engine="sandbox")
    job.until(lambda: job.record.secondary_status == "Pending")
    os.kill(supervisor(job), signal.SIGKILL)
    job.until(lambda: not owned(job.home, job.name))
    local.stop(blocker.name, now=True, home=Home(home))
    record = job.wait()
    assert record.status == "Completed", record.failure_reason
    assert_nothing_left(job, "sandbox")


@pytest.mark.docker
def test_docker_kill_of_a_host(submit: Submit) -> None:
    """As in the cloud: exit code 137, and it isn't told as an OOM kill."""
    job = submit(COUNTING.format(lines=600), engine="docker")
    job.until_log(b"line 5 ")
    to_containers(job, "kill")
    record = job.wait()
    assert (record.status, record.failure_reason) == ("Failed", "AlgorithmError: , exit code: 137")
    assert_nothing_left(job, "docker")


@pytest.mark.docker
def test_docker_rm_of_a_host(submit: Submit) -> None:
    job = submit(COUNTING.format(lines=600), engine="docker")
    job.until_log(b"line 5 ")
    to_containers(job, "rm", "-f")
    record = job.wait()
    assert record.status == "Failed"
    assert "algo-1" in (record.failure_reason or "")
    assert_nothing_left(job, "docker")


def test_kill_9_of_the_command_line_leaves_the_job_running(
    write_spec: Callable[..., Path], home: Path, engine_name: str, unique: str
) -> None:
    path = write_spec(COUNTING.format(lines=30), engine=engine_name)
    command = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", str(path), "--job-name", unique],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    job = Job(Home(home), unique)
    job.until(lambda: (home / "jobs" / unique / "logs/1/algo-1.log").exists())
    job.until_log(b"line 3 ")
    command.kill()
    command.communicate()
    record = job.wait()
    assert record.status == "Completed", record.failure_reason
    assert_nothing_left(job, engine_name)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_and_the_second_kills(
    write_spec: Callable[..., Path], home: Path, engine_name: str, times: int, unique: str
) -> None:
    """Exit code 130 either way, and nothing is left."""
    path = write_spec(
        COUNTING.format(lines=6000), engine=engine_name, local={"stop_grace": 2 if times == 1 else 120}
    )
    command = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", str(path), "--job-name", unique],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    job = Job(Home(home), unique)
    job.until(lambda: (home / "jobs" / unique / "logs/1/algo-1.log").exists())
    job.until_log(b"line 3 ")
    for _ in range(times):
        os.killpg(command.pid, signal.SIGINT)
        time.sleep(0.7)
    output, _ = command.communicate(timeout=60)
    assert command.returncode == 130, output
    assert job.wait().status == "Stopped"
    assert_nothing_left(job, engine_name)

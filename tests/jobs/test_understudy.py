"""A supervisor that is begun before its job is known."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.home import Home
from harness.lifecycle import Understudy
from harness.spec import load
from harness.targets import local
from tests.jobs.conftest import Job

SCRIPT = """
import os
assert os.getcwd() == "/opt/ml/code" and not os.environ.get("HARNESS_HOME")
print("descriptors", sorted(os.listdir("/proc/self/fd")))
"""
Begin = Callable[..., Job]


@pytest.fixture
def begin(home: Path, write_spec: Callable[..., Path], unique: str) -> Begin:
    """Submit a job with that understudy."""

    def start(understudy: Understudy, *, engine: str = "sandbox") -> Job:
        compiled = load(write_spec(SCRIPT, engine=engine), job_name=unique)
        understudy.prepare(engine)
        local.submit(compiled, home=Home(home), understudy=understudy)
        return Job(Home(home), unique)

    return start


def forked() -> set[int]:
    """Processes that were forked from this one and left it."""
    mine = psutil.Process()
    found = set()
    for process in psutil.process_iter():
        try:
            if process.pid != mine.pid and process.cmdline() == mine.cmdline() and process.ppid() != mine.pid:
                found.add(process.pid)
        except psutil.Error:
            continue  # it has gone meanwhile
    return found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def supervisor(job: Job) -> int:
    """The process that owns the job, or did."""
    return int((job.home.job(job.name) / "supervisor.lock").read_text())


def test_it_supervises_the_job_that_it_is_given(begin: Begin, engine_name: str) -> None:
    with Understudy() as understudy:
        (waiting,) = forked()
        job = begin(understudy, engine=engine_name)
        until(lambda: (job.home.job(job.name) / "supervisor.lock").read_text())
        assert supervisor(job) == waiting
        place = Path(f"/proc/{waiting}")
        assert (place / "cwd").readlink() == Path("/")
        assert (place / "fd/1").readlink() == job.home.job(job.name) / "supervisor.log"
    assert job.wait().status == "Completed", job.log()
    until(lambda: not psutil.pid_exists(waiting))


def test_nothing_stays_of_one_that_gets_no_job() -> None:
    with Understudy():
        assert len(forked()) == 1
    until(lambda: not forked())


def test_one_that_died_is_replaced(begin: Begin) -> None:
    with Understudy() as understudy:
        (waiting,) = forked()
        psutil.Process(waiting).kill()
        until(lambda: not psutil.pid_exists(waiting))
        job = begin(understudy)
        assert job.wait().status == "Completed"
        assert supervisor(job) != waiting


def test_the_death_of_who_began_it_is_the_end_of_it() -> None:
    child = os.fork()
    if not child:
        Understudy()
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    until(lambda: not forked())


def test_a_process_with_threads_begins_none(begin: Begin) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with Understudy() as understudy:
            assert forked() == set()
            assert begin(understudy).wait().status == "Completed"
    finally:
        over.set()
        thread.join()

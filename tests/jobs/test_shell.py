"""`harness shell`, `exec` and `cp`: in running jobs, and in what failed ones left."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import BAD_SPEC
from harness.home import Home
from harness.spec import load
from harness.store import Store
from harness.targets import local
from tests.jobs.conftest import Job, Submit, write_project

WAITS = """
    import json, os, time
    open('/tmp/mine', 'w').write('tmp')
    os.makedirs('/opt/ml/model/sub'); open('/opt/ml/model/sub/m', 'w').write('model')
    print('is-up', flush=True)
    time.sleep(300)
"""
FAILS = """
    import os
    open('/tmp/mine', 'w').write('tmp')
    open('/opt/ml/model/m', 'w').write('model')
    os.symlink(os.environ['VICTIM'], '/opt/ml/model/out')
    raise ValueError('no')
"""


def harness(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *words], input=stdin, capture_output=True, check=False, timeout=120
    )


@pytest.fixture(scope="module", params=["sandbox", pytest.param("docker", marks=pytest.mark.docker)])
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared(engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A job of two hosts that all tests of an engine look into; the last of them ends it."""
    place = tmp_path_factory.mktemp("shared")
    home = Home(place / "home")
    home.root.mkdir()
    spec = write_project(
        place / "project",
        WAITS,
        engine=engine_name,
        instance_count=2,
        environment={"MINE": "a b"},
        hyperparameters={"lr": 0.1},
    )
    job = Job(home, local.submit(load(spec, job_name=f"t-{uuid.uuid4().hex[:12]}"), home=home).name)
    try:
        for host in ("algo-1", "algo-2"):
            job.until_log(b"is-up", host)
        yield job
    finally:
        if not job.record.ended_for_good:
            local.stop(job.name, now=True, home=home)
            job.wait()


@pytest.fixture
def running(shared: Job, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """That job, which a test leaves as it was."""
    del home
    monkeypatch.setenv("HARNESS_HOME", str(shared.home.root))
    yield shared
    assert shared.record.secondary_status == "Training"


@pytest.fixture(scope="module")
def fallen(engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that failed."""
    place = tmp_path_factory.mktemp("fallen")
    home, data, victim = Home(place / "home"), place / "data", place / "victim"
    home.root.mkdir()
    data.mkdir()
    (data / "d").write_text("d")
    victim.write_text("mine")
    spec = write_project(
        place / "project",
        FAILS,
        engine=engine_name,
        inputs={"training": str(data)},
        environment={"MINE": "a b", "VICTIM": str(victim)},
    )
    job = Job(home, local.submit(load(spec, job_name=f"t-{uuid.uuid4().hex[:12]}"), home=home).name)
    assert job.wait().status == "Failed"
    return job


@pytest.fixture
def failed(fallen: Job, home: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """That job."""
    del home
    monkeypatch.setenv("HARNESS_HOME", str(fallen.home.root))
    return fallen


def processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found


def soon(condition: Callable[[], object], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Person:
    """Somebody at a terminal."""

    def __init__(self, *words: str) -> None:
        self.screen, self._inside = pty.openpty()
        self.before = termios.tcgetattr(self._inside)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness", *words],
            stdin=self._inside,
            stdout=self._inside,
            stderr=self._inside,
            start_new_session=True,
        )

    def sees(self, text: bytes, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self.screen], [], [], max(0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.screen, 65536)
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def types(self, text: bytes) -> None:
        os.write(self.screen, text)

    def has_the_terminal_back(self) -> bool:
        return termios.tcgetattr(self._inside) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)
        os.close(self._inside)


@pytest.fixture
def person() -> Iterator[Callable[..., Person]]:
    people: list[Person] = []

    def come(*words: str) -> Person:
        people.append(Person(*words))
        return people[-1]

    yield come
    for each in people:
        each.close()


def test_a_command_has_the_script_s_environment_and_passes_its_exit_code_on(running: Job) -> None:
    look = 'echo "$PWD|$SM_HP_LR|$SM_CURRENT_HOST|$MINE|$TRAINING_JOB_NAME"; cat; echo told >&2; exit 42'

    done = harness("exec", running.name, "--", "sh", "-c", look, stdin=b"given\n")

    assert done.returncode == 42
    assert done.stdout.decode() == f"/opt/ml/code|0.1|algo-1|a b|{running.name}\ngiven\n"
    assert done.stderr == b"told\n"
    document = json.loads(harness("exec", running.name, "--json", "--", "no-such-thing").stdout)
    assert (document["exit_code"], document["host"]) == (127, "algo-1")
    assert "no-such-thing" in document["error"]
    from_stdin = harness("shell", running.name, stdin=b"echo $SM_HP_LR; false\n")
    assert (from_stdin.stdout, from_stdin.returncode) == (b"0.1\n", 1)
    assert harness("shell", running.name, "-c", "exit 5").returncode == 5
    assert running.record.secondary_status == "Training"


def test_files_come_out_and_go_in(running: Job, tmp_path: Path) -> None:
    name = running.name
    (tmp_path / "new.txt").write_text("new")

    told = json.loads(harness("cp", "--json", f"{name}:/opt/ml/model", str(tmp_path / "got")).stdout)
    assert harness("cp", f"{name}/algo-1:/tmp/mine", str(tmp_path)).returncode == 0
    assert harness("cp", str(tmp_path / "new.txt"), f"{name}:/opt/ml/model/sub/").returncode == 0
    stream = harness("cp", f"{name}:/opt/ml/model/sub", "-").stdout
    assert harness("cp", "-", f"{name}:/tmp", stdin=stream).returncode == 0

    assert (told["files"], told["bytes"], told["skipped"]) == (1, 5, 0)
    assert (tmp_path / "got/sub/m").read_text() == "model"
    assert (tmp_path / "mine").read_text() == "tmp"
    assert harness("exec", name, "--", "cat", "/tmp/sub/new.txt").stdout == b"new"
    refused = harness("cp", f"{name}:/no/such", str(tmp_path))
    assert (refused.returncode, b"/no/such" in refused.stderr) == (BAD_SPEC, True)


def test_a_shell_is_the_user_s_and_ctrl_c_is_the_shell_s(running: Job, person: Callable[..., Person]) -> None:
    name = running.name
    me = person("shell", name)
    prompt = f"({name} algo-1) ".encode()

    me.sees(prompt)
    me.types(b'tty; sh -c \'trap "exit 42" INT; echo g""o; while :; do sleep 0.1; done\'\n')
    me.sees(b"/dev/pts/")
    me.sees(b"go")
    me.types(b"\x03")
    me.sees(prompt)
    me.types(b"echo code=$? lr=$SM_HP_LR\n")
    me.sees(b"code=42 lr=0.1")
    me.types(b"exit 7\n")

    assert me.process.wait(60) == 7
    assert me.has_the_terminal_back()
    assert running.record.secondary_status == "Training"


def test_nothing_of_a_shell_outlives_its_command_line(running: Job, person: Callable[..., Person]) -> None:
    seconds = str(10**6 + uuid.uuid4().int % 10**6)
    me = person("shell", running.name)
    me.sees(f"({running.name} algo-1) ".encode())
    me.types(f"trap '' HUP; (setsid sleep {seconds} &); nohup sleep {seconds} & sleep {seconds}\n".encode())
    assert soon(lambda: len(processes_with(seconds)) == 3)

    me.process.kill()
    me.process.wait()

    assert soon(lambda: not processes_with(seconds))
    assert soon(me.has_the_terminal_back)
    assert soon(lambda: not [each for each in guards() if running.name in each])
    assert running.record.secondary_status == "Training"


def test_a_command_whose_reader_goes_away_ends_at_once(running: Job) -> None:
    word = f"spoken-{uuid.uuid4().hex}"
    endless = f"exec -a {word} yes"
    talking = subprocess.Popen(
        [sys.executable, "-m", "harness", "exec", running.name, "--", "bash", "-c", endless],
        stdout=subprocess.PIPE,
    )
    assert talking.stdout is not None
    assert talking.stdout.read(2) == b"y\n"

    talking.stdout.close()

    assert talking.wait(20) != 0
    assert soon(lambda: not processes_with(word))
    assert harness("exec", running.name, "--", "true").returncode == 0


def guards() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace")
            if "harness.debugging._guard" in words:
                found.append(words)
    return found


def test_one_of_several_hosts(running: Job, tmp_path: Path) -> None:
    unique = running.name

    first = harness("exec", unique, "--", "sh", "-c", "echo $SM_CURRENT_HOST $SM_HOSTS")
    second = harness("exec", unique, "--host", "algo-2", "--", "sh", "-c", "echo $SM_CURRENT_HOST")
    third = harness("exec", unique, "--host", "algo-3", "--", "true")
    harness("cp", f"{unique}/algo-2:/opt/ml/input/config/resourceconfig.json", str(tmp_path))

    assert first.stdout == b'algo-1 ["algo-1","algo-2"]\n'
    assert second.stdout == b"algo-2\n"
    assert third.returncode == BAD_SPEC
    assert b"has no host 'algo-3'" in third.stderr
    assert b"algo-1 to algo-2" in third.stderr
    assert json.loads((tmp_path / "resourceconfig.json").read_text())["current_host"] == "algo-2"


def test_a_failed_job_is_stood_in_where_it_fell(failed: Job, tmp_path: Path) -> None:
    job, unique = failed, failed.name
    victim = Path(job.record.request["Environment"]["VICTIM"])

    look = (
        "cat /tmp/mine /opt/ml/model/m /opt/ml/input/data/training/d; echo; pwd; "
        'echo "$SM_CURRENT_HOST|$SM_CHANNEL_TRAINING|$MINE|$TRAINING_JOB_NAME"; ls /proc | grep -cx 1; '
        "echo kept > /opt/ml/model/added; grep -c ValueError /opt/ml/output/failure; exit 3\n"
    )
    done = harness("shell", unique, "--post-mortem", stdin=look.encode())

    assert done.stdout.decode().split("\n") == [
        "tmpmodeld",
        "/opt/ml/code",
        f"algo-1|/opt/ml/input/data/training|a b|{unique}",
        *done.stdout.decode().split("\n")[3:],
    ]
    assert done.returncode == 3
    assert (victim.parent / "data/d").read_text() == "d"
    # What was changed stays, and is the user's; nothing else does.
    hosts = job.home.job(unique) / "hosts/algo-1"
    assert (hosts / "ml/model/added").read_text() == "kept\n"
    assert (hosts / "ml/model/added").stat().st_uid == os.geteuid()
    assert not (hosts / "scratch/sandbox").exists()
    assert_nothing_is_left(job)

    assert harness("cp", f"{unique}:/opt/ml/model", str(tmp_path / "got")).returncode == 0
    assert (tmp_path / "got/m").read_text() == "model"
    assert (tmp_path / "got/out").readlink() == victim
    # The tree's link leads to the user's file; nobody writes through it, or reads by it.
    (tmp_path / "new").write_text("evil")
    into = harness("cp", str(tmp_path / "new"), f"{unique}:/opt/ml/model/out")
    again = harness("cp", "-L", f"{unique}:/opt/ml/model/out", str(tmp_path / "stolen"))
    assert victim.read_text() == "mine"
    assert not (tmp_path / "stolen").exists()
    assert (into.returncode, again.returncode) == (BAD_SPEC, BAD_SPEC)


def assert_nothing_is_left(job: Job) -> None:
    with Store(job.home) as store:
        assert job.name not in store.claims("left").values()
    if job.record.engine == "docker":
        import docker

        client = docker.from_env()
        label: Any = {"label": f"harness.job={job.name}"}
        assert (client.containers.list(all=True, filters=label), client.networks.list(filters=label)) == (
            [],
            [],
        )
        client.close()
    assert soon(lambda: not [each for each in guards() if job.name in each])


def test_a_post_mortem_that_is_killed_leaves_nothing_and_excludes_a_second(
    failed: Job, person: Callable[..., Person]
) -> None:
    job, unique = failed, failed.name
    me = person("shell", unique, "--post-mortem")
    me.sees(b"a new host on what algo-1 of")
    me.sees(f"({unique} algo-1) ".encode())

    second = harness("shell", unique, "--post-mortem")
    assert second.returncode == BAD_SPEC
    assert b"another process holds what is left of" in second.stderr
    harness("gc", "--all")
    assert (job.home.job(unique) / "hosts/algo-1/ml").is_dir()

    me.process.kill()
    me.process.wait()

    def clean() -> bool:
        with contextlib.suppress(AssertionError):
            assert_nothing_is_left(job)
            return True
        return False

    assert soon(clean), job.home
    assert soon(me.has_the_terminal_back)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("shell", "no-such"), "there is no job 'no-such'"),
        (("exec", "no-such", "ls"), "there is no job 'no-such'"),
        (("cp", "no-such:/a", "."), "there is no job 'no-such'"),
        (("cp", "a", "b"), "neither of a and b names a host"),
        (("cp", "a:/b", "c:/d"), "both of a:/b and c:/d names a host"),
        (("cp", "job:", "."), "names no path in the host"),
        (("cp", "--json", "job:/a", "-"), "can't both go to standard output"),
        (("exec", "-t", "no-such", "ls"), "-t needs a terminal"),
        (("exec", "job", "ls", "-la"), "put -- before the command, as in `harness exec job -- ls -la`"),
        (("exec", "job"), "missing argument 'COMMAND...'"),
    ],
)
def test_words_that_make_no_sense(home: Path, words: tuple[str, ...], told: str) -> None:
    del home
    done = harness(*words)

    assert done.returncode == BAD_SPEC
    assert told in done.stderr.decode().lower() or told in done.stderr.decode()


def test_jobs_that_are_in_no_state_for_it(run: Submit, home: Path, unique: str) -> None:
    completed = run("open('/opt/ml/model/m', 'w').write('m')", engine="sandbox", job_name=unique)
    failed = run("raise ValueError", engine="sandbox", job_name=f"{unique}-f")
    place = Home(home)

    for words in (("shell", unique), ("shell", unique, "--post-mortem"), ("cp", f"{unique}:/opt/ml", ".")):
        done = harness(*words)
        assert done.returncode == BAD_SPEC
        assert b"has completed" in done.stderr
        assert str(place.s3).encode() in done.stderr
    done = harness("exec", failed.name, "--", "true")
    assert (done.returncode, b"--post-mortem" in done.stderr) == (BAD_SPEC, True)
    done = harness("shell", failed.name, "--post-mortem", "--host", "algo-2")
    assert b"has no host 'algo-2': did you mean algo-1?" in done.stderr
    assert completed.record.status == "Completed"


def test_a_shell_doesn_t_keep_its_job_from_ending(
    shared: Job, home: Path, monkeypatch: pytest.MonkeyPatch, person: Callable[..., Person]
) -> None:
    """The last of those that look into this job."""
    del home
    monkeypatch.setenv("HARNESS_HOME", str(shared.home.root))
    me = person("shell", shared.name)
    me.sees(f"({shared.name} algo-1) ".encode())

    local.stop(shared.name, now=True, home=shared.home)

    me.sees(f"algo-1 of {shared.name} has ended".encode())
    assert me.process.wait(60) == 137
    assert me.has_the_terminal_back()
    assert shared.wait().status == "Stopped"

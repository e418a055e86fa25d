"""Warm runs: the same job as a cold one, on hosts that were there; and what happens to those hosts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.engines.warm import code_version, places
from harness.home import Home
from harness.lifecycle import end_idle, owned, warm_sets
from harness.spec import load
from harness.store import Store
from harness.targets import local
from tests.jobs.conftest import Job

HELLO = """
    import os
    print("SCRIPT", os.getpid(), flush=True)
    open("/opt/ml/model/m.txt", "w").write("hi")
"""


class Project:
    """One source_dir and spec, run again and again."""

    def __init__(self, home: Home, spec: Path, engine: str) -> None:
        self.home = home
        self.spec = spec
        self.engine = engine
        self._numbers = iter(range(1000))

    def write(self, script: str, name: str = "train.py") -> None:
        import textwrap

        path = self.spec.parent / "code" / name
        path.write_text(textwrap.dedent(script))

    def submit(self, *, warm: bool = True, **overrides: Any) -> Job:
        local_options = {"warm": warm, "warm_idle": 600, **overrides.pop("local", {})}
        compiled = load(
            self.spec,
            overrides=overrides,
            local=local_options,
            job_name=f"w{next(self._numbers)}-{time.time_ns() % 10**12:012}",
        )
        return Job(self.home, local.submit(compiled, home=self.home).name)

    def run(self, **options: Any) -> Job:
        job = self.submit(**options)
        job.wait()
        return job

    def idle(self) -> dict[str, Any]:
        """The one set, once its job has let go of it."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = warm_sets(self.home)
            if len(found) == 1 and found[0]["state"] == "idle":
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no idle set: {warm_sets(self.home)}")

    def gone(self, seconds: float = 30) -> None:
        """Wait until no set is left."""
        deadline = time.monotonic() + seconds
        while places(self.home.warm):
            assert time.monotonic() < deadline, [path.root for path in places(self.home.warm)]
            time.sleep(0.05)


def warmth(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = job.record.result["warm"]
    return found


@pytest.fixture
def project(
    home: Path, write_spec: Callable[..., Path], engine_name: str
) -> Iterator[Callable[..., Project]]:
    """Make a project; afterwards its hosts are ended, and nothing of them may be left."""
    place = Home(home)

    def make(script: str = HELLO, **spec: Any) -> Project:
        return Project(place, write_spec(script, engine=engine_name, **spec), engine_name)

    yield make
    if place.db.exists():
        with Store(place) as store:
            left = store.unfinished()
        for name in left:
            local.stop(name, now=True, home=place)
            local.wait(name, home=place)
    deadline = time.monotonic() + 30
    while places(place.warm) and time.monotonic() < deadline:
        end_idle(place, "the test is over")
        local.collect(home=place)
        time.sleep(0.05)
    with contextlib.suppress(AssertionError):
        until(lambda: not any(place.warm.glob("*")))
    assert [str(path) for path in place.warm.glob("**/*")] == []
    until(lambda: processes_of(home) == [])
    if engine_name == "docker":
        assert containers_of(home) == []


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(home: Path) -> list[str]:
    """Processes that name this state directory, other than ourselves."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and str(home) in " ".join(process.cmdline()):
                found.append(str(process))
    return found


def containers_of(home: Path) -> list[str]:
    import hashlib

    import docker

    scope = hashlib.sha256(os.path.realpath(home).encode()).hexdigest()[:12]
    client = docker.from_env()
    try:
        filters = {"label": f"harness.scope={scope}"}
        return [
            *(each.name for each in client.containers.list(all=True, filters=filters)),
            *(each.name for each in client.networks.list(filters=filters)),
            *(each.name for each in client.volumes.list(filters=filters)),
        ]
    finally:
        client.close()


# ------------------------------------------------------------------------------------------- the same job

EVERYTHING = """
    import json, locale, os, resource, signal, socket, stat, sys

    def tree(root):
        for folder, folders, files in os.walk(root):
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                info = os.lstat(path)
                yield path, [stat.filemode(info.st_mode), info.st_uid, None if stat.S_ISDIR(info.st_mode) else info.st_size]

    def signals():
        return {int(n): str(signal.getsignal(n)) for n in signal.valid_signals()}

    told = {
        "environment": dict(os.environ),
        "argv": sys.argv,
        "flags": str(sys.flags),
        "path": sys.path,
        "executable": sys.executable,
        "cwd": os.getcwd(),
        "umask": os.umask(0o022),
        "signals": signals(),
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
        "session": os.getsid(0) == os.getpid(),
        "ids": [os.getuid(), os.getgid(), os.getgroups()],
        "limits": [resource.getrlimit(each) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        "hostname": socket.gethostname(),
        "locale": [locale.getpreferredencoding(), sys.getfilesystemencoding(), sys.stdout.encoding],
        "tty": [os.isatty(n) for n in range(3)],
        "tmp": {place: os.listdir(place) for place in ("/tmp", "/var/tmp", "/dev/shm")},
        "ml": dict(tree("/opt/ml")),
        "name": __name__,
        "file": __file__,
        "parent": os.getppid(),
    }
    assert os.environ["HOSTNAME"] == socket.gethostname()
    with open("/opt/ml/output/data/told.json", "w") as file:
        json.dump(told, file)
    for place in ("/opt/ml/model", "/opt/ml/output/data", "/opt/ml/checkpoints", "/tmp", "/dev/shm"):
        os.makedirs(place, exist_ok=True)
        open(place + "/left", "w").write(sys.argv[2])
    print("loss = 0.25;", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    if sys.argv[2] == "3":
        raise ValueError("no")
    sys.exit(int(sys.argv[2]))
"""


def seen(job: Job) -> dict[str, Any]:
    """What the script told, without what differs from job to job and from host to host."""
    archive = job.archive("output")
    assert archive is not None
    text = archive["told.json"].decode().replace(job.name, "JOB")
    text = text.replace(json.loads(text)["hostname"], "HOSTNAME")
    found: dict[str, Any] = json.loads(re.sub(r"\d{13}", "TIME", text))
    return found


def words(job: Job, host: str = "algo-1") -> str:
    """The log with single spaces: AWS's toolkit breaks lines where its reads end."""
    return " ".join(job.log(host).decode().split())


def normal(job: Job) -> list[str]:
    """The log's characters without times and names of jobs and hosts: of two streams, cut anywhere, in no order.

    AWS's toolkit strips each piece of an error of blanks and colons: any of them may be missing.
    """
    text = "".join(job.log().decode().split()).replace(job.name, "JOB")  # also where a line was broken in it
    text = re.sub(r"ip-10-0-\d+-\d+", "HOSTNAME", text)
    return sorted(re.sub(r"\d{4}-\d\d-\d{4}:\d\d:\d\d,\d+", "TIME", text).replace(":", ""))


@pytest.mark.parametrize(
    ("engine_name", "code"),
    [
        ("sandbox", 0),
        ("sandbox", 3),
        ("sandbox", 7),
        pytest.param("docker", 0, marks=pytest.mark.docker),
        pytest.param("docker", 3, marks=pytest.mark.docker),
    ],
)
def test_a_warm_run_is_the_same_job_as_a_cold_one(project: Callable[..., Project], code: int) -> None:
    """contract: A, B, C, D, F, G13–G19, I"""
    one = project(
        EVERYTHING,
        hyperparameters={"code": code, "list": [1, 2]},
        environment={"MINE": "1", "OMP_NUM_THREADS": "1"},
        metric_definitions=[{"Name": "loss", "Regex": "loss = (.*?);"}],
    )
    cold, first, second, third = (one.run(warm=warm) for warm in (False, True, True, True))
    assert [warmth(job)["reused"] for job in (first, second, third)] == [False, True, True]
    expected = seen(cold)
    for job in (first, second, third):
        assert seen(job) == expected
        assert normal(job) == normal(cold)
        assert job.record.status == cold.record.status
        assert job.record.failure_reason == cold.record.failure_reason
        assert [host.exit_code for host in job.record.hosts] == [host.exit_code for host in cold.record.hosts]
        assert job.archive() == cold.archive() == {"left": str(code).encode()}
        assert (job.archive("output") or {})["left"] == (cold.archive("output") or {})["left"]
        assert job.metrics() == {"loss": [0.25]}
        assert [each.status for each in job.record.transitions] == [
            each.status for each in cold.record.transitions
        ]


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_channels_hyperparameters_and_code_are_those_of_each_run(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/one").write_text("1")
    script = (
        "import os, sys; print(f'SEES {os.listdir(\"/opt/ml/input/data/training\")} {sys.argv[1:]} {number}')"
    )
    one = project(script.replace("{number}", "1"), inputs={"training": str(tmp_path / "data")})
    assert "SEES ['one'] ['--number', '1'] 1" in words(one.run(hyperparameters={"number": 1}))
    one.write(script.replace("{number}", "2"))
    second = one.run(hyperparameters={"number": 2})
    assert "SEES ['one'] ['--number', '2'] 2" in words(second)
    assert warmth(second)["reused"], warmth(second)
    (tmp_path / "data/one").unlink()
    (tmp_path / "data/two").write_text("2")
    third = one.run(hyperparameters={"number": 2})
    assert "SEES ['two']" in words(third)
    assert (
        warmth(third)["why"]
        == "the files of /opt/ml/input/data/training changed since the warm host was made"
    )


def test_a_host_whose_channel_was_written_to_is_not_used_again(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/one").write_text("1")
    script = (
        "import os; p = '/opt/ml/input/data/training/'; print(f'SEES {os.listdir(p)}'); open(p + 'new', 'w')"
    )
    one = project(script, inputs={"training": str(tmp_path / "data")})
    for _ in range(2):
        job = one.run()
        assert "SEES ['one']" in words(job)
        assert warmth(job)["discarded"] == "the script wrote into a channel"
        one.gone()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["one"]


def test_checkpoints_outside_opt_ml_and_two_hosts(project: Callable[..., Project]) -> None:
    one = project(
        """
        import os, socket
        host = os.environ["SM_CURRENT_HOST"]
        before = sorted(os.listdir("/somewhere/else"))
        print(f"SEES {before} {socket.gethostbyname('algo-1') != socket.gethostbyname('algo-2')}", flush=True)
        open("/somewhere/else/" + host, "w").write(os.environ["TRAINING_JOB_NAME"])
        open("/opt/ml/model/" + host, "w").write(host)
        """,
        instance_count=2,
        checkpoint_s3_uri="s3://bucket/checkpoints",
        checkpoint_local_path="/somewhere/else",
    )
    first, second = one.run(), one.run()
    assert warmth(second)["reused"], warmth(second)
    for host in ("algo-1", "algo-2"):
        assert "SEES [] True" in words(first, host)
        assert "SEES ['algo-1', 'algo-2'] True" in words(second, host)
    assert second.archive() == {"algo-1": b"algo-1", "algo-2": b"algo-2"}
    saved = one.home.s3 / "bucket/checkpoints"
    assert {path.name: path.read_text() for path in saved.iterdir()} == {
        "algo-1": second.name,
        "algo-2": second.name,
    }


# ------------------------------------------------------------------------------------- when hosts don't fit


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_what_changed_is_told(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    assert warmth(one.run())["why"] == "there was no warm host for it"
    (one.spec.parent / "code/requirements.txt").write_text("# nothing\n")
    second = one.run()
    assert warmth(second)["why"] == "requirements.txt changed since the warm host was made", (
        second.record.failure_reason
    )
    assert warmth(one.run())["reused"]
    changed = one.run(environment={"OMP_NUM_THREADS": "1"})
    assert warmth(changed)["why"] == "OMP_NUM_THREADS in the environment changed since the warm host was made"
    one.write("import no_such_module_at_all")
    missing = one.run(environment={"OMP_NUM_THREADS": "1"})
    assert "no_such_module_at_all came" in warmth(missing)["why"]
    assert missing.record.status == "Failed"
    assert one.idle()["jobs"] == 1


@pytest.mark.parametrize("engine_name", [pytest.param("docker", marks=pytest.mark.docker)])
def test_another_image(project: Callable[..., Project], docker_image: str) -> None:
    import docker

    client = docker.from_env()
    one = project(HELLO)
    one.run()
    made = client.containers.create(docker_image)
    try:
        tag = f"harness-test-{os.getpid()}"
        made.commit(tag)
    finally:
        made.remove()
    try:
        job = one.run(local={"images": {"*": tag}})
        assert warmth(job)["why"].startswith("the image changed")
        assert one.run(local={"images": {"*": tag}}).record.status == "Completed"
    finally:
        end_idle(one.home, "the image goes")
        client.images.remove(tag)
        client.close()


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_two_runs_at_once(project: Callable[..., Project]) -> None:
    one = project("import time; print('BEGUN', flush=True); time.sleep(3)")
    first = one.submit()
    first.until_log(b"BEGUN")
    second = one.submit()
    assert second.wait().status == "Completed"
    assert first.wait().status == "Completed"
    assert warmth(second)["why"] == f"the warm host was busy with {first.name}"
    third = one.run()
    assert warmth(third)["reused"], warmth(third)


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_a_job_that_was_not_asked_to_be_warm(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    job = one.run(warm=False)
    assert "warm" not in job.record.result
    assert not one.home.warm.exists()


# --------------------------------------------------------------------------------------- the life of a host


def test_listed_ended_by_gc_and_told(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    one.run()
    one.run()
    found = one.idle()
    assert (found["jobs"], found["hosts"], found["engine"]) == (2, ["algo-1"], one.engine)
    assert found["memory_bytes"] > 1 << 20
    assert 500 < found["idle_left"] <= 600
    assert found["fingerprint"]["size of /dev/shm"] > 0
    assert local.collect(home=one.home, dry_run=True)["warm"] == [found["id"]]
    assert local.collect(home=one.home)["warm"] == [found["id"]]
    one.gone()
    until(lambda: not psutil.pid_exists(found["pid"]))
    assert warmth(one.run())["why"] == "there was no warm host for it"


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_an_idle_host_goes_away_and_the_next_job_is_told(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    one.run(local={"warm_idle": 0.5})
    one.gone()
    assert warmth(one.run())["why"] == "the warm host was gone: nobody used it for 0 s"


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_a_host_goes_away_when_memory_is_short(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    one.run()
    one.idle()
    # A machine that must have more available than it has keeps none.
    job = one.run(local={"warm_memory": "1000t"})
    one.gone()
    assert warmth(job)["reused"], warmth(job)
    again = one.run(local={"warm_memory": "1000t"})
    assert "memory was short" in warmth(again)["why"]
    assert not warmth(again)["kept"]
    assert again.record.status == "Completed"
    one.gone()


def test_a_keeper_that_is_killed_while_nobody_uses_it(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    one.run()
    found = one.idle()
    os.kill(found["pid"], signal.SIGKILL)
    job = one.run()
    assert warmth(job)["why"] == "the warm host was gone: the process that kept it was killed"
    assert job.record.status == "Completed"
    local.collect(home=one.home)
    one.gone()


def test_a_keeper_that_is_killed_with_a_job(project: Callable[..., Project]) -> None:
    one = project(
        """
        import os, time
        open("/opt/ml/model/m", "w").write("half")
        print("BEGUN", flush=True)
        time.sleep(60)
        """
    )
    job = one.submit()
    job.until_log(b"BEGUN")
    os.kill(warm_sets(one.home)[0]["pid"], signal.SIGKILL)
    record = job.wait()
    assert record.status == "Failed"
    assert "InternalServerError" in (record.failure_reason or "")
    trees = one.home.job(job.name) / "hosts/algo-1/ml"
    assert not trees.is_symlink()
    assert (trees / "model/m").read_text() == "half"
    one.gone()


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_a_keeper_that_is_killed_and_a_job_that_may_try_again(project: Callable[..., Project]) -> None:
    one = project(
        """
        import os, time
        print("BEGUN", flush=True)
        if not os.path.exists("/opt/ml/checkpoints/second"):
            time.sleep(60)
        """,
        checkpoint_s3_uri="s3://bucket/retry",
        max_retry_attempts=1,
    )
    job = one.submit()
    job.until_log(b"BEGUN")
    (one.home.s3 / "bucket/retry").mkdir(parents=True)
    (one.home.s3 / "bucket/retry/second").write_text("")
    os.kill(warm_sets(one.home)[0]["pid"], signal.SIGKILL)
    record = job.wait()
    assert (record.status, record.attempt) == ("Completed", 2)


def test_hosts_that_die_while_nobody_uses_them(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    one.run()
    end_host(one)
    one.gone()
    job = one.run()
    assert warmth(job)["why"].startswith("the warm host was gone: ")
    assert job.record.status == "Completed"


def test_a_host_that_dies_in_a_run(project: Callable[..., Project]) -> None:
    one = project("import time; print('BEGUN', flush=True); time.sleep(60)")
    job = one.submit()
    job.until_log(b"BEGUN")
    end_host(one)
    record = job.wait()
    assert record.status == "Failed"
    assert (record.failure_reason or "").startswith("InternalServerError: host algo-1 is gone")
    one.gone()


def end_host(one: Project) -> None:
    """Kill the whole host from outside."""
    (found,) = warm_sets(one.home)
    if one.engine == "docker":
        import docker

        client = docker.from_env()
        client.containers.get(f"harness-warm_{found['id']}-algo-1").remove(force=True)
        client.close()
        return
    for process in psutil.Process(found["pid"]).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_a_directory_that_is_removed(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    one.run()
    found = one.idle()
    shutil.rmtree(one.home.warm / found["id"])
    job = one.run()
    assert not warmth(job)["reused"]
    assert job.record.status == "Completed"
    until(lambda: not psutil.pid_exists(found["pid"]))


def test_stop_and_kill(project: Callable[..., Project]) -> None:
    one = project(
        """
        import signal, sys, time
        def stop(*_):
            print("STOPPING", flush=True)
            open("/opt/ml/model/m", "w").write("saved")
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        print("BEGUN", flush=True)
        time.sleep(60)
        """
    )
    for now in (False, False, True):
        job = one.submit(local={"stop_grace": 1})
        job.until_log(b"BEGUN")
        local.stop(job.name, now=now, home=one.home)
        assert job.wait().status == "Stopped"
    assert b"STOPPING" not in job.log()
    assert warmth(job)["reused"], warmth(job)
    until(lambda: not owned(one.home, job.name))


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_max_runtime(project: Callable[..., Project]) -> None:
    one = project("import sys, time; time.sleep(int(sys.argv[2]))", local={"stop_grace": 1})
    one.run(hyperparameters={"seconds": 0})
    for _ in range(2):
        job = one.run(hyperparameters={"seconds": 60}, max_run=1)
        assert job.record.secondary_status == "MaxRuntimeExceeded"
        assert warmth(job)["reused"], warmth(job)


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_what_a_run_leaves_running_ends_with_it(project: Callable[..., Project]) -> None:
    one = project(
        """
        import os, subprocess, time
        print(f"ALIVE {len([n for n in os.listdir('/proc') if n.isdigit()])}", flush=True)
        nowhere = subprocess.DEVNULL
        subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=nowhere, stderr=nowhere)
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 100)
            time.sleep(1000)
        """
    )
    logs = [one.run().log() for _ in range(3)]
    counts = [re.findall(rb"ALIVE (\d+)", log)[0] for log in logs]
    assert counts[1] == counts[2]


def test_a_long_state_directory(
    tmp_path: Path, write_spec: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's address has room for 107 bytes."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setenv("HARNESS_HOME", str(deep))
    one = Project(Home(deep), write_spec(HELLO, engine="sandbox"), "sandbox")
    one.run()
    assert warmth(one.run())["reused"]
    end_idle(one.home, "the test is over")
    one.gone()


def test_a_hundred_runs_leave_no_more_than_two(home: Path, write_spec: Callable[..., Path]) -> None:
    one = Project(Home(home), write_spec("print('hi')", engine="sandbox"), "sandbox")

    def look() -> dict[str, int]:
        found = one.idle()
        keeper = psutil.Process(found["pid"])
        time.sleep(0.5)  # the thread that answered is still there for a moment
        inside = keeper.children(recursive=True)
        set_ = one.home.warm / found["id"]
        mounts = Path(f"/proc/{inside[-1].pid}/mounts").read_text().splitlines()
        return {
            "descriptors": keeper.num_fds(),
            "threads": keeper.num_threads(),
            "processes": len(inside),
            "descriptors inside": sum(process.num_fds() for process in inside),
            "mounts": len([line for line in mounts if "/docker/" not in line]),  # others' containers
            "files": sum(len(files) + len(folders) for _, folders, files in os.walk(set_)),
            "memory": keeper.memory_info().rss + sum(process.memory_info().rss for process in inside),
        }

    for _ in range(5):
        one.run()
    before = look()
    for _ in range(95):
        assert one.run().record.status == "Completed"
    after = look()
    assert one.idle()["jobs"] == 100
    memory = after.pop("memory") - before.pop("memory")
    assert after == before
    assert memory < 4 << 20
    end_idle(one.home, "the test is over")
    one.gone()


# ------------------------------------------------------------------------------------ what goes wrong outside


def test_a_program_that_dies_at_once_is_told_in_a_sentence(
    project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/__main__.py").write_text("raise ValueError('no such thing\\tat all')")
    monkeypatch.setattr("harness.engines.warm._place._INNER", tmp_path / "inner")
    one = project(HELLO)
    job = one.run()
    assert job.record.status == "Completed"
    assert warmth(job)["why"] == (
        "no host could be kept: its program ended with code 1 while it started: "
        "ValueError: no such thing#011at all"
    )
    assert "Traceback" in (one.home.job(job.name) / "supervisor.log").read_text()


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_a_host_goes_on_with_the_program_that_it_began_with(
    project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the harness is installed anew while hosts are kept."""
    from harness.engines.warm import _place

    inner = shutil.copytree(_place._INNER, tmp_path / "inner")
    monkeypatch.setattr(_place, "_INNER", inner)
    one = project(HELLO)
    one.run()
    for path in inner.rglob("*.py"):
        path.write_text("raise SystemExit('half written')")
    job = one.run()
    assert warmth(job)["reused"], warmth(job)
    assert job.record.status == "Completed"


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_a_supervisor_that_fails_leaves_the_hosts_to_the_next_job(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the harness is changed under it, and a module that it needs late doesn't fit any more."""
    from harness.lifecycle._supervisor import Supervisor

    def fail(*_: object) -> None:
        raise ImportError("cannot import name 'x'")

    one = project("import sys; open('/opt/ml/model/m', 'w').write('hi'); print('BEGUN', flush=True)")
    with monkeypatch.context() as patched:
        patched.setattr(Supervisor, "_judge", fail)
        patched.setattr(Supervisor, "_finish", fail)
        job = one.submit()
    assert "cannot import name 'x'" in (job.wait().failure_reason or "")
    # Who asks at once is never told that a job which has ended is still there.
    assert [each["job"] for each in warm_sets(one.home) if each["job"] != job.name] in ([], [None])
    assert end_idle(one.home, "the test wants it") != []
    tree = one.home.job(job.name) / "hosts/algo-1/ml"
    assert not tree.is_symlink()
    assert (tree / "model/m").read_text() == "hi"


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_somebody_who_reserves_hosts_and_dies(project: Callable[..., Project]) -> None:
    one = project(HELLO)
    one.run()
    one.idle()
    (place,) = places(one.home.warm)
    for _ in range(20):
        line = place.connect(5.0)
        assert line is not None
        line.sendall(json.dumps({"reserve": code_version()}).encode() + b"\n")
        line.close()  # mostly before the answer
    one.idle()
    assert warmth(one.run())["reused"]


@pytest.mark.parametrize("engine_name", ["sandbox"])
@pytest.mark.parametrize("moment", ["before it answers", "after it answered", "with the files on their way"])
def test_a_keeper_that_is_killed_while_it_gets_a_job(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    from harness.engines.warm import _swap
    from harness.lifecycle import _desk

    armed, me = tmp_path / "armed", os.getpid()

    def die(*_: object) -> None:
        if armed.exists() and os.getpid() != me:
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(wrapped: Callable[..., Any], when: Callable[..., bool], *, after: bool) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            if when(*values) and not after:
                die()
            found = wrapped(*values)
            if when(*values) and after:
                die()
            return found

        return call

    if moment == "with the files on their way":
        monkeypatch.setattr(_swap, "_rename", dying(_swap._rename, lambda *_: True, after=True))
    else:
        taken = dying(_desk._say, lambda _, words: "taken" in words, after=moment == "after it answered")
        monkeypatch.setattr(_desk, "_say", taken)
    one = project(HELLO)
    one.run()
    one.idle()
    armed.touch()
    job = one.submit()
    record = job.wait()
    assert not armed.exists()
    if moment == "with the files on their way":
        assert "its hosts died with it" in (record.failure_reason or "")
        assert warmth(job)["why"] == ""
        assert not (one.home.job(job.name) / "hosts/algo-1/ml").is_symlink()
    else:
        assert record.status == "Completed"
        assert warmth(job)["why"] in (
            "the warm host was lost while the job was prepared",
            "the process that had this job was killed",
        )
    assert one.run().record.status == "Completed"


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_a_keeper_that_does_not_answer(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = project(HELLO)
    one.run()
    found = one.idle()
    monkeypatch.setattr("harness.lifecycle._warm._ANSWER_SECONDS", 0.5)
    os.kill(found["pid"], signal.SIGSTOP)
    try:
        job = one.run()
        assert warmth(job)["why"] == f"the process {found['pid']}, which keeps the warm host, doesn't answer"
        assert warmth(job)["kept"]
        assert {each["id"]: each["state"] for each in warm_sets(one.home)}[found["id"]] == "silent"
        collected = local.collect(home=one.home)
        assert len(collected["warm"]) == 1
        assert collected["problems"] == [
            f"the warm host {found['id']} can't be ended: the process {found['pid']}, which keeps it, doesn't answer"
        ]
    finally:
        os.kill(found["pid"], signal.SIGKILL)


@pytest.mark.parametrize("engine_name", ["sandbox"])
def test_the_harness_changed(project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of an older harness is ended: at once, or when its job is over."""
    one = project("import sys, time; print('BEGUN', flush=True); time.sleep(float(sys.argv[2]))")
    old = one.submit(hyperparameters={"seconds": 3})
    old.until_log(b"BEGUN")
    (first,) = places(one.home.warm)
    monkeypatch.setattr("harness.lifecycle._warm.code_version", lambda: "newer")
    why = "the harness itself changed since the warm host was made"
    assert warmth(one.run(hyperparameters={"seconds": 0}))["why"] == why
    assert old.wait().status == "Completed"
    until(lambda: not first.there())


def test_what_is_left_of_a_set_that_was_being_removed(home: Path) -> None:
    """Its keeper was killed in the middle, or something couldn't be removed."""
    warm = home / "warm"
    for name in ("0a1b2c3d", ".new-0a1b2c3d"):
        (warm / name / "hosts").mkdir(parents=True)
    assert places(warm) == []
    assert len(list(warm.iterdir())) == 2  # somebody may be about it
    for path in warm.iterdir():
        os.utime(path, (0, 0))
    assert places(warm) == []
    assert list(warm.iterdir()) == []

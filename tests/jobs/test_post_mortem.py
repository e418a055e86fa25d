"""What a failed job leaves to look at, and what `harness why` makes of it; in both engines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import debugging
from harness.cli import main
from harness.model import JsonObject
from harness.store import Store
from harness.targets.follow import Notice, follow
from harness.telemetry._stacks import find_py_spy
from tests.jobs.conftest import Job, Submit

REPOSITORY = Path(__file__).parents[2]
needs_py_spy = pytest.mark.skipif(find_py_spy() is None, reason="py-spy is not installed")

BROKEN = """
    from lib import mean

    print("started", flush=True)
    print(mean([]))
"""
LIB = "def mean(xs):\n    return sum(xs) / len(xs)\n"
MENDED = "def mean(xs):\n    return sum(xs) / max(1, len(xs))\n"
HANG = """
    import json, os, time
    import torch
    import torch.distributed as dist

    hosts = json.loads(os.environ["SM_HOSTS"])
    rank = hosts.index(os.environ["SM_CURRENT_HOST"])
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{hosts[0]}:{os.environ['MASTER_PORT']}",
        rank=rank,
        world_size=len(hosts),
    )

    def fetch():
        time.sleep(1000)

    def step(n):
        if rank == 1 and n == 2:
            fetch()
        dist.all_reduce(torch.ones(4))

    print("in step", flush=True)
    for n in range(5):
        step(n)
"""


def bundle(job: Job) -> JsonObject:
    document: JsonObject = json.loads((job.home.job(job.name) / "post-mortem/bundle.json").read_text())
    return document


def screen(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["why", *words]) == 0
    return capsys.readouterr().out


def test_an_exception(run: Submit, engine_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """# contract: G13, G14, G17"""
    job = run(
        BROKEN, engine=engine_name, files={"lib.py": LIB}, hyperparameters={"lr": 2, "api_key": "hunter2"}
    )
    record = job.record
    found = bundle(job)
    verdict = "lib.py:2 raised ZeroDivisionError: division by zero"
    assert found["verdict"]["sentence"] == record.result["verdict"] == verdict
    assert found["failure_reason"] == (record.failure_reason or "").replace("hunter2", "********")
    assert found["failure"]["algo-1"]["text"].startswith("ExecuteUserScriptError:\nExitCode 1\n")
    (host,) = found["hosts"]
    assert (host["exit_code"], host["script_exit_code"]) == (1, 1)
    assert "started" in host["last_lines"]
    (traceback,) = found["tracebacks"]
    assert [Path(frame["file"]).name for frame in traceback["frames"]] == ["train.py", "lib.py"]
    own = Path(found["source"]["path"])
    assert (own.name, own.read_text()) == ("lib.py", LIB)
    assert not debugging.why(job.home, job.name).edited
    assert found["changes"]["since"] is None
    # The toolkit's own words have the whole command line, here and in the cloud; what is handed on has not.
    assert "hunter2" in (record.failure_reason or "")
    for path in (job.home.job(job.name) / "post-mortem").rglob("*"):
        assert "hunter2" not in path.read_text(), path

    own.write_text("# mended\n" + LIB)
    told = screen(capsys, job.name)
    lines = told.splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines)
    assert lines[1] == verdict
    assert f"{own}:2 in mean" in told
    assert "(this is what ran: the file has been edited since)" in told
    assert "→    2      return sum(xs) / len(xs)" in told
    assert f"harness rerun {job.name}" in told
    assert screen(capsys) == told, "without a name it is the newest that failed"
    assert json.loads(screen(capsys, job.name, "--json"))["bundle"] == found


def test_what_changed_since_it_last_completed(run: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    def go(lib: str, **parameters: object) -> Job:
        return run(BROKEN, engine="sandbox", files={"lib.py": lib}, hyperparameters=parameters)

    good = go(MENDED, lr=1)
    assert good.record.status == "Completed", good.record.failure_reason
    assert not (good.home.job(good.name) / "post-mortem").exists()
    assert "nothing to explain" in screen(capsys, good.name)
    packages = good.home.job(good.name) / "packages.json"
    had = json.loads(packages.read_text())
    packages.write_text(json.dumps({**had, "pytest": "0.1", "went": "2.0"}))

    job = go(LIB, lr=2, api_key="hunter2")

    changes = bundle(job)["changes"]
    assert changes["since"] == good.name
    assert {each["path"]: (each["before"], each["after"]) for each in changes["request"]} == {
        "HyperParameters.lr": ("1", "2"),
        "HyperParameters.api_key": (None, "********"),
    }
    assert changes["files"] == [{"path": "lib.py", "kind": "changed", "added": 1, "removed": 1}]
    diff = (job.home.job(job.name) / "post-mortem" / changes["diff_file"]).read_text()
    assert "+    return sum(xs) / len(xs)" in diff
    assert changes["packages"] == [
        {"path": "pytest", "before": "0.1", "after": had["pytest"]},
        {"path": "went", "before": "2.0", "after": None},
    ]
    told = screen(capsys, job.name)
    assert "HyperParameters.lr: 1 → 2" in told
    assert f"pytest (package): 0.1 → {had['pytest']}" in told
    assert "sum(xs) / max(1, len(xs))" in screen(capsys, job.name, "--full")


def test_a_signal(run: Submit, engine_name: str) -> None:
    job = run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", engine=engine_name)
    found = bundle(job)
    assert found["verdict"]["sentence"].startswith("SIGSEGV ended the script: segmentation fault")
    assert found["hosts"][0]["script_exit_code"] == -11


def test_a_memory_limit(run: Submit, engine_name: str) -> None:
    job = run(
        """
        import time
        time.sleep(1.5)
        held = []
        while True:
            held.append(bytearray(20 << 20))
        """,
        engine=engine_name,
        local={"memory": "300m"},
    )
    found = bundle(job)
    assert found["verdict"]["kind"] == "memory", found["verdict"]
    assert "300 MB" in found["verdict"]["sentence"].replace("314.6", "300")
    look = found["looks"]["algo-1"]
    assert look["memory_limit"] == 300 << 20
    assert any("train.py" in " ".join(each["command"]) for each in look["processes"])


@needs_py_spy
def test_a_time_limit_tells_where_the_script_was(run: Submit) -> None:
    """# contract: G7"""
    for limit in (2, 10, 40):  # Python takes its time on a busy machine
        job = run(
            """
            import time

            def wait():
                time.sleep(60)

            print("up", flush=True)
            wait()
            """,
            engine="sandbox",
            max_run=limit,
            local={"stop_grace": 1},
        )
        if b"\nup" in job.log():
            break
        assert bundle(job)["verdict"]["sentence"].startswith(f"stopped by MaxRuntimeInSeconds = {limit}")
    record = job.record
    assert record.secondary_status == "MaxRuntimeExceeded"
    found = bundle(job)
    assert found["verdict"]["sentence"] == (
        f"stopped by MaxRuntimeInSeconds = {limit}: the script was at train.py:5 in wait"
    )
    (script,) = [each for each in found["stacks"][-1]["stacks"] if each["role"] == "script"]
    assert [frame["function"] for frame in script["frames"]] == ["wait", "<module>"]
    assert found["hosts"][0]["exit_words"] == "SIGKILL: by the stop, since SIGTERM didn't end it"
    assert "wait" in (job.home.job(job.name) / "post-mortem/stacks.txt").read_text()


@needs_py_spy
@pytest.mark.slow
def test_a_collective_that_stalls(submit: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    """In one engine: how stacks are had in the other is what `test_a_running_job_tells_where_it_is` sees."""
    pytest.importorskip("torch")
    job = submit(
        HANG,
        engine="sandbox",
        instance_count=2,
        local={"hang_after": 3, "stop_grace": 1},
        hyperparameters={},
    )

    def notes() -> list[str]:
        return [each for each in job.record.result.get("notes", []) if "seems to hang" in each]

    job.until(notes, seconds=120)
    behind = "algo-2 is behind (at train.py:16 in fetch): algo-1 waits in all_reduce at train.py:21"
    assert behind in notes()[0]
    seen = next(each for each in follow(job.home, job.name) if isinstance(each, Notice))
    assert behind in seen.sentence, "who follows the job is told at once"
    told = screen(capsys, job.name)
    assert behind in " ".join(told.split())
    assert "train.py:16 in fetch" in told
    assert f"harness shell {job.name} --host algo-2" in told
    assert job.record.status == "InProgress", "it is not ended by that, as in the cloud"
    assert main(["stop", job.name, "--now"]) == 0
    record = job.wait()
    assert (record.status, len(notes())) == ("Stopped", 1)
    assert behind in bundle(job)["verdict"]["sentence"]
    assert behind in " ".join(screen(capsys, job.name).split())


def test_a_silent_job_that_works_does_not_hang(run: Submit) -> None:
    job = run(
        """
        import time
        end = time.monotonic() + 3
        def work(n):
            return sum(range(n))
        while time.monotonic() < end:
            work(100000)
        """,
        engine="sandbox",
        local={"hang_after": 0.5},
    )
    assert job.record.status == "Completed"
    assert not any("hang" in note for note in job.record.result.get("notes", []))
    assert not (job.home.job(job.name) / "post-mortem").exists()


@needs_py_spy
def test_a_running_job_tells_where_it_is(
    submit: Submit, engine_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = submit(
        "import time\ndef pause():\n    time.sleep(60)\nprint('up', flush=True)\npause()", engine=engine_name
    )
    job.until_log(b"up")
    job.until(lambda: "train.py:3 in pause" in screen(capsys, job.name))
    document = json.loads(screen(capsys, job.name, "--json"))
    assert document["verdict"] == "it is running: the script is at train.py:3 in pause"
    assert document["bundle"] is None
    main(["stop", job.name, "--now"])
    assert job.wait().status == "Stopped"
    assert not (job.home.job(job.name) / "post-mortem/bundle.json").exists(), "it was asked for"
    assert "stopped by request" in screen(capsys, job.name)


# ------------------------------------------------------------------------------- bad weather


def test_a_place_that_can_not_be_written_changes_nothing(submit: Submit) -> None:
    job = submit(
        "import time\nprint('up', flush=True)\ntime.sleep(1)\nraise ValueError('no')", engine="sandbox"
    )
    (job.home.job(job.name) / "post-mortem").write_text("in the way")
    record = job.wait()
    assert record.status == "Failed"
    assert "ValueError" in (record.failure_reason or "")
    assert any("no post-mortem was kept" in note for note in record.result["notes"])


def test_kill_9_of_the_supervisor_leaves_the_bundle_to_the_next(submit: Submit) -> None:
    job = submit("import time\nprint('up', flush=True)\ntime.sleep(60)", engine="sandbox")
    job.until_log(b"up")
    job.until((job.home.job(job.name) / "post-mortem/witness.json").exists)
    os.kill(int((job.home.job(job.name) / "supervisor.lock").read_text()), signal.SIGKILL)
    record = job.wait()
    assert record.status == "Failed"
    found = bundle(job)
    assert found["verdict"]["kind"] == "platform"
    assert "supervisor was killed" in found["verdict"]["sentence"]
    assert found["looks"]["algo-1"]["processes"], "what the dead one had seen is still known"


@pytest.mark.docker
def test_kill_9_of_the_supervisor_in_docker(submit: Submit) -> None:
    job = submit(
        "import time\nprint('up', flush=True)\ntime.sleep(2)\nraise ValueError('no')", engine="docker"
    )
    job.until_log(b"up")
    os.kill(int((job.home.job(job.name) / "supervisor.lock").read_text()), signal.SIGKILL)
    assert job.wait().status == "Failed"
    assert bundle(job)["verdict"]["sentence"] == "train.py:4 raised ValueError: no"


def test_an_earlier_attempts_bundle_is_kept(submit: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    """# contract: G21"""
    job = submit(
        """
        import pathlib, time
        print("up", flush=True)
        time.sleep(1)
        raise ValueError("no")
        """,
        engine="sandbox",
        max_retry_attempts=1,
    )
    job.until_log(b"up")
    os.kill(int((job.home.job(job.name) / "supervisor.lock").read_text()), signal.SIGKILL)
    record = job.wait()
    assert (record.status, record.attempt) == ("Failed", 2)
    place = job.home.job(job.name) / "post-mortem"
    first = json.loads((place / "attempt-1/bundle.json").read_text())
    assert (first["attempt"], first["verdict"]["kind"]) == (1, "platform")
    assert bundle(job)["attempt"] == 2
    assert bundle(job)["verdict"]["sentence"] == "train.py:5 raised ValueError: no"
    assert "attempt 1: " in screen(capsys, job.name)


def test_a_job_that_failed_before_its_script(run: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    job = run(
        "print('never')",
        engine="sandbox",
        inputs={"train": "s3://no-such-bucket/x/"},
        local={"offline": True},
    )
    assert job.record.status == "Failed"
    found = bundle(job)
    assert found["verdict"]["kind"] == "platform"
    assert "no-such-bucket" in found["verdict"]["sentence"]
    assert "the request or its data, not the script" in " ".join(screen(capsys, job.name).split())


def test_a_job_without_a_bundle_is_explained_all_the_same(
    run: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    job = run("raise ValueError('no')", engine="sandbox")
    shutil.rmtree(job.home.job(job.name) / "post-mortem")
    assert "train.py:1 raised ValueError: no" in screen(capsys, job.name)
    shutil.rmtree(job.home.job(job.name))
    assert "ValueError" in screen(capsys, job.name)


def test_a_job_that_waits_tells_for_whom(submit: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.lifecycle._capacity import slots

    first = submit("import time\nprint('up', flush=True)\ntime.sleep(60)", engine="sandbox")
    first.until_log(b"up")
    with Store(first.home) as store:
        taken = store.claims("slot")
        assert store.claim(first.name, {"slot": [str(n) for n in range(slots()) if str(n) not in taken]})
    second = submit("print('never')", engine="sandbox")
    second.until(lambda: second.record.secondary_status == "Pending")
    told = " ".join(screen(capsys, second.name).split())
    assert "its script doesn't run now: it is Pending for" in told
    assert f"until there is room on this machine: {first.name} has it" in told
    assert main(["stop", second.name, "--now"]) == main(["stop", first.name, "--now"]) == 0


def test_no_job_to_ask_about(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del home
    assert main(["why"]) == 2
    assert "no job has failed" in capsys.readouterr().err
    assert main(["why", "nothing"]) == 2


@needs_py_spy
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become an ordinary user")
def test_an_ordinary_user_sees_the_stacks_of_his_sandbox(
    write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    """The kernel lets nobody look into a process of another user namespace but from inside it."""
    user, home = 54321, tmp_path / "his"
    spec = write_spec("import time\ntime.sleep(60)", engine="sandbox", max_run=3, local={"stop_grace": 1})
    home.mkdir()
    for place in (tmp_path, *tmp_path.rglob("*")):
        os.chown(place, user, user)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), sysconfig.get_path("purelib")]),
        "PATH": os.pathsep.join([str(Path(find_py_spy() or "").parent), os.environ["PATH"]]),
        "HARNESS_HOME": str(home),
        "HOME": str(home),
    }
    code = (
        "from harness.spec import load; from harness.targets import local\n"
        f"print(local.run(load({str(spec)!r})).result['verdict'])"
    )
    with opened(tmp_path):
        done = as_user(user, code, environment)
    assert "the script was at train.py:2 in <module>" in done, done


@contextlib.contextmanager
def opened(path: Path) -> Iterator[None]:
    """Directories above that only their owner may enter are open to all for a while."""
    closed = [each for each in path.parents if not each.stat().st_mode & 0o001]
    modes = [each.stat().st_mode for each in closed]
    for each in closed:
        each.chmod(0o711)
    try:
        yield
    finally:
        for each, mode in zip(closed, modes, strict=True):
            each.chmod(mode)


def as_user(user: int, code: str, environment: dict[str, str]) -> str:
    version = "{}.{}".format(*sys.version_info[:2])
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [python, "-c", "import platformdirs, harness"],
                user=user,
                group=user,
                extra_groups=[],
                env=environment,
                cwd="/",
                capture_output=True,
                check=False,
            )
            if not done.returncode:
                break
    else:
        pytest.skip(f"no Python {version} that another user can run, or he can't read this checkout")
    return subprocess.run(
        [python, "-c", code],
        user=user,
        group=user,
        extra_groups=[],
        env=environment,
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    ).stdout


def test_the_answer_is_a_value(run: Submit) -> None:
    job = run("raise ValueError('no')", engine="sandbox")
    found: Any = debugging.why(job.home, job.name)
    assert found.verdict == "train.py:1 raised ValueError: no"
    assert found.directory == job.home.job(job.name) / "post-mortem"

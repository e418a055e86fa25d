"""`harness run` with real jobs in the sandbox, as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import COMPLETED, FAILED, INTERRUPTED, STOPPED
from harness.home import Home
from harness.machine import Machine
from harness.store import Store

SPEC = """
name = "t"
entry_point = "train.py"
source_dir = "code"
role = "arn:aws:iam::111122223333:role/SageMakerRole"
image_uri = "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1"
instance_type = "ml.m5.large"
instance_count = 1
[environment]
API_TOKEN = "geheim"
[[metric_definitions]]
Name = "Loss"
Regex = "Loss = (.*?) :"
[local]
engine = "sandbox"
stop_grace = 1
"""
SCRIPT = """
import pathlib, time
for number in range({lines}):
    print(f"Loss = {{number}} :", flush=True)
    time.sleep({pause})
pathlib.Path("/opt/ml/model/model.txt").write_text("weights")
raise SystemExit({code})
"""


@pytest.fixture
def project(tmp_path: Path, home: Path) -> Path:
    sandbox = Machine.probe(Home(home)).sandbox
    if not sandbox:
        pytest.skip(f"the sandbox can't run here: {sandbox.reason}")
    (tmp_path / "code").mkdir()
    (tmp_path / "job.toml").write_text(SPEC)
    return tmp_path


def script(project: Path, *, lines: int = 3, pause: float = 0.0, code: int = 0) -> None:
    (project / "code" / "train.py").write_text(SCRIPT.format(lines=lines, pause=pause, code=code))


def start(project: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "run", *words],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(project: Path, *words: str) -> tuple[int, str, str]:
    process = start(project, *words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def until_log(home: Path, name: str, text: str) -> None:
    log = Home(home).logs(name, 1) / "algo-1.log"
    deadline = time.monotonic() + 30
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_that_completes(project: Path) -> None:
    script(project)
    code, out, err = run(project, "--job-name", "fine")
    assert (code, err) == (COMPLETED, "")
    lines = out.splitlines()
    assert lines[0] == "fine"
    assert lines[1].startswith("sandbox engine: ")
    assert [line for line in lines if line.startswith("algo-1 │ Loss")] == [
        f"algo-1 │ Loss = {number} :" for number in range(3)
    ]
    phases = [line.split()[2] for line in lines if line[:9].strip().endswith(" s") and " s  " in line]
    assert [phase for phase in phases if phase in ("Downloading", "Training", "Uploading", "Completed")] == [
        *("Downloading", "Training", "Uploading", "Completed"),
    ]
    archive = next(line.strip() for line in lines if line.endswith("model.tar.gz") and " s3:" not in line)
    assert Path(archive).is_file()
    assert "\x1b" not in out
    assert "geheim" not in out.partition("Environment variables:")[0]


def test_json_is_one_document(project: Path) -> None:
    script(project, code=3)
    code, out, err = run(project, "--job-name", "bad", "--json")
    assert code == FAILED
    found = json.loads(out)
    assert found["TrainingJobStatus"] == found["describe"]["TrainingJobStatus"] == "Failed"
    assert found["exit_codes"] == {"algo-1": 1}  # the toolkit's; the script's is in its words
    assert found["metrics"]["Loss"] == {"count": 3, "min": 0, "max": 2, "avg": 1, "last": 2}
    assert "ExitCode 3" in found["FailureReason"]
    assert Path(found["logs"]["algo-1"]).read_bytes()
    assert "algo-1 │ Loss = 2 :" in err


def test_detach_and_stop(project: Path, home: Path) -> None:
    script(project, lines=1000, pause=0.1)
    code, out, _ = run(project, "--job-name", "away", "-d")
    assert (code, out.splitlines()[0]) == (COMPLETED, "started away")
    until_log(home, "away", "Loss = 2")
    words = [sys.executable, "-m", "harness"]
    follower = subprocess.Popen([*words, "logs", "-f", "away"], stdout=subprocess.PIPE, text=True)
    stopped = subprocess.run([*words, "stop", "away", "--wait"], capture_output=True, text=True, check=True)
    assert stopped.stdout == "away is Stopped\n"
    followed, _ = follower.communicate(timeout=30)
    assert "Loss = 2 :" in followed


def test_a_job_that_somebody_stops(project: Path, home: Path) -> None:
    script(project, lines=1000, pause=0.1)
    process = start(project, "--job-name", "stopped", "--stop-grace", "0")
    until_log(home, "stopped", "Loss = 2")
    subprocess.run([sys.executable, "-m", "harness", "stop", "stopped"], check=True, capture_output=True)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == STOPPED
    assert "Stopped in " in out


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(project: Path, home: Path, times: int) -> None:
    script(project, lines=1000, pause=0.1)
    grace = "1" if times == 1 else "100"
    process = start(project, "--job-name", "interrupted", "--stop-grace", grace)
    until_log(home, "interrupted", "Loss = 2")
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (INTERRUPTED, "")
    assert f"stopping as SageMaker does: SIGTERM, up to {grace} s, then SIGKILL" in out
    assert ("killing the job" in out) == (times == 2)
    with Store(Home(home)) as store:
        assert store.summary("interrupted").status == "Stopped"


def test_ctrl_c_before_the_job_is_there(project: Path, home: Path) -> None:
    script(project)
    for number in range(5):
        process = start(project, "--job-name", f"early-{number}")
        time.sleep(0.15 * (number + 1))
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        # Killed by SIGINT: Python itself was still starting, and told so in its own way.
        assert process.returncode in (INTERRUPTED, COMPLETED, -signal.SIGINT)
        assert "Traceback" not in err or process.returncode == -signal.SIGINT
    with Store(Home(home)) as store:
        deadline = time.monotonic() + 20
        while store.unfinished():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_reader_that_has_enough_leaves_the_job_running(project: Path, home: Path) -> None:
    script(project, lines=30, pause=0.02)
    process = start(project, "--job-name", "piped")
    until_log(home, "piped", "Loss = 2")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=30)
    assert process.returncode == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    with Store(Home(home)) as store:
        deadline = time.monotonic() + 30
        while not store.summary("piped").ended_for_good:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert store.summary("piped").status == "Completed"


def test_plan(project: Path) -> None:
    script(project)
    words = [sys.executable, "-m", "harness", "plan"]
    shown = subprocess.run(words, cwd=project, capture_output=True, text=True, check=True)
    assert "sandbox engine" in shown.stdout
    assert "geheim" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    document = subprocess.run([*words, "--json"], cwd=project, capture_output=True, text=True, check=True)
    assert json.loads(document.stdout)["engine"]["name"] == "sandbox"

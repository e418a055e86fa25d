"""How jobs end: exit codes, failure reasons, statuses, artifacts; the same in both engines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from harness.store import JobRecord
from harness.targets import local
from tests.jobs.conftest import Submit, processes_of


def statuses(record: JobRecord) -> list[str]:
    return [item.status for item in record.transitions]


def test_completed(run: Submit, engine_name: str) -> None:
    """# contract: F1, F2, F3, F6, G3, G5"""
    job = run(
        """
        import os, pathlib
        pathlib.Path("/opt/ml/model/sub").mkdir()
        pathlib.Path("/opt/ml/model/sub/weights.bin").write_bytes(b"w" * 1000)
        pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "metrics.json").write_text("{}")
        print("hello from " + os.environ["SM_CURRENT_HOST"], flush=True)
        """,
        engine=engine_name,
    )
    record = job.record
    assert record.status == "Completed", record.failure_reason
    assert statuses(record) == ["Starting", "Pending", "Downloading", "Training", "Uploading", "Completed"]
    assert job.archive("model") == {"sub/weights.bin": b"w" * 1000}
    assert job.archive("output") == {"metrics.json": b"{}"}
    assert b"hello from algo-1" in job.log()
    described = job.describe
    assert described["TrainingJobStatus"] == "Completed"
    assert described["ModelArtifacts"]["S3ModelArtifacts"].endswith(f"/{job.name}/output/model.tar.gz")
    assert described["TrainingTimeInSeconds"] >= 1
    assert "FailureReason" not in described
    assert not (job.home.job(job.name) / "hosts").exists(), "a completed job keeps only its results"


def test_failed_with_the_toolkits_words(run: Submit, engine_name: str) -> None:
    """# contract: G13, G14, G15, G17, F7"""
    job = run(
        """
        import pathlib
        pathlib.Path("/opt/ml/model/partial").write_text("x")
        raise ValueError("the labels are wrong")
        """,
        engine=engine_name,
    )
    record = job.record
    assert (record.status, record.secondary_status) == ("Failed", "Failed")
    reason = record.failure_reason or ""
    assert reason.startswith("AlgorithmError: ExecuteUserScriptError:\nExitCode 1\n")
    # AWS's toolkit may cut a traceback into the pieces in which Python writes it.
    assert "ValueError" in reason
    assert "the labels are wrong" in reason
    assert reason.endswith(", exit code: 1")
    assert statuses(record)[-3:] == ["Training", "Uploading", "Failed"]
    assert job.archive("model") == {"partial": b"x"}


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("import os; os._exit(3)", "ExitCode 3"),
        # AWS's toolkit writes Python's own negative number for a signal.
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ExitCode -11"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ExitCode -9"),
    ],
)
def test_the_scripts_own_code_is_in_the_text(
    run: Submit, engine_name: str, statement: str, words: str
) -> None:
    """# contract: G13, G14"""
    record = run(statement, engine=engine_name).record
    assert record.status == "Failed"
    assert words in (record.failure_reason or ""), record.failure_reason
    assert (record.failure_reason or "").endswith("exit code: 1")


def test_the_users_failure_file_wins(run: Submit, engine_name: str) -> None:
    """# contract: B20, F21, G17"""
    job = run(
        """
        import sys
        open("/opt/ml/output/failure", "w").write("my own words" + "!" * 2000)
        sys.exit(7)
        """,
        engine=engine_name,
    )
    reason = job.record.failure_reason or ""
    assert reason.startswith("AlgorithmError: my own words!!!")
    assert len(reason) <= 1024  # contract: G19


def test_a_failure_file_with_exit_0_is_completed(run: Submit, engine_name: str) -> None:
    """# contract: G5"""
    record = run("open('/opt/ml/output/failure', 'w').write('x')", engine=engine_name).record
    assert record.status == "Completed"
    assert record.failure_reason is None


def test_an_empty_model_makes_no_archive(run: Submit, engine_name: str) -> None:
    """# contract: F5"""
    job = run("print('nothing')", engine=engine_name)
    assert job.record.status == "Completed"
    assert job.archive("model") is None
    assert job.archive("output") is None


def test_max_runtime_stops_the_job(run: Submit, engine_name: str) -> None:
    """# contract: G7"""
    job = run(
        """
        import pathlib, time
        pathlib.Path("/opt/ml/model/kept").write_text("x")
        time.sleep(600)
        """,
        engine=engine_name,
        max_run=2,
        local={"stop_grace": 1},
    )
    record = job.record
    assert (record.status, record.secondary_status) == ("Stopped", "MaxRuntimeExceeded")
    assert statuses(record)[-4:] == ["Training", "Stopping", "Uploading", "MaxRuntimeExceeded"]
    assert job.archive("model") == {"kept": b"x"}


def test_stop_gives_the_grace_and_then_kills(submit: Submit, engine_name: str) -> None:
    """The toolkit as process 1 ignores SIGTERM (contract: G9, G10, G12)."""
    job = submit(
        "import time\nprint('up', flush=True)\nopen('/opt/ml/model/kept', 'w').close()\ntime.sleep(600)",
        engine=engine_name,
        local={"stop_grace": 2},
    )
    job.until_log(b"up")
    started = time.monotonic()
    local.stop(job.name, home=job.home)
    record = job.wait()
    assert 2 <= time.monotonic() - started < 30
    assert (record.status, record.secondary_status) == ("Stopped", "Stopped")
    assert record.result["stop"] == {"cause": "user", "killed": True}
    assert job.archive("model") == {"kept": b""}


def test_a_process_1_that_handles_sigterm_uses_its_grace(submit: Submit, engine_name: str) -> None:
    """# contract: G9, A4"""
    job = submit(
        "",
        engine=engine_name,
        files={"unused.py": ""},
        container_entry_point=[
            "python3",
            "-u",
            "-c",
            "import signal, sys, time\n"[:-1].replace("\n", ";")
            + ";signal.signal(15, lambda *a: (open('/opt/ml/model/saved', 'w').close(), sys.exit(0)))"
            + ";print('up');time.sleep(600)",
        ],
        local={"stop_grace": 60},
    )
    job.until_log(b"up")
    started = time.monotonic()
    local.stop(job.name, home=job.home)
    record = job.wait()
    assert time.monotonic() - started < 30
    assert record.status == "Stopped"
    assert record.result["stop"] == {"cause": "user", "killed": False}
    assert job.archive("model") == {"saved": b""}


def test_now_kills_without_grace(submit: Submit, engine_name: str) -> None:
    job = submit(
        "import time\nprint('up', flush=True)\ntime.sleep(600)", engine=engine_name, local={"stop_grace": 120}
    )
    job.until_log(b"up")
    started = time.monotonic()
    local.stop(job.name, now=True, home=job.home)
    assert job.wait().status == "Stopped"
    assert time.monotonic() - started < 20


def test_metrics_are_seen_as_lines_arrive(run: Submit, engine_name: str) -> None:
    """# contract: I7, I11, I12"""
    job = run(
        """
        for step in range(3):
            print(f"Train_Loss = {1 / (step + 1)} :", flush=True)
        """,
        engine=engine_name,
        metric_definitions=[
            {"Name": "train:Loss", "Regex": "Train_Loss = (.*?) :"},
            {"Name": "never", "Regex": "nothing says ([0-9]+)"},
        ],
    )
    assert job.metrics() == {"train:Loss": [1.0, 0.5, pytest.approx(1 / 3)]}
    final = job.describe["FinalMetricDataList"]
    assert [(item["MetricName"], item["Value"]) for item in final] == [("train:Loss", pytest.approx(1 / 3))]
    assert any("never" in note for note in job.record.result["notes"])


def test_the_machine_is_sampled(run: Submit, engine_name: str) -> None:
    """# contract: I14"""
    job = run("import time\nend = time.time() + 6\nwhile time.time() < end: pass", engine=engine_name)
    sampled = job.metrics(sampled=True)
    assert {"CPUUtilization", "MemoryUtilization", "DiskUtilization"} <= set(sampled)
    assert max(sampled["CPUUtilization"]) > 20


def test_a_daemon_left_behind_ends_with_the_host(run: Submit, engine_name: str) -> None:
    """Without the script's stdout: AWS's own toolkit waits for whoever holds that."""
    started = time.monotonic()
    job = run(
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                null = os.open("/dev/null", os.O_RDWR)
                for descriptor in range(3):
                    os.dup2(null, descriptor)
                time.sleep(3600)
            os._exit(0)
        os.wait()
        print("done", flush=True)
        """,
        engine=engine_name,
    )
    assert job.record.status == "Completed", job.record.failure_reason
    assert time.monotonic() - started < 60
    assert processes_of(job) == []


def test_bytes_that_are_no_text(run: Submit, engine_name: str) -> None:
    """Without the toolkit between script and log: AWS's own can't take bytes that aren't UTF-8."""
    job = run(
        "",
        engine=engine_name,
        files={
            "raw.py": r"""
                import sys
                sys.stdout.buffer.write(b"\xff\xfe\x00 raw \x1b[31m\n")
                sys.stdout.buffer.write(b"x" * (100 << 20) + b"\n")
                sys.stdout.buffer.write(b"end\n")
                """
        },
        container_entry_point=["python3", "/opt/ml/code/raw.py"],
    )
    assert job.record.status == "Completed", job.record.failure_reason
    assert job.log() == b"\xff\xfe\x00 raw \x1b[31m\n" + b"x" * (100 << 20) + b"\nend\n"


def test_several_hosts_merge_their_models(run: Submit, engine_name: str) -> None:
    """# contract: F4, H1, H3, H8, H9"""
    job = run(
        """
        import os, pathlib, time, json
        host = os.environ["SM_CURRENT_HOST"]
        assert "RANK" not in os.environ and os.environ["MASTER_ADDR"]
        pathlib.Path("/opt/ml/model", host).write_text(host)
        pathlib.Path("/opt/ml/model/same").write_text("equal")
        pathlib.Path("/opt/ml/model/clash").write_text(host)
        if host == "algo-2":
            time.sleep(1)
        print("hosts " + os.environ["SM_HOSTS"], flush=True)
        """,
        engine=engine_name,
        instance_count=2,
    )
    record = job.record
    assert record.status == "Completed", record.failure_reason
    archive = job.archive("model") or {}
    assert archive == {"algo-1": b"algo-1", "algo-2": b"algo-2", "same": b"equal", "clash": b"algo-1"}
    assert any("clash" in note for note in record.result["notes"])
    assert b'hosts ["algo-1","algo-2"]' in job.log("algo-2")
    assert {host.name: host.exit_code for host in record.hosts} == {"algo-1": 0, "algo-2": 0}


def test_one_host_that_fails_takes_the_others_with_it(run: Submit, engine_name: str) -> None:
    """# contract: H7"""
    started = time.monotonic()
    job = run(
        """
        import os, sys, time
        if os.environ["SM_CURRENT_HOST"] == "algo-2":
            sys.exit("algo-2 is broken")
        time.sleep(600)
        """,
        engine=engine_name,
        instance_count=2,
    )
    assert job.record.status == "Failed"
    assert "exit code: 1" in (job.record.failure_reason or "")
    assert any(note.startswith("algo-2 failed first") for note in job.record.result["notes"])
    assert time.monotonic() - started < 60


def test_checkpoints_go_up_and_come_back(run: Submit, engine_name: str) -> None:
    """# contract: F11, F12, F14, F18, F19"""
    script = """
        import pathlib
        place = pathlib.Path("/opt/ml/checkpoints")
        found = sorted(p.name for p in place.iterdir())
        print(f"found {found}", flush=True)
        (place / f"epoch-{len(found)}").write_text("state")
        """
    options = {"engine": engine_name, "checkpoint_s3_uri": "s3://my-bucket/ckpt/"}
    first = run(script, **options)
    assert b"found []" in first.log()
    second = run(script, **options)
    assert b"found ['epoch-0']" in second.log(), second.record.failure_reason
    assert sorted(p.name for p in (second.home.s3 / "my-bucket/ckpt").iterdir()) == ["epoch-0", "epoch-1"]


def test_a_local_channel_is_mounted_and_the_original_untouched(
    run: Submit, engine_name: str, tmp_path: Path
) -> None:
    """# contract: B8, C17; File mode lets the script write, but never to the user's own files."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("original")
    job = run(
        """
        import os, pathlib
        channel = pathlib.Path(os.environ["SM_CHANNEL_TRAINING"])
        print("read " + (channel / "a.txt").read_text(), flush=True)
        (channel / "a.txt").write_text("changed")
        (channel / "new.txt").write_text("new")
        """,
        engine=engine_name,
        inputs={"training": str(data)},
    )
    assert job.record.status == "Completed", job.record.failure_reason
    assert b"read original" in job.log()
    assert {p.name: p.read_text() for p in data.iterdir()} == {"a.txt": "original"}


def test_retry_strategy_retries_only_our_own_failures(run: Submit, engine_name: str) -> None:
    """# contract: G21"""
    record = run("raise SystemExit(1)", engine=engine_name, max_retry_attempts=2).record
    assert record.status == "Failed"
    assert record.attempt == 1


def test_hyperparameters_arrive_as_arguments(run: Submit, engine_name: str) -> None:
    """# contract: C1, D24, D27, D28"""
    job = run(
        "import sys, json\nprint('argv ' + json.dumps(sys.argv[1:]), flush=True)",
        engine=engine_name,
        hyperparameters={"lr": 1e-4, "batch_size": 32, "x": "adam", "flag": True},
    )
    line = next(line for line in job.log().splitlines() if line.startswith(b"argv"))
    assert json.loads(line[5:]) == ["--batch_size", "32", "--flag", "True", "--lr", "0.0001", "-x", "adam"]


def test_log_and_metrics_of_an_isolated_job(run: Submit, engine_name: str) -> None:
    """# contract: D11, I19"""
    job = run(
        """
        import socket
        try:
            socket.create_connection(("1.1.1.1", 53), 2)
        except OSError:
            print("nobody is there")
        print("loss=0.5;")
        """,
        engine=engine_name,
        enable_network_isolation=True,
        metric_definitions=[{"Name": "loss", "Regex": "loss=(.*?);"}],
    )
    assert job.record.status == "Completed", job.log()
    assert b"nobody is there" in job.log()
    assert job.metrics() == {"loss": [0.5]}

"""Commands that look at jobs: records made through the store, logs through the log writer."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import errors
from harness.cli import _summary, _terminal, main
from harness.cli._display import Display
from harness.home import Home
from harness.lifecycle._owner import own
from harness.model import FieldTreatment, HostPlan, MetricPoint, Plan, Spec, Treatment
from harness.store import HostRecord, Progress, StopRequest, Store, from_json
from harness.targets import follow as following
from harness.telemetry import LogWriter


def plan_of(hosts: int) -> Plan:
    return Plan(
        engine="sandbox",
        engine_reason="no Docker Engine answers",
        image=None,
        image_asked="image",
        image_note="",
        hosts=tuple(
            HostPlan(
                name=f"algo-{number + 1}",
                instance_type="ml.p4d.24xlarge",
                instance_group="",
                cloud_gpus=8,
                gpus=0,
            )
            for number in range(hosts)
        ),
        network_interface="eth0",
        shm_bytes=1,
        memory_bytes=None,
        cpus=1,
        disk_free_bytes=1,
        python=None,
        world_size=1,
        cloud_world_size=8,
        notes=("there is no GPU here",),
        treatments=(
            FieldTreatment(
                path="RoleArn",
                value="arn",
                treatment=Treatment.CLOUD_ONLY,
                reason="nothing assumes it",
                visible=True,
            ),
        ),
    )


def request_of(name: str, hosts: int) -> dict[str, Any]:
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::111122223333:role/SageMakerRole",
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
        "ResourceConfig": {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": hosts, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        "Environment": {"API_TOKEN": "geheim", "N": "20"},
    }


class Jobs:
    """Makes jobs as a supervisor would."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.store = Store(home)

    def create(self, name: str, *, hosts: int = 1) -> str:
        self.store.create_job(Spec(request=request_of(name, hosts)), plan_of(hosts), message="Starting")
        return name

    def train(self, name: str, hosts: int = 1, **lines: str) -> None:
        """Enter Training; `algo_1="text"` is what a host prints."""
        self.store.put_hosts(
            name, [HostRecord(name=f"algo-{n + 1}", stream=f"{name}/algo-{n + 1}-1") for n in range(hosts)]
        )
        self.store.transition(name, "Training", "Training in progress", training_start=time.time())
        for host, text in lines.items():
            self.say(name, host.replace("_", "-"), text)

    def say(self, name: str, host: str, text: str, now: float | None = None) -> None:
        attempt = self.store.summary(name).attempt
        with LogWriter(self.home.logs(name, attempt), host) as writer:
            writer.feed(text.encode(), int((now or time.time()) * 1000))

    def end(self, name: str, status: str = "Completed", reason: str | None = None) -> None:
        self.store.transition(name, "Uploading", "Uploading")
        self.store.transition(
            name,
            status,
            f"Training job {status}",
            status=status,
            failure_reason=reason,
            training_end=time.time(),
        )

    def done(self, name: str, status: str = "Completed", *, hosts: int = 1, **lines: str) -> str:
        self.create(name, hosts=hosts)
        self.train(name, hosts, **lines)
        self.end(name, status)
        return name


@pytest.fixture
def jobs(home: Path) -> Iterator[Jobs]:
    made = Jobs(Home(home))
    yield made
    made.store.close()


def output(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(words) == code
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


# ------------------------------------------------------------------------------ jobs


def test_jobs(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "jobs") == "there are no jobs; `harness run` starts one\n"
    for number in range(5):
        jobs.done(f"job-{number}", "Failed" if number == 2 else "Completed")
    head, *rows = output(capsys, "jobs").splitlines()
    assert head.split() == ["STATUS", "CREATED", "TIME", "INSTANCES", "NAME"]
    assert [row.split()[-1] for row in rows] == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    assert [row.split()[0] for row in rows].count("Failed") == 1
    assert max(map(len, rows)) <= 80
    *_, last, hint = output(capsys, "jobs", "-n", "2").splitlines()
    assert last.endswith("job-3")
    assert "newest 2 of more" in hint
    assert len(output(capsys, "jobs", "--all").splitlines()) == 6
    assert output(capsys, "jobs", "--status", "failed").splitlines()[-1].endswith("job-2")
    assert output(capsys, "jobs", "--name-contains", "b-3").splitlines()[-1].endswith("job-3")
    assert output(capsys, "jobs", "--name-contains", "zzz") == "there are no jobs that match\n"


def test_jobs_json(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.done("job-1")
    (row,) = json.loads(output(capsys, "jobs", "--json"))["TrainingJobSummaries"]
    assert (row["TrainingJobName"], row["TrainingJobStatus"]) == ("job-1", "Completed")
    assert row["CreationTime"].count(":") == 3
    assert row["Engine"] == "sandbox"


# -------------------------------------------------------------------------- describe


def test_describe_hides_secrets_from_people_only(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.done("job-1")
    shown = json.loads(output(capsys, "describe", "job-1"))
    whole = json.loads(output(capsys, "describe", "job-1", "--json"))
    assert shown["Environment"] == {"API_TOKEN": "********", "N": "20"}
    assert whole["Environment"]["API_TOKEN"] == "geheim"
    assert whole["TrainingJobStatus"] == "Completed"
    assert [each["Status"] for each in whole["SecondaryStatusTransitions"]] == [
        *("Starting", "Training", "Uploading", "Completed"),
    ]
    assert whole["SecondaryStatusTransitions"][0]["StartTime"][:2] == "20"


@pytest.mark.parametrize("command", ["describe", "logs", "metrics", "stop"])
def test_an_unknown_job(jobs: Jobs, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.done("mnist-1")
    assert main([command, "mnist-2"]) == errors.BAD_SPEC
    assert "did you mean mnist-1?" in capsys.readouterr().err


# ------------------------------------------------------------------------------ logs


def test_logs(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.done("one", algo_1="first\nsecond\ttab\nlast words")
    assert output(capsys, "logs", "one") == "first\nsecond#011tab\nlast words\n"
    assert output(capsys, "logs", "one", "--tail", "2") == "second#011tab\nlast words\n"
    assert output(capsys, "logs", "one", "--tail", "0") == ""
    assert output(capsys, "logs", "-f", "one") == "first\nsecond#011tab\nlast words\n"
    stamped = output(capsys, "logs", "-t", "one", "--tail", "1")
    assert stamped.startswith("20")
    assert stamped.endswith("  last words\n")


def test_logs_of_several_hosts_in_the_order_of_time(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.create("two", hosts=2)
    jobs.train("two", 2)
    now = time.time()
    for number, host in enumerate(("algo-2", "algo-1", "algo-2")):
        jobs.say("two", host, f"line {number}\n", now + number)
    jobs.end("two")
    expected = "algo-2 │ line 0\nalgo-1 │ line 1\nalgo-2 │ line 2\n"
    assert output(capsys, "logs", "two") == expected
    assert output(capsys, "logs", "-f", "two") == expected
    assert output(capsys, "logs", "two", "--host", "algo-2") == "line 0\nline 2\n"
    events = json.loads(output(capsys, "logs", "two", "--json"))["events"]
    assert [event["message"] for event in events] == ["line 0", "line 1", "line 2"]
    assert events[0]["logStreamName"] == "two/algo-2-1"
    streamed = [json.loads(line) for line in output(capsys, "logs", "-f", "two", "--json").splitlines()]
    assert streamed == events
    assert main(["logs", "two", "--host", "algo-9"]) == errors.BAD_SPEC
    assert "its hosts are algo-1, algo-2" in capsys.readouterr().err


def test_logs_of_a_job_that_printed_nothing(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.done("silent")
    assert output(capsys, "logs", "silent") == ""
    assert json.loads(output(capsys, "logs", "silent", "--json")) == {"events": []}


def test_logs_of_each_attempt(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.create("retried")
    jobs.train("retried", algo_1="first try\npart")
    jobs.store.transition("retried", "Starting", "again", attempt=2)
    jobs.train("retried", algo_1="second try\n")
    jobs.end("retried")
    assert output(capsys, "logs", "retried") == "second try\n"
    assert output(capsys, "logs", "retried", "--attempt", "1") == "first try\npart\n"
    assert main(["logs", "retried", "--attempt", "3"]) == errors.BAD_SPEC
    capsys.readouterr()


# --------------------------------------------------------------------------- metrics


def test_metrics(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.done("job-1")
    assert output(capsys, "metrics", "job-1") == "job-1 has no metrics\n"

    def points(name: str, *values: float) -> list[MetricPoint]:
        return [
            MetricPoint(name=name, value=value, timestamp_ms=1000 * number, host="algo-1")
            for number, value in enumerate(values)
        ]

    jobs.store.add_metrics("job-1", points("train:Loss", 2, 1, 0.5))
    jobs.store.add_metrics("job-1", points("CPUUtilization", 100, 300), sampled=True)
    rows = [row.split() for row in output(capsys, "metrics", "job-1").splitlines()]
    assert rows == [
        ["METRIC", "VALUES", "MIN", "MAX", "AVG", "LAST"],
        ["train:Loss", "3", "0.5", "2", "1.16667", "0.5"],
        ["CPUUtilization", "2", "100", "300", "200", "300"],
    ]
    assert len(output(capsys, "metrics", "job-1", "--name", "train:Loss").splitlines()) == 2
    loss, cpu = json.loads(output(capsys, "metrics", "job-1", "--json"))["metrics"]
    assert loss == {
        "name": "train:Loss",
        "host": "algo-1",
        "sampled": False,
        "points": [[0, 2.0], [1000, 1.0], [2000, 0.5]],
    }
    assert (cpu["unit"], cpu["sampled"]) == ("Percent", True)  # contract: I14


# -------------------------------------------------------------------------- stop, gc


def test_stop(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.create("job-1")
    with own(jobs.home, "job-1") as mine:
        assert mine
        assert output(capsys, "stop", "job-1") == "stopping job-1\n"
        assert jobs.store.summary("job-1").stop_request is StopRequest.STOP
        assert output(capsys, "stop", "job-1", "--now") == "killing job-1\n"
        assert jobs.store.summary("job-1").stop_request is StopRequest.KILL
        jobs.end("job-1", "Stopped")
    assert main(["stop", "job-1"]) == errors.BAD_SPEC
    assert "in status Stopped" in capsys.readouterr().err  # contract: G11


def test_gc(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.done("old", algo_1="x" * 1000)
    assert "removed 0 jobs" in output(capsys, "gc")
    assert "would remove old" in output(capsys, "gc", "--all", "--dry-run")
    found = json.loads(output(capsys, "gc", "--older-than", "0s", "--json"))
    assert found["jobs"] == ["old"]
    assert output(capsys, "jobs").startswith("there are no jobs")


# ------------------------------------------------------------- following, and the display


def test_follow_sees_everything_in_order(jobs: Jobs) -> None:
    """A supervisor's work seen from its first moment to its last."""
    jobs.create("job-1", hosts=2)
    events: list[following.Event] = []
    with own(jobs.home, "job-1"):
        reader = threading.Thread(
            target=lambda: events.extend(following.follow(jobs.home, "job-1", poll=0.001))
        )
        reader.start()
        jobs.store.transition("job-1", "Downloading", "Downloading")
        jobs.store.set_progress("job-1", Progress(what="staging", done=1, total=2))
        deadline = time.monotonic() + 10
        while not any(isinstance(event, following.Tick) and event.progress for event in list(events)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        jobs.train("job-1", 2)
        for number in range(100):
            jobs.say("job-1", f"algo-{number % 2 + 1}", f"{number}\n")
            if not number % 10:
                jobs.store.add_metrics(
                    "job-1", [MetricPoint(name="m", value=number, timestamp_ms=1, host="algo-1")]
                )
        jobs.say("job-1", "algo-1", "last words")
        jobs.end("job-1")
        reader.join()
    phases = [event.transition.status for event in events if isinstance(event, following.Phase)]
    assert phases == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    lines = [event for event in events if isinstance(event, following.Line)]
    for host, parity in (("algo-1", 0), ("algo-2", 1)):
        messages = [line.event.message for line in lines if line.host == host]
        assert messages[:50] == [str(number) for number in range(parity, 100, 2)]
    assert [line.event.message for line in lines if line.host == "algo-1"][50:] == ["last words"]
    values = [
        point.value for event in events if isinstance(event, following.Metrics) for point in event.points
    ]
    assert values == list(range(0, 100, 10))
    assert any(isinstance(event, following.Tick) and event.progress for event in events)
    kinds = [type(event).__name__ for event in events if not isinstance(event, following.Tick)]
    assert kinds.index("Line") > [i for i, kind in enumerate(kinds) if kind == "Phase"][2]
    assert kinds[-1] == "End"
    assert isinstance(events[-1], following.End)
    assert events[-1].record.status == "Completed"


def test_follow_goes_through_attempts(jobs: Jobs) -> None:
    jobs.create("job-1")
    jobs.train("job-1", algo_1="first\npart")
    with own(jobs.home, "job-1"):
        events = following.follow(jobs.home, "job-1", poll=0.001)
        seen = []
        for event in events:
            if isinstance(event, following.Line):
                seen.append(event.event.message)
            if isinstance(event, following.Tick) and event.record.attempt == 1:
                jobs.store.transition("job-1", "Starting", "again", attempt=2)
                jobs.train("job-1", algo_1="second\n")
                jobs.end("job-1")
    assert seen == ["first", "part", "second"]


def test_follow_skips_no_attempt(jobs: Jobs) -> None:
    """However short it was: two attempts may end between two looks."""
    jobs.create("job-1")
    jobs.train("job-1", algo_1="first\n")
    with own(jobs.home, "job-1"):
        seen = []
        for event in following.follow(jobs.home, "job-1", poll=0.001):
            if isinstance(event, following.Line):
                seen.append(event.event.message)
            if isinstance(event, following.Tick) and event.record.attempt == 1:
                for attempt, text in ((2, "second"), (3, "third")):
                    jobs.store.transition("job-1", "Starting", "again", attempt=attempt)
                    jobs.train("job-1", algo_1=text)
                jobs.end("job-1")
    assert seen == ["first", "second", "third"]


@pytest.mark.parametrize("secondary", ["MaxWaitTimeExceeded", "MaxRuntimeExceeded", "Stopped", "Interrupted"])
def test_follow_shows_the_last_words_however_a_job_ends(jobs: Jobs, secondary: str) -> None:
    jobs.create("job-1")
    jobs.train("job-1", algo_1="no newline")
    jobs.store.transition("job-1", secondary, "over", status="Stopped")
    events = list(following.follow(jobs.home, "job-1"))
    assert [event.event.message for event in events if isinstance(event, following.Line)] == ["no newline"]


def test_follow_of_a_long_log_keeps_the_order(jobs: Jobs) -> None:
    jobs.done("job-1", algo_1="".join(f"{number}\n" for number in range(30_000)))
    events = [
        event for event in following.follow(jobs.home, "job-1") if not isinstance(event, following.Tick)
    ]
    lines = [event.event.message for event in events if isinstance(event, following.Line)]
    assert lines == [str(number) for number in range(30_000)]
    phases = [event.transition.status if isinstance(event, following.Phase) else "" for event in events]
    assert phases.index("Training") < 5
    assert phases.index("Uploading") > 30_000


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(jobs: Jobs, name: str, stream: io.StringIO) -> str:
    screen = _terminal.Screen(stream)
    record = jobs.store.job(name)
    display = Display(screen, name, from_json(Plan, record.plan))
    for event in following.follow(jobs.home, name):
        display.show(event)
    screen.write("", *_summary.lines(jobs.home, jobs.store.job(name), screen, spec=Path("job.toml")))
    return stream.getvalue()


def test_what_run_shows_in_a_pipe(jobs: Jobs) -> None:
    jobs.create("job-1")
    jobs.train("job-1", algo_1="Loss = 1\n")
    jobs.store.add_metrics("job-1", [MetricPoint(name="Loss", value=1, timestamp_ms=1, host="algo-1")])
    jobs.store.merge_result(
        "job-1",
        notes=["metric 'x' never matched"],
        artifacts={
            "model": {"uri": "s3://b/model.tar.gz", "path": "/p/model.tar.gz", "files": 1, "bytes": 5}
        },
    )
    jobs.end("job-1", "Failed", "AlgorithmError: ExecuteUserScriptError:\nExitCode 1")
    text = shown(jobs, "job-1", io.StringIO())
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[:3] == [
        "job-1",
        "sandbox engine: no Docker Engine answers",
        "note: there is no GPU here",
    ]
    for expected in (
        "algo-1 │ Loss = 1",
        "  metrics  Loss 1",
        "  reason      AlgorithmError: ExecuteUserScriptError:",
        "              ExitCode 1",
        "  model       5 B, 1 file",
        "              /p/model.tar.gz",
        "  notes       metric 'x' never matched",
        "  ledger      1 field has no effect here, and the script could see 1 of them: see `harness plan job.toml`",
    ):
        assert expected in lines
    assert any(line.startswith("Failed in 0.") for line in lines)


def test_what_run_shows_on_a_terminal(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    jobs.create("job-1")
    jobs.store.transition("job-1", "Downloading", "Downloading")
    jobs.store.set_progress("job-1", Progress(what="staging channel training", done=50, total=200))
    stream = Terminal()
    screen = _terminal.Screen(stream)
    display = Display(screen, "job-1", plan_of(1))
    with own(jobs.home, "job-1"):
        for event in following.follow(jobs.home, "job-1"):
            display.show(event)
            if isinstance(event, following.Tick) and event.record.secondary_status == "Downloading":
                assert "staging channel training ██████░░░░░░░░░░░░░░░░░░ 25 %" in stream.getvalue()
                jobs.train("job-1", algo_1="line\n")
                jobs.store.add_metrics(
                    "job-1", [MetricPoint(name="Loss", value=0.25, timestamp_ms=1, host="algo-1")]
                )
            elif isinstance(event, following.Tick):
                assert "Loss 0.25" in stream.getvalue().splitlines()[-1]
                jobs.end("job-1")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_status_line_that_is_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a number would look like a whole one."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    _terminal.Screen(stream).status("Training 12 s · Loss 90.808")
    assert stream.getvalue().removeprefix("\r\x1b[K") == "Training 12 s · Lo…"

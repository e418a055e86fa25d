"""What a notebook shows of a job, without a kernel: records made through the store."""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import harness
from harness.cli._run import run
from harness.errors import MachineError, UsageError
from harness.home import Home
from harness.model import HostPlan, MetricPoint, Plan, Spec
from harness.notebook import _cell, _curves, _live
from harness.notebook._curves import png, sparkline
from harness.notebook._html import html
from harness.notebook._magics import COMMAND
from harness.notebook._picture import Picture
from harness.notebook._text import text
from harness.store import HostRecord, Progress, Store
from harness.targets import follow as following
from harness.telemetry import LogWriter

EVIL = "<script>alert('x')</script><b>&\x1b[31m"


def record(home: Path, name: str, *, hosts: int = 1, note: str = "") -> Store:
    """A job on record, in Training, with a line of each host."""
    place = Home(home)
    store = Store(place)
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::111122223333:role/SageMakerRole",
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
        "ResourceConfig": {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": hosts, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }
    plan = Plan(
        engine="sandbox",
        engine_reason="",
        image=None,
        image_asked=None,
        image_note="",
        hosts=tuple(
            HostPlan(
                name=f"algo-{n + 1}", instance_type="ml.p4d.24xlarge", instance_group="", cloud_gpus=8, gpus=0
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
        notes=(note,) if note else (),
    )
    store.create_job(Spec(request=request), plan, message="Starting")
    store.put_hosts(
        name, [HostRecord(name=f"algo-{n + 1}", stream=f"{name}/algo-{n + 1}-1") for n in range(hosts)]
    )
    store.transition(name, "Training", "Training in progress", training_start=time.time())
    for number in range(hosts):
        with LogWriter(place.logs(name, 1), f"algo-{number + 1}") as writer:
            writer.feed(f"line of {number + 1} {EVIL}\n".encode(), int(time.time() * 1000))
    return store


def points(name: str, values: list[float], host: str = "algo-1") -> list[MetricPoint]:
    now = int(time.time() * 1000)
    return [
        MetricPoint(name=name, value=value, timestamp_ms=now + 500 * at, host=host)
        for at, value in enumerate(values)
    ]


def test_nothing_that_others_wrote_is_markup(home: Path) -> None:
    with record(home, "job", hosts=2, note=EVIL) as store:
        store.add_metrics("job", points(EVIL, [1.0, 2.0]))
        store.set_progress("job", Progress(what=EVIL, done=1, total=2))
        running = html(Picture.of(Home(home), "job"))
        store.merge_result(
            "job", notes=[EVIL], artifacts={"model": {"path": EVIL, "uri": EVIL, "bytes": 1, "files": 1}}
        )
        store.transition("job", "Failed", "failed", status="Failed", failure_reason=f"AlgorithmError: {EVIL}")
    ended = html(Picture.of(Home(home), "job"))
    for panel in (running, ended):
        assert "<script" not in panel
        assert "<b>&" not in panel
        assert "\x1b" not in panel
        assert "line of 1 &lt;script&gt;" in panel
        assert "algo-2 │" in panel
        assert re.search(r"column-reverse.*<pre style=[^>]*flex:none", panel), (
            "the log's end is what one sees"
        )
    assert "50 %" in running
    assert "50 %" not in ended
    assert "AlgorithmError: &lt;script&gt;" in ended
    plain = text(Picture.of(Home(home), "job"))
    assert "\x1b" not in plain
    assert "job: Failed" in plain


def test_a_picture_grows_as_it_would_be_read(home: Path) -> None:
    """What the events of `follow` add up to is what the record says."""
    with record(home, "job", hosts=2) as store:
        store.add_metrics("job", points("loss", [3.0, 1.0]))
        store.add_metrics("job", points("CPUUtilization", [10.0, 90.0]), sampled=True)
        grown = Picture(record=store.job("job"), home=Home(home))
        store.transition("job", "Uploading", "Uploading")
        store.transition("job", "Completed", "done", status="Completed", training_end=time.time())
    for event in following.follow(Home(home), "job"):
        grown.take(event)
    read = Picture.of(Home(home), "job")
    assert grown.record == read.record
    assert (grown.transitions, list(grown.lines)) == (read.transitions, list(read.lines))
    assert (grown.metrics, grown.usage) == (read.metrics, read.usage)
    assert grown.last_usage() == [("CPU", 90.0)]
    assert [name for name, _ in grown.phases if name in ("Completed", "Failed")] == []


def test_it_is_shown_as_it_grows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder:
        def show(self, picture: Picture, event: following.Event | None) -> None:
            panels.append((type(event).__name__, html(picture)))

    panels: list[tuple[str, str]] = []
    monkeypatch.setattr(_live, "_view", lambda _: Recorder())
    with record(home, "job") as store:
        store.add_metrics("job", points("loss", [3.0, 1.0]))
        store.set_progress("job", Progress(what="packing", done=1, total=4))
        watching = threading.Thread(target=harness.job("job").watch)
        watching.start()
        deadline = time.monotonic() + 30
        while not any("packing 25 %" in panel for _, panel in panels) and time.monotonic() < deadline:
            time.sleep(0.01)
        store.transition("job", "Uploading", "Uploading")
        store.transition("job", "Completed", "done", status="Completed", training_end=time.time())
        watching.join()
    assert panels[0][0] == "NoneType"
    assert "line of 1" not in panels[0][1]
    tick = next(panel for kind, panel in panels if kind == "Tick" and "packing 25 %" in panel)
    for sign in (">Training</span>", "line of 1", "loss", "●"):
        assert sign in tick
    assert panels[-1][0] == "End"
    assert ">Completed</span>" in panels[-1][1]


def test_a_long_log_is_cut_to_its_end(home: Path) -> None:
    with record(home, "job"), LogWriter(Home(home).logs("job", 1), "algo-1") as writer:
        writer.feed("".join(f"{n}\n" for n in range(5000)).encode() + b"x" * 9000 + b"\n", 10**13)
    picture = Picture.of(Home(home), "job", most_lines=50)
    assert len(picture.lines) == 50
    assert picture.lines[-2][1] == "4999"
    assert len(picture.lines[-1][1]) < 2100
    assert len(text(picture).splitlines()) < 25


@pytest.mark.parametrize(
    ("values", "bars"), [([1.0], "▁"), ([0.0, 0.5, 1.0], "▁▅█"), ([2.0, 2.0], "▁▁"), ([-1e300, 1e300], "▁█")]
)
def test_sparklines(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars


def test_a_sparkline_of_many_values_has_the_first_and_the_last() -> None:
    line = sparkline([*range(1000), -5.0])
    assert len(line) == 24
    assert (line[-1], line[-2]) == ("▁", "█")


def test_curves_are_a_picture_or_nothing(home: Path) -> None:
    with record(home, "job") as store:
        assert png(Picture.of(Home(home), "job")) is None
        store.add_metrics("job", points("once", [1.0]))
        assert png(Picture.of(Home(home), "job")) is None, "one value is no curve"
        for number in range(20):
            store.add_metrics("job", points(f"metric $\\frac_{number}", [1.0, 5.0 + number]))
        store.add_metrics("job", points("CPUUtilization", [10.0, 90.0]), sampled=True)
        store.add_metrics("job", points("long", [float(n % 7) for n in range(20_000)]))
    image = png(Picture.of(Home(home), "job"))
    assert image is not None
    assert image.startswith(b"\x89PNG")
    assert len(image) < 500_000


def test_the_first_curves_dont_delay_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as matplotlib to be imported."""
    now = 0.0
    drawn: list[float] = []

    def slow_at_first(picture: Picture) -> bytes:
        nonlocal now
        del picture
        drawn.append(now)
        now += 3.0 if len(drawn) == 1 else 0.01
        return b""

    monkeypatch.setattr(_live, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(_curves, "png", slow_at_first)
    panel = _live._Panel()
    values = [(0.0, 1.0)]
    picture: Any = SimpleNamespace(metrics={"loss": values}, usage={})
    while now < 6:
        panel._draw_curves(picture, now, last=False)
        values.append((now, 1.0))
        now += 0.25
    assert len(drawn) >= 3
    assert drawn[1] < 4.5


def test_a_job_as_an_object(home: Path) -> None:
    with record(home, "job-1", hosts=2) as store:
        store.add_metrics("job-1", points("loss", [3.0, 1.0]))
    job = harness.job("job-1")
    assert (job.status, job.secondary_status, job.failure_reason) == ("InProgress", "Training", None)
    assert repr(job).startswith("<Job job-1: InProgress, ")
    assert [line.split(" <")[0] for line in job.logs()] == ["algo-1 │ line of 1", "algo-2 │ line of 2"]
    assert str(job.logs(host="algo-2", tail=1)).startswith("line of 2 ")
    assert job.metrics().values("loss") == [3.0, 1.0]
    assert [point.value for point in job.metrics()[1:]] == [1.0]
    assert job.artifacts == {}
    assert [each.name for each in harness.jobs(status="InProgress")] == ["job-1"]
    assert harness.jobs(status="Failed") == []
    with pytest.raises(UsageError, match="did you mean job-1"):
        harness.job("job1")
    with pytest.raises(UsageError, match="its hosts are algo-1, algo-2"):
        job.logs(host="algo-3")
    with pytest.raises(UsageError, match="there are loss"):
        job.metrics().values("los")


def test_a_frame_needs_pandas(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with record(home, "job") as store:
        store.add_metrics("job", points("loss", [3.0, 1.0]))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MachineError, match="pip install pandas"):
        harness.job("job").metrics().to_frame()


def test_the_cells_options_are_those_of_the_command_line() -> None:
    """But for what only a terminal has any use for."""
    there = {option for each in run.params for option in (*each.opts, *each.secondary_opts)}
    here = {option for each in COMMAND.params for option in (*each.opts, *each.secondary_opts)}
    assert there - here == {"--json"}
    assert here - there <= {"--quiet", "-q", "--out", "--warm", "--no-warm"}


def test_in_another_thread_there_are_no_interrupts() -> None:
    def work() -> None:
        with _live.interruptible() as interrupts:
            seen.append(interrupts.count)

    seen: list[int] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ('source_dir = "s3://b/code.tar.gz"', "can't be laid over source_dir"),
        ('source_dir = "nowhere"', "source_dir nowhere is no directory"),
        ('source_dir = "."\nentry_point = "../train.py"', "must be a path inside source_dir"),
    ],
)
def test_where_a_cell_cant_go(tmp_path: Path, words: str, sentence: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(words)
    cell = _cell.compiled("print(1)", path, overrides={}, local={}, job_name=None)
    with pytest.raises(UsageError, match=sentence), cell:
        pass

"""The picture that `harness watch` draws: it fits, whatever is in it, and says what matters."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import _watch_views
from harness.cli._watch_board import Board, Run
from harness.cli._watch_screen import draw
from harness.cli._watch_views import headline
from harness.debugging import Change, FileChange
from harness.model import MetricPoint, Transition
from harness.targets.follow import Line, Metrics, Phase
from harness.telemetry import LogEvent

WILD = "界" * 300 + "\x1b[2J\x07" + "é\u0301👩‍💻" * 50


def line(message: str, host: str = "algo-1", at: float = 1000.0) -> Line:
    return Line(host=host, event=LogEvent(timestamp_ms=round(at * 1000), message=message, offset=0, end=0))


def values(*numbers: float, host: str = "algo-1", name: str = "loss") -> Metrics:
    points = tuple(MetricPoint(name=name, value=each, timestamp_ms=0, host=host) for each in numbers)
    return Metrics(points=points, sampled=False)


def phase(status: str, start: float) -> Phase:
    return Phase(transition=Transition(status=status, start=start, end=None, message=""), attempt=1)


def begin(board: Board, hosts: int = 1, change: Change | None = None) -> Run:
    plan: Any = SimpleNamespace(
        engine="sandbox", hosts=[SimpleNamespace(name=f"algo-{n + 1}") for n in range(hosts)], notes=()
    )
    record: Any = SimpleNamespace(name=f"job-{board.count}", created=1000.0)
    return board.begin(record, plan, change)


def end(run: Run, status: str, **members: Any) -> None:
    record: Any = SimpleNamespace(
        **{"status": status, "ended": 1003.0, "failure_reason": None, "result": {}, **members}
    )
    run.end(record)


def board() -> Board:
    return Board(spec="job.toml", on_change="restart")


def full() -> Board:
    """As much of everything as there can be."""
    made = board()
    end(begin(made), "Completed")
    made.change = Change(
        files=tuple(
            FileChange(
                path=f"/src/{WILD}{n}", kind="changed", added=9, removed=9, lines=(f"+{WILD}", f"-{WILD}") * 9
            )
            for n in range(9)
        ),
        at=1000.0,
    )
    run = begin(made, 3, made.change)
    for number in range(500):
        run.take(line(WILD, f"algo-{number % 3 + 1}"))
        run.take(values(number, float("nan"), float("inf"), name=f"metric{number % 20}{WILD}"))
    for status in ("Starting", "Pending", "Downloading", "Training", "Uploading"):
        run.take(phase(status, 1000.0))
    end(
        run,
        "Failed",
        failure_reason=f"AlgorithmError: {WILD}\n" * 5,
        result={"warm": {"reused": False, "why": WILD}},
    )
    run.traceback = (WILD,) * 50
    made.notes.extend([WILD] * 3)
    return made


@pytest.mark.parametrize("made", [board(), full()], ids=["empty", "full"])
@pytest.mark.parametrize("width", [1, 2, 20, 80, 300])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 12, 24, 100])
def test_it_fits(made: Board, width: int, height: int) -> None:
    picture = draw(made, width, height)
    assert len(picture) == height
    assert max(each.cell_len for each in picture) <= width
    assert not [each for each in picture if any(character < " " for character in each.plain)]


def text(made: Board, width: int = 100, height: int = 40) -> str:
    return "\n".join(each.plain.rstrip() for each in draw(made, width, height))


def test_values_are_compared_with_the_run_before() -> None:
    made = board()
    first = begin(made)
    first.take(values(3, 2.5))
    end(first, "Completed")
    second = begin(made)
    second.take(values(3, 2, 1))
    assert "1 ↓ █▄▁" in text(made)
    assert "before 2.5" in text(made)
    assert "✓ 3.0 s  ▶" in text(made)


def test_a_run_without_values_doesnt_hide_the_ones_before() -> None:
    made = board()
    first = begin(made)
    first.take(values(2.5))
    end(first, "Completed")
    end(begin(made), "Failed")
    begin(made)
    assert "before 2.5" in text(made)


def test_values_of_several_hosts_are_not_mixed() -> None:
    made = board()
    run = begin(made, 2)
    run.take(values(1, host="algo-2"))
    run.take(values(100, host="algo-1"))
    run.take(values(2, host="algo-2"))
    assert run.series["loss"].last == 2
    assert "algo-2" in text(made)


def test_the_toolkits_preface_gives_way_to_the_script() -> None:
    made = board()
    run = begin(made)
    preface = [
        "sagemaker-training-toolkit INFO",
        "",
        "Invoking script with the following command:",
        "",
        "python x.py",
        "",
    ]
    notes = ["2026-01-01 sagemaker-training-toolkit INFO     Exceptions not imported"]
    for each in (*preface, *notes):
        run.take(line(each))
    assert run.first_line is None
    assert "python x.py" in text(made)
    run.take(line("hello", at=1001.5))
    assert run.to_first_line == 1.5
    assert [message for _, message in run.tail] == ["hello"]
    for each in (
        "2026-01-01 sagemaker-training-toolkit INFO     Waiting for the process to finish and give a return code.",
        "2026-01-01 sagemaker-training-toolkit ERROR    ExecuteUserScriptError:",
        "ExitCode 1",
    ):
        run.take(line(each))
    assert [message for _, message in run.tail] == ["hello"]


def test_an_image_without_the_toolkit_has_no_preface() -> None:
    made = board()
    run = begin(made)
    run.take(line("hello"))
    assert [message for _, message in run.tail] == ["hello"]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"reused": True, "preloaded": ["torch"]}, "warm, torch imported beforehand"),
        ({"reused": True, "preloaded": ["torch"], "no_fork": "a thread"}, "started anew: a thread"),
        ({"reused": False, "why": "the image changed"}, "cold: the image changed"),
    ],
)
def test_warm_or_why_not(told: dict[str, Any], shown: str) -> None:
    made = board()
    end(begin(made), "Completed", result={"warm": told})
    assert shown in text(made)


def test_what_was_refused_stays_on_the_screen() -> None:
    made = board()
    end(begin(made), "Completed")
    made.refused = "job.toml is not valid TOML"
    assert "job.toml is not valid TOML" in text(made)
    begin(made)
    assert "not valid" not in text(made)


def test_the_headline_names_what_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    files = (
        FileChange(path=str(tmp_path / "code/train.py"), kind="changed", added=2, removed=1),
        FileChange(path=str(tmp_path / "new.py"), kind="added", added=3),
        FileChange(path="/else/where.py", kind="removed", removed=4),
        FileChange(path="/a", kind="changed"),
    )
    change = Change(files=files, at=time.time())
    assert headline(change) == "code/train.py +2 -1, new.py added +3, /else/where.py removed -4, 1 more file"
    assert headline(Change(files=(), at=0)) == "run again"


def test_a_small_terminal_shows_the_log_first() -> None:
    made = full()
    end(made.runs[-1], "Completed")
    made.notes.clear()
    made.runs[-1].take(line("the last line"))
    picture = text(made, 40, 10)
    assert "│ the last line" in picture
    assert picture.count(" │ ") >= 4
    for height in (14, 24, 60):
        picture = text(made, 80, height)
        assert picture.count(" │ ") >= 4
    assert "metric" in picture
    assert "/src/" in picture


@pytest.mark.parametrize(
    ("width", "hint"), [(100, "· harness why job-0"), (61, "· harness why"), (50, "q leaves")]
)
def test_a_command_is_shown_whole_or_not_at_all(width: int, hint: str) -> None:
    made = board()
    end(begin(made), "Failed", failure_reason="it broke")
    assert text(made, width).splitlines()[-1].endswith(hint)


def test_who_interrupted_once_is_told_what_twice_does() -> None:
    made = board()
    run = begin(made)
    assert "Ctrl-C stops it and leaves" in text(made)
    run.stopping = run.interrupted = True
    assert "Ctrl-C again kills it" in text(made)


def test_every_json_event_is_documented_with_its_members() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\|(.*)\|$",
        (Path(__file__).parents[2] / "docs/watch.md").read_text(),
        re.MULTILINE,
    )
    documented = {event: set(re.findall(r"`(\w+)`", members)) for event, members in rows}
    tree = ast.parse(Path(_watch_views.__file__).read_text())
    emitted = {
        call.args[0].value: {str(keyword.arg) for keyword in call.keywords}
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "_emit"
        if isinstance(call.args[0], ast.Constant)
    }
    assert documented.keys() == emitted.keys()
    assert not {
        event: missing for event, members in emitted.items() if (missing := members - documented[event])
    }

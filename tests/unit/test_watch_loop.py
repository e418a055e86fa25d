"""The loop of `harness watch`, apart from its runs."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.cli._watch import _Loop
from harness.cli._watch_board import Board
from harness.debugging import Scope
from harness.errors import SpecError
from harness.home import Home
from harness.machine import Probe


def test_a_look_at_the_machine_that_was_begun_is_used(home: Path, tmp_path: Path) -> None:
    given = ("engine", "gpus", "job_name", "stop_grace")
    watcher: Any = SimpleNamespace(set=lambda _: None, scope=Scope())
    view: Any = SimpleNamespace()
    place = Home(home).ensure()
    loop = _Loop(
        file=tmp_path / "job.toml",
        home=place,
        options={**dict.fromkeys(given), "assignments": (), "strict": False, "offline": False},
        warm=True,
        board=Board(spec="job.toml", on_change="restart"),
        view=view,
        watcher=watcher,
    )
    loop._ahead = (time.monotonic(), Probe(place))
    interrupts: Any = None
    assert isinstance(loop._start(None, interrupts), SpecError)
    assert loop._ahead is None

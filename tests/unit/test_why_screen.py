"""The screen of `harness why`: what of a bundle is this job's, and fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli._terminal import Screen
from harness.cli._why import _Page
from harness.debugging._why import _commands


def look(pid: int) -> dict[str, Any]:
    return {
        "at": 99.0,
        "memory": 1000,
        "memory_limit": 2000,
        "processes": [{"pid": pid, "parent": 1, "command": [], "name": "x"}],
    }


def bundle(**more: Any) -> dict[str, Any]:
    kernel = [
        {"at": 1.0, "text": "python invoked oom-killer: gfp_mask=0", "pid": None},
        {"at": 1.0, "text": "Killed process 77 (python)", "pid": 77},
        {"at": 1.0, "text": "Killed process 42 (python)", "pid": 42},
    ]
    return {"looks": {"algo-1": look(42)}, "kernel": {"lines": kernel}, "made": 100.0, **more}


def at_death(*, full: bool) -> str:
    import sys

    found: Any = SimpleNamespace(record=SimpleNamespace(training_end=100.0))
    return "\n".join(_Page(Screen(sys.stdout), found, full=full)._at_death(bundle()))


def test_the_kernel_s_words_on_other_jobs_are_not_this_one_s() -> None:
    told = at_death(full=False)
    assert "Killed process 42" in told
    assert "Killed process 77" not in told
    assert "invoked oom-killer" not in told
    assert "1.0 kB of 2.0 kB" in told
    assert "(1.0 s before the end)" in told


@pytest.mark.parametrize(
    ("hosts", "blamed", "words"),
    [
        (["algo-1"], "algo-1", "harness shell t --post-mortem"),
        (["algo-1", "algo-2"], "algo-1", "harness shell t --post-mortem"),
        (["algo-1", "algo-2"], "algo-2", "harness shell t --post-mortem --host algo-2"),
        (["algo-1", "algo-2"], None, "harness shell t --post-mortem"),
    ],
)
def test_the_shell_to_go_on_with_is_that_of_the_host_that_fell(
    hosts: list[str], blamed: str | None, words: str
) -> None:
    record: Any = SimpleNamespace(name="t", spec={"origin": ""}, request={}, result={})
    document = {"verdict": {"host": blamed, "kind": "exit"}, "hosts": [{"name": name} for name in hosts]}
    assert _commands(record, document)[0] == words

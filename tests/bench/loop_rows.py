"""Rows of the debug loop: warm hosts, watch, and what a hundred runs leave."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from harness.model import JsonObject
from tests.bench import rows
from tests.bench.rows import HARNESS, Measured

IMPORTED = "import os, time\nimport torch\nos.write(1, f'FIRST {time.time()!r}\\n'.encode())\n"
"""A script's first line as it comes in practice: behind what takes two seconds to import."""
HUNDRED = 100
_PATIENCE = 120.0


def sandbox_against_cold(place: Path, runs: int) -> Measured:
    return _against_cold(place, runs, "sandbox")


def docker_against_cold(place: Path, runs: int) -> Measured:
    rows.need_docker()
    return _against_cold(place, runs, "docker")


def sandbox_against_sdk(place: Path, runs: int) -> Measured:
    return _against_sdk(place, runs, "sandbox")


def docker_against_sdk(place: Path, runs: int) -> Measured:
    return _against_sdk(place, runs, "docker")


def _against_cold(place: Path, runs: int, engine: str) -> Measured:
    """From the start of `harness run --warm` to the first line, beside the same without --warm."""
    spec = rows.project(place, IMPORTED, engine=engine)
    measured = Measured(unit="s", compare="speed-up")
    inside: list[float] = []
    with _warmed(place, spec):
        for number in range(runs + 1):
            measured.theirs.append(rows.first_line([HARNESS, "run", str(spec)], rows.home(place)))
            whole, host = _warm_line(place, spec, f"warm-{number}")
            measured.ours.append(whole)
            inside.append(host)
    measured.note = f"{rows.show(statistics.median(inside[1:]), 's')} of it in the host"
    return rows.warmed(measured)


def _against_sdk(place: Path, runs: int, engine: str) -> Measured:
    """The same beside SDK v2's local mode as a user runs it, its own import and all."""
    rows.need_docker()
    spec = rows.project(place, IMPORTED, engine=engine)
    command, environment = rows.sdk_local_mode(place, spec)
    measured = Measured(unit="s", compare="speed-up")
    with _warmed(place, spec), rows.composed_removed():
        for number in range(max(2, runs // 2) + 1):
            measured.theirs.append(rows.first_line(command, environment))
            measured.ours.append(_warm_line(place, spec, f"warm-{number}")[0])
    return rows.warmed(measured)


def watch(place: Path, runs: int) -> Measured:
    """From a saved file to the first line of the run that it makes `harness watch` start."""
    spec = rows.project(place, IMPORTED, engine="sandbox")
    script = spec.parent / "code/train.py"
    measured = Measured(unit="s", compare="none")
    with _warmed(place, spec), _watching(place, spec) as lines:
        _watched_run(lines)
        for number in range(runs + 1):
            time.sleep(1.0)  # a person, who has looked at the last run
            saved = time.time()
            script.write_text(f"{IMPORTED}# change {number}\n")
            measured.ours.append(_watched_run(lines) - saved)
    return rows.warmed(measured)


def hundred(place: Path, runs: int) -> Measured:
    """A hundred warm runs in a row: what grew between the tenth and the last; then ten more, in turn with the second
    to eleventh of a new host."""
    del runs
    spec = rows.project(place / "old", IMPORTED, engine="sandbox")
    fresh = rows.project(place / "new", IMPORTED, engine="sandbox")
    measured = Measured(unit="s", compare="ratio")
    with _warmed(place, spec):
        for number in range(1, HUNDRED):
            _warm_line(place, spec, f"warm-{number}")
            if number == 10:
                before = _weigh(place, spec)
        after = _weigh(place, spec)
        measured.note = "grew: " + ", ".join(f"{what} {after[what] - before[what]:+,d}" for what in before)
        with _warmed(place, fresh):
            for number in range(10):
                measured.ours.append(_warm_line(place, spec, f"old-{number}")[0])
                measured.theirs.append(_warm_line(place, fresh, f"new-{number}")[0])
    return measured


# ------------------------------------------------------------------------------ what the rows share


@contextlib.contextmanager
def _warmed(place: Path, spec: Path) -> Iterator[None]:
    """With a warm host for the spec; afterwards there is none."""
    try:
        rows.whole([HARNESS, "run", "--warm", str(spec)], rows.home(place))
        yield
    finally:
        rows.whole([HARNESS, "gc"], rows.home(place))


def _warm_line(place: Path, spec: Path, name: str) -> tuple[float, float]:
    """Seconds from the start of `harness run --warm` to the first line, and from the start of Training to it.

    The second is a little more than the host's own share: the engine's is in it.
    """
    from harness.home import Home
    from harness.store import Store

    started = time.time()
    whole = rows.first_line([HARNESS, "run", "--warm", "--job-name", name, str(spec)], rows.home(place))
    with Store(Home(place / "home")) as store:
        job = store.job(name)
    if not job.result["warm"]["reused"]:
        raise AssertionError(f"{name} had no warm host: {job.result['warm']['why']}")
    assert job.training_start is not None
    return whole, started + whole - job.training_start


def _weigh(place: Path, spec: Path) -> Mapping[str, int]:
    """What the process that keeps the host, and the host's own processes, hold between two runs."""
    kept = _idle(place, spec)
    keeper = psutil.Process(kept["pid"])
    family = [keeper, *keeper.children(recursive=True)]
    warm = place / "home/warm" / kept["id"]
    return {
        "KiB of memory": sum(_own_kib(process.pid) for process in family),
        "descriptors": sum(process.num_fds() for process in family),
        "processes": len(family),
        "threads": sum(process.num_threads() for process in family),
        "mounts": max(len(Path(f"/proc/{p.pid}/mountinfo").read_text().splitlines()) for p in family[1:]),
        "KiB on disk": sum(path.lstat().st_blocks for path in warm.rglob("*")) >> 1,
    }


def _own_kib(pid: int) -> int:
    """Memory that no file is behind; of what was shared by a fork, the process's part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def _idle(place: Path, spec: Path) -> JsonObject:
    """What is told of the spec's warm host, once that is idle."""
    from harness.home import Home
    from harness.store import Store

    deadline = time.monotonic() + _PATIENCE
    while True:
        done = subprocess.run(
            [HARNESS, "jobs", "--warm", "--json"],
            capture_output=True,
            text=True,
            check=True,
            env=rows.surroundings(rows.home(place)),
        )
        with Store(Home(place / "home")) as store:
            for kept in json.loads(done.stdout)["warm"]:
                origin = store.job(kept["first_job"]).spec["origin"]
                if kept["state"] == "idle" and Path(origin) == spec:
                    return dict(kept)
        if time.monotonic() > deadline:
            raise AssertionError(f"no idle warm host of {spec}")
        time.sleep(0.1)


@contextlib.contextmanager
def _watching(place: Path, spec: Path) -> Iterator[Iterator[str]]:
    """The events that `harness watch` tells, one a line."""
    process = subprocess.Popen(
        [HARNESS, "watch", "--json", str(spec)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        env=rows.surroundings(rows.home(place)),
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            yield process.stdout
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _watched_run(lines: Iterator[str]) -> float:
    """When the script of the next run says that its first line was; returns once the run has ended."""
    first = None
    for event in map(json.loads, lines):
        if event["event"] == "line" and event["message"].startswith("FIRST "):
            first = float(event["message"].removeprefix("FIRST "))
        elif event["event"] == "ended":
            if first is None or not event["warm"]["reused"]:
                raise AssertionError(f"no warm run: {event}")
            return first
    raise AssertionError("harness watch ended")

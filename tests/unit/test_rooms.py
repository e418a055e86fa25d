"""The order of the rooms: a room knows only those above it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = (
    "errors",
    "model",
    "quantities",
    "home",
    "awsapi",
    "instances",
    "spec",
    "ledger",
    "machine",
    "plan",
    "contract",
    "store",
    "objects",
    "channels",
    "engines",
    "telemetry",
    "outputs",
    "lifecycle",
    "targets",
    "cloud",
    "debugging",
    "conformance",
    "notebook",
    "cli",
)
PACKAGE = Path(__file__).parents[2] / "harness"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms named by any import of the file, late ones too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "harness" and len(parts) > 1 and parts[1] in ROOMS:
                found.add(parts[1])
    return found


SOURCES = sorted(
    path for path in PACKAGE.rglob("*.py") if room_of(path) in ROOMS and "standins" not in path.parts
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(path: Path) -> None:
    allowed = set(ROOMS[: ROOMS.index(room_of(path)) + 1])
    assert imported_rooms(path) <= allowed


def test_every_room_is_in_the_order() -> None:
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert entries - set(ROOMS) - {"py.typed", "standins", "container"} == set()


def test_importing_the_package_stays_light() -> None:
    """`import harness` and the command line's top must not pull in what takes long."""
    code = "import sys, harness, harness.cli; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "botocore",
        "boto3",
        "docker",
        "rich",
        "sagemaker",
        "psutil",
        "pynvml",
        "torch",
        "regex",
        "yaml",
        "sqlite3",
    }
    assert heavy.isdisjoint(loaded)


SLOW = {
    "asyncio",
    "concurrent.futures",
    "email",
    "http.client",
    "importlib.metadata",
    "logging",
    "ssl",
    "unittest",
}
"""Of the standard library: five to twenty milliseconds each."""
WAY = {
    "to the job's record": (
        "import harness.targets.local, harness.targets.interrupts, harness.cli._session\n"
        "from harness.spec import load; from harness.plan import make; from harness.machine import Probe\n"
        "from harness.channels import materialise_source; from harness.lifecycle import spawn",
        {
            "harness.lifecycle._supervisor",
            "harness.telemetry",
            "harness.engines.sandbox",
            "harness.engines.warm",
        },
    ),
    "to a job's supervisor": (
        "import harness.lifecycle._supervisor",
        {"harness.engines.docker", "harness.engines.warm._engine", "harness.spec._compile"},
    ),
}


@pytest.mark.parametrize(("code", "elsewhere"), WAY.values(), ids=WAY.keys())
def test_the_way_to_the_first_line_stays_short(code: str, elsewhere: set[str]) -> None:
    """Every module on it delays each run: what only some jobs need is imported by those."""
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert (SLOW | elsewhere).isdisjoint(loaded)


def documented() -> list[tuple[str, str]]:
    """(room, door) of the table in docs/rooms.md."""
    rows = re.findall(
        r"^\| `(\w+)` \|.*\|(.*)\|$", (PACKAGE.parent / "docs/rooms.md").read_text(), re.MULTILINE
    )
    return [(room, door) for room, doors in rows for door in re.findall(r"`(\w+)`", doors)]


@pytest.mark.parametrize(("room", "door"), documented())
def test_the_doors_in_the_docs_are_there(room: str, door: str) -> None:
    assert hasattr(importlib.import_module(f"harness.{room}"), door)


def test_the_docs_have_every_room_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (PACKAGE.parent / "docs/rooms.md").read_text(), re.MULTILINE)
    assert tuple(rows) == ROOMS

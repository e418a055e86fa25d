"""The pytest plugin, as somebody else's tests use it; the tests are those of docs/verify.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.jobs.test_verify import GOOD
from tests.jobs.test_verify import build as build

ROOT = Path(__file__).parents[2]


def run_pytest(directory: Path, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                "harness.conformance.plugin",
                "-rs",
            ),
            *words,
        ],
        cwd=directory,
        env={**os.environ, "HARNESS_HOME": str(home)},
        capture_output=True,
        text=True,
    )


def documented() -> str:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/verify.md").read_text(), re.DOTALL)
    return example


@pytest.mark.docker
@pytest.mark.slow
def test_the_documented_tests_pass(build: Callable[..., str], home: Path, tmp_path: Path) -> None:
    (tmp_path / "test_image.py").write_text(documented())

    done = run_pytest(tmp_path, home, "--harness-image", build(GOOD), "test_image.py")

    assert "4 passed" in done.stdout, done.stdout
    assert list((home / "verify").iterdir()) == []


@pytest.mark.docker
@pytest.mark.slow
def test_the_suite_says_what_is_broken(build: Callable[..., str], home: Path, tmp_path: Path) -> None:
    image = build(GOOD, "USER nobody")  # it ends at once: nothing else of it is run

    done = run_pytest(tmp_path, home, "--harness-image", image, "--pyargs", "harness.conformance.suite")

    assert done.returncode == 1, done.stdout
    assert "B5 starts with `train`: nobody, the image's USER, may not do what it must" in done.stdout
    assert "to mend it: drop USER from the Dockerfile" in done.stdout
    assert "test_the_image_keeps_the_contract[file system]" in done.stdout


def test_without_an_image_tests_are_skipped(home: Path, tmp_path: Path) -> None:
    (tmp_path / "test_image.py").write_text(documented())

    done = run_pytest(tmp_path, home, "test_image.py")

    assert "2 passed, 2 skipped" in done.stdout, done.stdout
    assert "no image: pytest --harness-image IMAGE" in done.stdout


def test_a_wrong_value_is_told_in_aws_s_words(home: Path, tmp_path: Path) -> None:
    (tmp_path / "test_request.py").write_text(
        "import harness, pytest\n"
        "def test_it(request_builder):\n"
        "    with pytest.raises(harness.SpecError, match='ml.g5.tiny'):\n"
        "        request_builder(instance_type='ml.g5.tiny')\n"
    )

    done = run_pytest(tmp_path, home, "test_request.py")

    assert "1 passed" in done.stdout, done.stdout


def test_the_plugin_costs_other_peoples_tests_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"harness.conformance.plugin": "harness.conformance.plugin"}
    code = (
        "import pytest, sys; before = set(sys.modules); import harness.conformance.plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in loaded if not name.startswith("harness")} <= {"tomllib"}, loaded
    assert len(loaded) < 10

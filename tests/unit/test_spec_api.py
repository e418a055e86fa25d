"""What `import harness` offers, and where state goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.errors import StoreError
from harness.home import Home


def test_the_public_names_are_sorted_and_there() -> None:
    assert harness.__all__ == sorted(harness.__all__)
    assert len(set(harness.__all__)) == len(harness.__all__)
    for name in harness.__all__:
        assert getattr(harness, name) is not None
    assert set(harness.__all__) <= set(dir(harness))


def test_every_error_is_public() -> None:
    from harness import errors

    assert set(errors.__all__) <= set(harness.__all__)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        harness.nonsense  # noqa: B018


def test_importing_the_package_imports_no_room() -> None:
    code = "import sys, harness; print([name for name in sys.modules if name.startswith('harness.')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_home_is_the_variable_or_the_platforms(tmp_path: Path) -> None:
    home = Home.find({"HARNESS_HOME": str(tmp_path / "h")})
    assert home.root == tmp_path / "h"
    assert (home.db, home.jobs, home.s3, home.cache) == (
        tmp_path / "h" / "harness.db",
        tmp_path / "h" / "jobs",
        tmp_path / "h" / "s3",
        tmp_path / "h" / "cache",
    )
    assert home.job("mnist") == tmp_path / "h" / "jobs" / "mnist"
    assert Home.find({"HARNESS_HOME": "~/h"}).root == Path.home() / "h"
    assert Home.find({}).root.name == "harness"
    assert Home.find({}).root.is_absolute()


def test_finding_a_home_makes_nothing(tmp_path: Path) -> None:
    home = Home.find({"HARNESS_HOME": str(tmp_path / "h")})
    assert not home.root.exists()
    assert home.ensure() == home
    assert home.jobs.is_dir()
    assert home.s3.is_dir()
    assert home.cache.is_dir()
    assert not list(home.cache.iterdir())


@pytest.mark.parametrize("place", ["/proc/harness", "a-file/home"])
def test_a_home_that_cannot_be_used(place: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    root = tmp_path / place  # an absolute place stays as it is
    with pytest.raises(StoreError) as raised:
        Home(root).ensure()
    assert str(root) in str(raised.value)
    assert "set HARNESS_HOME to a directory that you can write" in str(raised.value)
    assert "\n" not in str(raised.value)

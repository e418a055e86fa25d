"""Package versions from the names that pip leaves: no interpreter is asked."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path

import pytest

from harness.telemetry import read_packages
from harness.telemetry._packages import packages_of, packages_of_process, places_of


def test_this_interpreter_s_packages_are_what_its_metadata_says() -> None:
    known = {
        re.sub(r"[-_.]+", "-", each.name).lower(): each.version for each in importlib.metadata.distributions()
    }
    found = packages_of(places_of(sys.executable))
    assert {name: version for name, version in found.items() if known.get(name) != version} == {}
    assert found["pytest"] == importlib.metadata.version("pytest")
    assert packages_of_process(os.getpid()) == found
    assert packages_of_process(2**22 + 1) == {}


@pytest.mark.parametrize(
    ("entry", "name", "version"),
    [
        ("torch-1.13.1.dist-info", "torch", "1.13.1"),
        ("torch-1.13.0a0+gitunknown.dist-info", "torch", "1.13.0a0+gitunknown"),
        ("ruamel.yaml-0.17.dist-info", "ruamel-yaml", "0.17"),
        ("Foo_Bar-2!1.0.post1.dist-info", "foo-bar", "2!1.0.post1"),
        ("a-b-c-3.0-py3.11.egg-info", "a-b-c", "3.0"),
        ("my-2d-tool-1.0.dist-info", "my-2d-tool", "1.0"),
        ("torch", "", ""),
        ("no-version.dist-info", "", ""),
    ],
)
def test_a_name(tmp_path: Path, entry: str, name: str, version: str) -> None:
    (tmp_path / entry).mkdir()
    assert packages_of([str(tmp_path)]) == ({name: version} if name else {})


def test_the_first_place_counts_and_pip_s_own_word_after_it(tmp_path: Path) -> None:
    for place, version in (("one", "1.0"), ("two", "2.0")):
        (tmp_path / place / f"x-{version}.dist-info").mkdir(parents=True)
    assert packages_of([str(tmp_path / "none"), str(tmp_path / "one"), str(tmp_path / "two")]) == {"x": "1.0"}
    log = tmp_path / "log"
    log.write_text(
        "Successfully installed X-3.0 scikit-learn-1.5.post1\n"
        "Invoking script with the following command:\nSuccessfully installed x-9\n"
    )
    assert read_packages(tmp_path, log) == {}
    (tmp_path / "packages.json").write_text('{"x": "1.0"}')
    assert read_packages(tmp_path, log) == {"x": "3.0", "scikit-learn": "1.5.post1"}
    assert read_packages(tmp_path, tmp_path / "gone") == {"x": "1.0"}

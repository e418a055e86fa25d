"""Removing what a host left."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.engines import remove_tree


def test_a_tree_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    here = os.open(".", os.O_PATH)
    os.chdir(tmp_path)
    try:
        for _ in range(1500):
            os.mkdir("deep-down")  # noqa: PTH102
            os.chdir("deep-down")
            open("file", "w").close()  # noqa: PTH123
        os.chmod(".", 0)  # noqa: PTH101
    finally:
        os.chdir(here)
        os.close(here)

    remove_tree(tmp_path / "deep-down")

    assert list(tmp_path.iterdir()) == []


def test_what_another_process_removes_meanwhile(tmp_path: Path) -> None:
    for round_ in range(5):
        top = tmp_path / str(round_)
        for number in range(300):
            (top / f"a/b{number % 17}").mkdir(parents=True, exist_ok=True)
            (top / f"a/b{number % 17}/{number}").touch()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(remove_tree, [top] * 4))  # raises what one of them raised
        assert not top.exists()


@pytest.mark.parametrize("kind", ["file", "link", "nothing"])
def test_what_is_no_directory(tmp_path: Path, kind: str) -> None:
    (tmp_path / "kept").mkdir()
    if kind == "file":
        (tmp_path / "x").touch()
    elif kind == "link":
        (tmp_path / "x").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]

"""What watch passes over is what git passes over: the real git is asked beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.debugging._ignore import Ignore, is_litter
from harness.debugging._watch_tree import Scope, Tree

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git isn't installed")

TREES: dict[str, dict[str, str]] = {
    "nothing ignored": {"a.py": "", "d/b.py": ""},
    "plain names": {
        ".gitignore": "*.log\nout\n",
        "a.log": "",
        "d/a.log": "",
        "out/x": "",
        "d/out": "",
        "k.py": "",
    },
    "the last word": {".gitignore": "*.log\n!keep.log\n", "a.log": "", "keep.log": "", "d/keep.log": ""},
    "anchored": {".gitignore": "/top\nd/*.txt\n", "top": "", "d/top": "", "d/a.txt": "", "d/e/a.txt": ""},
    "only directories": {".gitignore": "data/\n", "data/x": "", "d/data": "", "e/data/x": ""},
    "two stars": {
        ".gitignore": "a/**/z\n**/q\nr/**\n",
        "a/z": "",
        "a/b/c/z": "",
        "q": "",
        "d/q": "",
        "r/s/t": "",
    },
    "not out of an ignored directory": {".gitignore": "data/\n!data/keep.py\n", "data/keep.py": "", "k": ""},
    "out of its content": {".gitignore": "data/*\n!data/keep.py\n", "data/keep.py": "", "data/x": ""},
    "the deeper file decides": {
        ".gitignore": "*.csv\n",
        "d/.gitignore": "!*.csv\n",
        "d/e/.gitignore": "secret.csv\n",
        "a.csv": "",
        "d/a.csv": "",
        "d/e/secret.csv": "",
        "d/e/open.csv": "",
    },
    "a directory that a deeper file wants back": {
        ".gitignore": "build/\n",
        "d/.gitignore": "!build/\n",
        "build/x": "",
        "d/build/x": "",
    },
    "signs": {
        ".gitignore": "\\#x\n# no pattern\n\\!y\ntrail\\ \nsp ace\n[ab].c\n?.d\n",
        "#x": "",
        "!y": "",
        "trail ": "",
        "sp ace": "",
        "a.c": "",
        "c.c": "",
        "q.d": "",
        "qq.d": "",
    },
    "no last newline, carriage returns, a byte order mark": {
        ".gitignore": "\ufeffone\r\ntwo\r\nthree",
        "one": "",
        "two": "",
        "three": "",
        "four": "",
    },
    "info/exclude": {".git/info/exclude": "local/\n*.me\n", "local/x": "", "d/y.me": "", "d/z": ""},
    ".gitignore over info/exclude": {
        ".git/info/exclude": "*.me\n",
        ".gitignore": "!a.me\n",
        "a.me": "",
        "b.me": "",
    },
    "everything but": {".gitignore": "*\n!*/\n!*.py\n", "a.py": "", "a.txt": "", "d/b.py": "", "d/b.txt": ""},
    "other letters": {".gitignore": "größe*\nйц\n", "größe.txt": "", "йц": "", "a": ""},
}


def make(root: Path, tree: Mapping[str, str]) -> Path:
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for name, text in tree.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8", newline="")
    return root


def seen(root: Path) -> set[str]:
    look = Tree(Scope(trees=(str(root),))).look()
    return {os.path.relpath(path, root) for path in look.entries}


def git_sees(root: Path, below: str = ".") -> set[str]:
    listed = subprocess.run(
        [
            "git",
            "-c",
            "core.excludesFile=",
            "-C",
            str(root / below),
            "ls-files",
            "-z",
            "-o",
            "--exclude-standard",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return {name for name in listed.stdout.split("\0") if name}


@needs_git
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_the_same_files_as_git(tmp_path: Path, tree: Mapping[str, str]) -> None:
    root = make(tmp_path / "r", tree)
    assert seen(root) == git_sees(root)


@needs_git
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_the_same_below_the_root_of_the_repository(tmp_path: Path, tree: Mapping[str, str]) -> None:
    if not any(name.startswith("d/") for name in tree):
        pytest.skip("it has no such directory")
    root = make(tmp_path / "r", tree)
    assert seen(root / "d") == git_sees(root, "d")


@needs_git
def test_a_directory_that_was_named_is_watched_though_it_is_ignored(tmp_path: Path) -> None:
    root = make(
        tmp_path / "r", {".gitignore": "build/\n*.log\n", "build/train.py": "", "build/.gitignore": "*.tmp\n"}
    )
    (root / "build/x.tmp").touch()
    assert seen(root / "build") == {"train.py", ".gitignore"}


@needs_git
def test_a_worktree_has_its_exclusions_elsewhere(tmp_path: Path) -> None:
    root = make(tmp_path / "r", {"a": ""})
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "m"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", str(tmp_path / "w")], check=True)
    (root / ".git/info/exclude").write_text("*.me\n")
    (tmp_path / "w/x.me").touch()
    assert seen(tmp_path / "w") == {"a"}


def test_without_a_repository_its_own_files_count(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log\n")
    for name in ("a.log", "a.py"):
        (tmp_path / name).touch()
    assert seen(tmp_path) == {".gitignore", "a.py"}


@pytest.mark.parametrize(
    "name",
    [
        ".git",
        "__pycache__",
        "a.pyc",
        "4913",
        ".#train.py",
        "train.py~",
        ".train.py.swp",
        ".train.py.swx",
        "#train.py#",
        ".goutputstream-X8",
        "train.py___jb_tmp___",
        ".ipynb_checkpoints",
        ".nfs000000000123",
    ],
)
def test_what_editors_leave_is_litter(name: str) -> None:
    assert is_litter(name)


@pytest.mark.parametrize(
    "name", ["train.py", "49130", ".env", ".gitignore", "swp", "a#b", "x.swp.py", "git", "a~b"]
)
def test_what_users_write_is_not(name: str) -> None:
    assert not is_litter(name)


def test_rules_are_read_again_when_they_change(tmp_path: Path) -> None:
    (tmp_path / "a.log").touch()
    tree = Tree(Scope(trees=(str(tmp_path),)))
    assert {Path(path).name for path in tree.look().entries} == {"a.log"}
    (tmp_path / ".gitignore").write_text("*.log\n")
    assert {Path(path).name for path in tree.look().entries} == {".gitignore"}


def test_a_bad_pattern_is_told_and_the_others_count(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("!\n*.log\n")
    (tmp_path / "a.log").touch()
    look = Tree(Scope(trees=(str(tmp_path),))).look()
    assert {Path(path).name for path in look.entries} == {".gitignore"}
    assert len(look.problems) == 1
    assert "line 1" in look.problems[0]


def test_answers_are_kept(tmp_path: Path) -> None:
    """Ten thousand names are not matched again at each look."""
    (tmp_path / ".gitignore").write_text("*.log\n")
    ignore = Ignore()
    rules = ignore.root(str(tmp_path))
    assert rules.ignores("a.log", is_directory=False)
    assert ignore.root(str(tmp_path)) is rules
    assert rules.decided == {"a.log": True}

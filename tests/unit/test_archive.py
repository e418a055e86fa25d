"""Trees as tar streams: what fits where, and what a hostile stream or tree can't do."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from harness.engines.archive import RefusedError, pack, unpack


def stream(*members: tuple[str, Any]) -> io.BytesIO:
    """A tar stream: name → bytes for a file, None for a directory, `->X` for a link, `=X` for a hard link, a
    type of tarfile's for something else."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if what is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o555
            elif isinstance(what, str) and what.startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, what[2:]
            elif isinstance(what, str) and what.startswith("="):
                info.type, info.linkname = tarfile.LNKTYPE, what[1:]
            elif isinstance(what, str):
                info.type = what.encode()
            else:
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
                continue
            tar.addfile(info)
    made.seek(0)
    return made


def packed(path: str | Path, **how: Any) -> tuple[io.BytesIO, dict[str, Any]]:
    made = io.BytesIO()
    report = pack(str(path), made, **how)
    made.seek(0)
    return made, report


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub/a").write_text("a")
    (root / "b").write_text("bb")
    (root / "link").symlink_to("sub/a")
    (root / "away").symlink_to("/etc")
    (root / "b").chmod(0o4711)
    os.utime(root / "sub", (1e9, 1e9))
    return root


def test_a_tree_arrives_as_it_was(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    made, report = packed(tree)

    done = unpack(made, str(target))

    assert (report["files"], report["bytes"]) == (done["files"], done["bytes"]) == (2, 3)
    copy = target / "tree"
    assert (copy / "sub/a").read_text() == "a"
    assert (copy / "link").readlink() == Path("sub/a")
    assert (copy / "away").readlink() == Path("/etc")
    assert stat.S_IMODE((copy / "b").stat().st_mode) == 0o711
    assert (copy / "sub").stat().st_mtime == 1e9


@pytest.mark.parametrize(
    ("how", "there", "where", "expected"),
    [
        ({}, ["d/"], "d", "d/tree/b"),
        ({}, ["d/"], "d/", "d/tree/b"),
        ({}, [], "new", "new/b"),
        ({}, [], "new/", "new/b"),
        ({"contents": True}, ["d/"], "d", "d/b"),
        ({"contents": True}, [], "new", "new/b"),
        ({"name": "other"}, ["d/"], "d", "d/other/b"),
        ({"contents": True, "name": "other"}, ["d/"], "d", "d/other/b"),
        ({}, ["d/", "d/tree/", "d/tree/old"], "d", "d/tree/old"),
    ],
)
def test_where_a_directory_goes(
    tree: Path, tmp_path: Path, how: dict[str, Any], there: list[str], where: str, expected: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in there:
        (root / name).mkdir() if name.endswith("/") else (root / name).write_text("old")

    unpack(packed(tree, **how)[0], f"{root}/{where}")

    assert (root / expected).is_file()
    assert (tmp_path / "root" / expected.rpartition("/")[0] / "b").is_file()


@pytest.mark.parametrize(
    ("there", "where", "expected"),
    [
        (["d/"], "d", "d/b"),
        ([], "new", "new"),
        (["old"], "old", "old"),
    ],
)
def test_where_a_file_goes(tree: Path, tmp_path: Path, there: list[str], where: str, expected: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in there:
        (root / name).mkdir() if name.endswith("/") else (root / name).write_text("old")

    unpack(packed(tree / "b")[0], f"{root}/{where}")

    assert (root / expected).read_text() == "bb"


@pytest.mark.parametrize(
    ("source", "where", "words"),
    [
        ("tree", "file", "is not a directory"),
        ("tree", "no/such", "there is no directory"),
        ("tree/b", "new/", "there is no directory"),
        ("tree/b", "file/", "is not a directory"),
        ("tree/b", "no/such", "there is no directory"),
        ("tree/b", "file/below", "there is no directory"),
    ],
)
def test_what_does_not_fit(tree: Path, tmp_path: Path, source: str, where: str, words: str) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(RefusedError, match=words):
        unpack(packed(tmp_path / source)[0], f"{tmp_path}/{where}")

    assert (tmp_path / "file").read_text() == "mine"
    del tree


@pytest.mark.parametrize(
    ("path", "how", "words"),
    [
        ("none", {}, "no such file"),
        ("tree/b/", {}, "not a directory"),
        ("tree/b", {"contents": True}, "not a dir"),
    ],
)
def test_what_cannot_be_packed(
    tree: Path, tmp_path: Path, path: str, how: dict[str, Any], words: str
) -> None:
    del tree
    with pytest.raises(RefusedError, match=words):
        pack(f"{tmp_path}/{path}", io.BytesIO(), **how)


@pytest.mark.parametrize(
    "members",
    [
        [("t", None), ("t/out", "->{secret}"), ("t/out/x", b"evil")],
        [("t", None), ("t/out", "->.."), ("t/out/secret/x", b"evil")],
        [("t", None), ("../secret/x", b"evil")],
        [("t", None), ("t/../../secret/x", b"evil")],
        [("t", "->{secret}"), ("t/x", b"evil")],
        [("t", None), ("t/x", "->{secret}/mine"), ("t/x", b"evil")],
        [("t", None), ("t/x", "={secret}/mine"), ("t/x", b"evil")],
        [("t", None), ("t/d", "->{secret}"), ("t/hard", "=t/d/mine"), ("t/hard", b"evil")],
        [("{secret}/x", b"evil")],
        [("t", None), ("u", None), ("u/x", "->{secret}"), ("u/x/x", b"evil")],
    ],
)
@pytest.mark.parametrize("as_it_is", [False, True])
def test_a_hostile_stream_writes_nothing_outside(
    tmp_path: Path, members: list[tuple[str, Any]], as_it_is: bool
) -> None:
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.mkdir()
    target.mkdir()
    (secret / "mine").write_text("mine")
    filled = [
        (name.format(secret=secret), what.format(secret=secret) if isinstance(what, str) else what)
        for name, what in members
    ]

    with contextlib.suppress(RefusedError, OSError):  # refused, or as harmless as a file in the target
        unpack(stream(*filled), str(target), as_it_is=as_it_is)

    assert [path.name for path in secret.iterdir()] == ["mine"]
    assert (secret / "mine").read_text() == "mine"
    assert not (tmp_path / "x").exists()


def test_a_link_at_the_destination_is_not_followed_but_a_file_s_is_replaced(
    tree: Path, tmp_path: Path
) -> None:
    mine, target = tmp_path / "mine", tmp_path / "target"
    (mine / "dir").mkdir(parents=True)
    (mine / "file").write_text("mine")
    (target / "tree").mkdir(parents=True)
    (target / "tree/b").symlink_to(mine / "file")
    (target / "tree/sub").symlink_to(mine / "dir")

    with pytest.raises(RefusedError, match="tree/sub at the destination is a link"):
        unpack(packed(tree)[0], str(target))

    unpack(packed(tree / "b")[0], str(target / "tree/b"))
    assert (mine / "file").read_text() == "mine"
    assert list((mine / "dir").iterdir()) == []
    assert (target / "tree/b").read_text() == "bb"
    assert not (target / "tree/b").is_symlink()


def test_a_destination_that_the_user_names_by_a_link_is_followed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")

    unpack(packed(tree)[0], str(tmp_path / "alias"))

    assert (tmp_path / "real/tree/b").exists()


def test_no_file_replaces_a_directory_and_no_directory_a_file(tmp_path: Path) -> None:
    (tmp_path / "t/x").mkdir(parents=True)
    (tmp_path / "t/y").write_text("y")

    with pytest.raises(RefusedError, match="t/x at the destination is a directory"):
        unpack(stream(("t", None), ("t/x", b"")), str(tmp_path))
    with pytest.raises(RefusedError, match="t/y at the destination is not a directory"):
        unpack(stream(("t", None), ("t/y/z", b"")), str(tmp_path))


def test_special_files_are_skipped_and_told(tmp_path: Path) -> None:
    root = tmp_path / "t"
    root.mkdir()
    os.mkfifo(root / "pipe")

    made, report = packed(root)
    done = unpack(stream(("t", None), ("t/dev", tarfile.CHRTYPE.decode())), str(tmp_path / "new"))

    assert report["why"] == [f"{root}/pipe: neither a file nor a directory nor a link"]
    with tarfile.open(fileobj=made) as tar:
        assert tar.getnames() == ["t"]
    assert (done["skipped"], list((tmp_path / "new").iterdir())) == (1, [])


def test_a_file_that_shrinks_while_it_is_copied_doesn_t_spoil_the_rest(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstat

    def larger(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        if stat.S_ISREG(int(found[stat.ST_MODE])) and found[stat.ST_SIZE] == 2:
            found[stat.ST_SIZE] = 5
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", larger)
    made, report = packed(tree)
    monkeypatch.undo()

    unpack(made, str(tmp_path / "new"))
    assert (tmp_path / "new/b").read_bytes() == b"bb\0\0\0"
    assert (tmp_path / "new/sub/a").read_text() == "a"
    assert "became shorter" in report["why"][0]


def test_files_of_proc_have_no_size_but_content(tmp_path: Path) -> None:
    unpack(packed("/proc/self/status")[0], str(tmp_path))

    assert "Name:" in (tmp_path / "status").read_text()


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    for data in (b"no archive" * 100, stream(("t/a", b"a" * 5000)).getvalue()[:3000]):
        with pytest.raises(RefusedError, match="not a whole tar archive"):
            unpack(io.BytesIO(data), str(tmp_path), as_it_is=True)
    assert unpack(io.BytesIO(tarfile.NUL * 1024), str(tmp_path), as_it_is=True)["files"] == 0


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    cut = io.BytesIO(stream(("a", b"n" * 5000)).getvalue()[:3000])

    with pytest.raises(RefusedError):
        unpack(cut, str(tmp_path / "a"))

    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

"""The source archive: packed as the SDK packs it, unpacked without being led astray."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.channels import extract_source, materialise_source
from harness.errors import ClientError, SpecError
from harness.model import Upload
from harness.objects import ObjectStore

URI = "s3://b/job/source/sourcedir.tar.gz"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "s3")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "code"
    (root / "pkg").mkdir(parents=True)
    (root / "train.py").write_text("print(1)")
    (root / "train.py").chmod(0o755)
    (root / "pkg/__init__.py").write_text("")
    (root / ".hidden").write_text("h")
    (root / "linked.py").symlink_to("train.py")
    return root


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_an_editor_s_lock_is_left_out_and_told(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    (source / "pkg/.#__init__.py").symlink_to("me@here.4711:1700000000")
    done = materialise_source(Upload(path=source, uri=URI, kind="source", entry_point="train.py"), store)
    assert done.files == 4
    (told,) = done.warnings
    assert told.startswith(f"not packed: .#__init__.py in {source / 'pkg'}, an editor's lock")
    extract_source(URI, store, tmp_path / "got")
    assert not list(tmp_path.glob("got/pkg/.#*"))
    (source / "weights").symlink_to("nowhere")
    with pytest.raises(SpecError, match="is a symbolic link to nothing"):
        materialise_source(Upload(path=source, uri=URI, kind="source", entry_point="train.py"), store)


def test_a_directory_goes_there_and_back(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "mod.py").write_text("m")
    upload = Upload(path=source, uri=URI, kind="source", entry_point="train.py", dependencies=(library,))
    done = materialise_source(upload, store)
    assert (done.files, done.warnings) == (5, ())
    first = store.path(URI).read_bytes()
    materialise_source(upload, store)
    assert store.path(URI).read_bytes() == first
    dest = tmp_path / "ml/code"
    dest.mkdir(parents=True)
    assert extract_source(URI, store, dest).files == 5
    assert tree(dest) == {
        "train.py": "print(1)",
        "linked.py": "print(1)",
        "pkg/__init__.py": "",
        ".hidden": "h",
        "library/mod.py": "m",
    }
    assert (dest / "train.py").stat().st_mode & 0o777 == 0o755
    assert not (dest / "linked.py").is_symlink()  # the SDK follows links
    assert int((dest / "train.py").stat().st_mtime) == int((source / "train.py").stat().st_mtime)
    assert [path.name for path in dest.parent.iterdir()] == ["code"]
    assert list(store.private("tmp").iterdir()) == []


def test_the_same_members_as_the_sdk(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "sdk.tar.gz", "w:gz", dereference=True) as tar:  # sagemaker.utils
        for path in source.iterdir():
            tar.add(path, arcname=path.name)
    materialise_source(Upload(path=source, uri=URI, kind="source", entry_point="train.py"), store)

    def members(archive: Path) -> dict[str, tuple[bytes, int, int]]:
        with tarfile.open(archive) as tar:
            return {m.name: (m.type, m.mode, m.size) for m in tar}

    assert members(store.path(URI)) == members(tmp_path / "sdk.tar.gz")


def test_one_script_and_a_ready_archive(store: ObjectStore, source: Path, tmp_path: Path) -> None:
    materialise_source(
        Upload(path=source / "train.py", uri=URI, kind="source", entry_point="train.py"), store
    )
    extract_source(URI, store, tmp_path / "one")
    assert tree(tmp_path / "one") == {"train.py": "print(1)"}
    ready = tmp_path / "ready.tar.gz"
    ready.write_bytes(store.path(URI).read_bytes())
    done = materialise_source(Upload(path=ready, uri="s3://b/ready.tar.gz", kind="source"), store)
    assert done.size == ready.stat().st_size
    assert ready.exists()
    extract_source("s3://b/ready.tar.gz", store, tmp_path / "two")
    assert tree(tmp_path / "two") == {"train.py": "print(1)"}


def dangle(source: Path) -> Path:
    (source / "gone").symlink_to("nowhere")
    return source / "gone"


def loop(source: Path) -> Path:
    (source / "pkg/up").symlink_to("..")
    return source / "pkg/up"


def fifo(source: Path) -> Path:
    os.mkfifo(source / "pipe")
    return Path("pipe")


@pytest.mark.parametrize("spoil", [dangle, loop, fifo])
def test_sources_that_cannot_be_packed(
    store: ObjectStore, source: Path, spoil: Callable[[Path], Path]
) -> None:
    named = spoil(source)
    with pytest.raises(SpecError, match=str(named)):
        materialise_source(Upload(path=source, uri=URI, kind="source"), store)
    assert not store.exists(URI)
    assert list(store.private("tmp").iterdir()) == []


def test_a_source_that_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        materialise_source(Upload(path=tmp_path / "no", uri=URI, kind="source"), store)


def test_a_heavy_source_is_told(store: ObjectStore, source: Path) -> None:
    (source / "data.bin").touch()
    os.truncate(source / "data.bin", 120_000_000)
    done = materialise_source(Upload(path=source, uri=URI, kind="source"), store)
    assert "120 MB" in done.warnings[0]


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    return member


def store_tar(store: ObjectStore, *members: tarfile.TarInfo) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for member in members:
            body = b"data" if member.isreg() else b""
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    store.put_bytes(URI, data.getvalue())


SYM, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([info("/etc/evil")], "/etc/evil"),
        ([info("../evil")], "../evil"),
        ([info("a/../../evil")], "a/../../evil"),
        ([info("link", SYM, "/etc/hostname")], "link"),
        ([info("link", SYM, "../outside")], "link"),
        ([info("d/link", SYM, "../../outside")], "d/link"),
        ([info("self", SYM, "."), info("up", SYM, "self/../outside")], "up"),
        ([info("out", SYM, ".."), info("out/evil", SYM, "x")], "out/evil"),
        ([info("hard", HARD, "/etc/hostname")], "hard"),
        ([info("hard", HARD, "../outside")], "hard"),
        ([info("out", SYM, ".."), info("hard", HARD, "out/outside")], "hard"),
        ([info("out", SYM, "../"), info("hard", HARD, "out")], "hard"),
        ([info("null", tarfile.CHRTYPE)], "null"),
        ([info("disk", tarfile.BLKTYPE)], "disk"),
        ([info("pipe", tarfile.FIFOTYPE)], "pipe"),
    ],
)
def test_archives_that_reach_outside(
    store: ObjectStore, tmp_path: Path, members: list[tarfile.TarInfo], named: str
) -> None:
    dest = tmp_path / "ml/code"
    dest.mkdir(parents=True)
    (tmp_path / "ml/outside").write_text("untouched")
    store_tar(store, info("good"), *members)
    with pytest.raises(ClientError, match="was not unpacked") as caught:
        extract_source(URI, store, dest)
    assert repr(named) in str(caught.value)
    assert list(dest.iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "ml").iterdir()) == ["code", "outside"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml", "s3"]


def test_a_file_through_a_link_stays_inside(store: ObjectStore, tmp_path: Path) -> None:
    store_tar(store, info("out", SYM, "/tmp"), info("out/evil"))
    with pytest.raises(ClientError, match="'out' is a link and a directory at once"):
        extract_source(URI, store, tmp_path / "code")
    assert not Path("/tmp/evil").exists()


def test_harmless_links_and_modes(store: ObjectStore, tmp_path: Path) -> None:
    store_tar(
        store,
        info("./", tarfile.DIRTYPE, mode=0o755),
        info("./run.sh", mode=0o4755),
        info("d", tarfile.DIRTYPE, mode=0),
        info("d/link", SYM, "../run.sh"),
        info("hard", HARD, "./run.sh"),
        info("dangling", SYM, "later"),
    )
    extract_source(URI, store, tmp_path / "code")
    assert (tmp_path / "code/run.sh").stat().st_mode & 0o7777 == 0o755  # no setuid bit
    assert (tmp_path / "code/d/link").read_text() == (tmp_path / "code/hard").read_text() == "data"
    assert (tmp_path / "code/dangling").is_symlink()
    assert (tmp_path / "code").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("cut", [0, 10, 100])
def test_damaged_archives(store: ObjectStore, source: Path, tmp_path: Path, cut: int) -> None:
    materialise_source(Upload(path=source, uri=URI, kind="source"), store)
    store.put_bytes(URI, store.path(URI).read_bytes()[:cut])
    with pytest.raises(ClientError, match=r"is damaged or no tar.gz"):
        extract_source(URI, store, tmp_path / "ml")
    assert not (tmp_path / "ml").exists()


def test_an_archive_that_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=URI):
        extract_source(URI, store, tmp_path / "code")

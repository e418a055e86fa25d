"""Watching: what counts as a change, and that none is missed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.debugging import Change, FileChange, Scope, Watcher, scope_of, scope_of_file
from harness.debugging._watch_places import why_poll
from harness.debugging._watch_tree import Look, Tree, compare
from harness.model import Spec, Upload

SOON = 10.0
"""Seconds within which a change is told on the slowest machine; on any other it takes a twentieth of a second."""
NEVER = 0.6
"""Seconds in which one that doesn't count would have been told."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    code = tmp_path / "project" / "code"
    (code / "inner").mkdir(parents=True)
    (code / "train.py").write_text("a = 1\nb = 2\nc = 3\n")
    (code / "inner" / "util.py").write_text("x = 1\n")
    (code / "run.sh").write_text("echo hi\n")
    (code / ".gitignore").write_text("*.log\ndata/\n")
    (tmp_path / "project" / "job.toml").write_text('name = "t"\n')
    return tmp_path / "project"


def scope(project: Path) -> Scope:
    return Scope(trees=(str(project / "code"),), files=(str(project / "job.toml"),))


class Patient(Watcher):
    """Waits on when something begins to stir."""

    def change(self, timeout: float = 0) -> Change | None:
        deadline = time.monotonic() + timeout
        while (found := super().change(max(0.0, deadline - time.monotonic()))) is None:
            if time.monotonic() >= deadline:
                break
        return found


@pytest.fixture
def watcher(project: Path) -> Iterator[Watcher]:
    with Patient() as made:
        made.set(scope(project))
        yield made


def names(change: Change | None) -> list[str]:
    assert change is not None, "nothing was told"
    return [Path(file.path).name for file in change.files]


# ----------------------------------------------------------------- what counts


def differences(project: Path, act: Callable[[Path], object]) -> list[FileChange]:
    tree = Tree(scope(project))
    before = tree.look()
    act(project)
    return compare(before, tree.look(before))


def _replace(project: Path) -> None:
    """As most editors save: a new file over the old one."""
    new = project / "code" / "train.py.tmp"
    new.write_text("a = 1\nb = 4\nc = 3\n")
    new.rename(project / "code" / "train.py")


def _edit(project: Path) -> None:
    (project / "code" / "train.py").write_text("a = 1\nb = 4\nc = 3\n")


@pytest.mark.parametrize("act", [_edit, _replace])
def test_the_changed_lines(project: Path, act: Callable[[Path], object]) -> None:
    path = str(project / "code" / "train.py")
    expected = FileChange(path=path, kind="changed", added=1, removed=1, lines=("-b = 2", "+b = 4"))
    assert differences(project, act) == [expected]


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda project: (project / "code" / "new.py").write_text("n\n"), "added"),
        (lambda project: (project / "code" / "run.sh").unlink(), "removed"),
        (lambda project: (project / "code" / "run.sh").chmod(0o755), "changed"),
        (lambda project: (project / "job.toml").write_text("name = 1\n"), "changed"),
        (lambda project: shutil.rmtree(project / "code" / "inner"), "removed"),
        (lambda project: (project / "code" / ".gitignore").write_text("*.log\n"), "changed"),
        (lambda project: os.mkfifo(project / "code" / "pipe"), "added"),
        (lambda project: (project / "code" / "link").symlink_to("nowhere"), "added"),
        (lambda project: (project / "code" / "bytes").write_bytes(b"\0\xff" * 10), "added"),
    ],
    ids=["added", "removed", "mode", "spec", "directory", "gitignore", "fifo", "dangling link", "binary"],
)
def test_a_change(project: Path, act: Callable[[Path], object], kind: str) -> None:
    assert [change.kind for change in differences(project, act)] == [kind]


@pytest.mark.parametrize(
    "act",
    [
        lambda project: os.utime(project / "code" / "train.py", (1, 1)),
        lambda project: (project / "code" / "train.py").write_text("a = 1\nb = 2\nc = 3\n"),
        lambda project: (project / "code" / "a.log").write_text("x"),
        lambda project: (project / "code" / "data").mkdir(),
        lambda project: (project / "code" / "empty").mkdir(),
        lambda project: (project / "code" / ".train.py.swp").write_text("x"),
        lambda project: (project / "code" / ".#train.py").symlink_to("me@here.1:2"),
        lambda project: (project / "beside.txt").write_text("x"),
        lambda project: (
            (project / "code").rename(project / "c2") and (project / "c2").rename(project / "code")
        ),
    ],
    ids=[
        "touch",
        "the same",
        "ignored",
        "ignored dir",
        "empty dir",
        "swap",
        "lock",
        "beside",
        "there and back",
    ],
)
def test_no_change(project: Path, act: Callable[[Path], object]) -> None:
    assert differences(project, act) == []


def test_what_becomes_ignored_or_visible_is_no_change_by_itself(project: Path) -> None:
    (project / "code" / "data").mkdir()
    (project / "code" / "data" / "x").touch()
    (project / "code" / "a.log").touch()
    ignore = project / "code" / ".gitignore"
    assert [file.path for file in differences(project, lambda _: ignore.write_text("run.sh\n"))] == [
        str(ignore)
    ]


def test_links_are_followed_as_the_archive_follows_them(project: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "lib.py").write_text("1\n")
    (project / "code" / "lib").symlink_to(shared)
    (project / "code" / "lib" / "up").symlink_to(project / "code")  # a circle
    (project / "code" / "one.py").symlink_to(tmp_path / "one.py")
    (tmp_path / "one.py").write_text("1\n")
    changed = differences(project, lambda _: (shared / "lib.py").write_text("2\n"))
    assert [file.path for file in changed] == [str(project / "code" / "lib" / "lib.py")]
    changed = differences(project, lambda _: (tmp_path / "one.py").write_text("2\n"))
    assert [file.path for file in changed] == [str(project / "code" / "one.py")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cant_be_read_is_a_change_once(project: Path) -> None:
    secret = project / "code" / "train.py"
    assert len(differences(project, lambda _: secret.chmod(0))) == 1
    assert differences(project, lambda _: None) == []


def test_a_big_rewrite_is_counted_not_compared(project: Path) -> None:
    path = project / "code" / "train.py"
    path.write_text("".join(f"{n}\n" for n in range(20_000)))
    started = time.monotonic()
    (change,) = differences(project, lambda _: path.write_text("".join(f"{n * 7}\n" for n in range(20_000))))
    assert time.monotonic() - started < 5
    assert change.added > 19_000
    assert len(change.lines) == 40


def test_only_what_changed_is_read_again(project: Path) -> None:
    tree = Tree(scope(project))
    before = tree.look()
    _edit(project)
    after = tree.look(before)
    again = {path for path, entry in after.entries.items() if entry is not before.entries.get(path)}
    assert again == {str(project / "code" / "train.py")}


def test_ignored_directories_take_no_watch(project: Path) -> None:
    (project / "code" / "data" / "deep").mkdir(parents=True)
    look = Tree(scope(project)).look()
    assert not [place for place in look.directories if "data" in place]
    assert not look.concerns(str(project / "code" / "data"))
    assert not look.concerns(str(project / "other.txt"))
    assert look.concerns(str(project / "job.toml"))
    assert look.concerns(str(project / "code" / "new.py"))


def test_two_changes_make_one() -> None:
    def change(at: float, *files: tuple[str, str]) -> Change:
        return Change(at=at, files=tuple(FileChange(path=path, kind=kind) for path, kind in files))  # type: ignore[arg-type]

    both = change(1, ("a", "added"), ("b", "removed")).and_then(
        change(2, ("a", "changed"), ("b", "added"), ("c", "changed"))
    )
    assert [(file.path, file.kind) for file in both.files] == [
        ("a", "added"),
        ("b", "changed"),
        ("c", "changed"),
    ]
    assert both.at == 1


def test_nothing_to_compare_with() -> None:
    assert compare(Look(), Look()) == []


# ---------------------------------------------------------------- the watcher


def test_a_save_is_told_once(project: Path, watcher: Watcher) -> None:
    before = time.time()
    _edit(project)
    change = watcher.change(SOON)
    assert names(change) == ["train.py"]
    assert change is not None
    assert before - 1 < change.at < time.time()
    assert watcher.change(NEVER) is None


def test_that_something_stirs_is_told_before_it_is_over(project: Path) -> None:
    with Watcher() as watcher:
        watcher.set(scope(project))
        assert not watcher.stirs
        _edit(project)
        found = watcher.change(SOON)
        if found is None:  # on a very slow machine both come at once
            assert watcher.stirs
            found = watcher.change(SOON)
        assert names(found) == ["train.py"]
        assert not watcher.stirs
        (project / "code" / "train.py").touch()
        assert watcher.change(SOON) is None
        assert watcher.change(NEVER) is None
        assert not watcher.stirs


def test_a_touch_is_not_told(project: Path, watcher: Watcher) -> None:
    (project / "code" / "train.py").touch()
    (project / "code" / "a.log").write_text("x")
    (project / "beside").write_text("x")
    assert watcher.change(NEVER) is None


def test_many_at_once_are_one_change(project: Path, watcher: Watcher) -> None:
    for number in range(500):
        (project / "code" / f"f{number}.py").write_text("1\n")
    assert len(names(watcher.change(SOON))) == 500
    assert watcher.change(NEVER) is None


def test_a_file_that_is_away_for_a_moment(project: Path, watcher: Watcher) -> None:
    path = project / "code" / "train.py"
    path.unlink()
    time.sleep(0.06)
    path.write_text("a = 1\nb = 2\nc = 4\n")
    change = watcher.change(SOON)
    assert change is not None
    assert [file.kind for file in change.files] == ["changed"]


def test_a_file_that_is_empty_for_a_moment(project: Path, watcher: Watcher) -> None:
    with (project / "code/train.py").open("w") as file:  # cut off when it is opened
        time.sleep(0.08)
        file.write("a = 9\n")
    change = watcher.change(SOON)
    assert names(change) == ["train.py"]
    assert change is not None
    assert change.files[0].added == 1
    (project / "code/train.py").write_text("")
    assert names(watcher.change(SOON)) == ["train.py"], "one that stays empty is told all the same"


def test_new_directories_are_watched(project: Path, watcher: Watcher) -> None:
    (project / "code" / "new" / "er").mkdir(parents=True)
    (project / "code" / "new" / "er" / "a.py").write_text("1\n")
    assert names(watcher.change(SOON)) == ["a.py"]
    (project / "code" / "new" / "er" / "a.py").write_text("2\n")
    assert names(watcher.change(SOON)) == ["a.py"]


def test_a_tree_that_goes_and_comes_back(project: Path, watcher: Watcher) -> None:
    shutil.rmtree(project)
    assert len(names(watcher.change(SOON))) == 5
    (project / "code").mkdir(parents=True)
    (project / "code" / "train.py").write_text("1\n")
    assert names(watcher.change(SOON)) == ["train.py"]
    (project / "code" / "train.py").write_text("2\n")
    assert names(watcher.change(SOON)) == ["train.py"]


def test_a_linked_tree_that_is_linked_to_another(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(project / "code", other)
    (other / "train.py").write_text("other\n")
    (tmp_path / "link").symlink_to(project / "code")
    with Patient() as watcher:
        watcher.set(Scope(trees=(str(tmp_path / "link"),)))
        _edit(project)
        assert names(watcher.change(SOON)) == ["train.py"]
        (tmp_path / "l2").symlink_to(other)
        (tmp_path / "l2").rename(tmp_path / "link")
        assert names(watcher.change(SOON)) == ["train.py"]
        (other / "train.py").write_text("another\n")
        assert names(watcher.change(SOON)) == ["train.py"]


def test_what_is_not_there_yet_is_seen_when_it_comes(tmp_path: Path) -> None:
    with Patient() as watcher:
        watcher.set(Scope(trees=(str(tmp_path / "a" / "b" / "code"),)))
        (tmp_path / "a" / "b" / "code").mkdir(parents=True)
        (tmp_path / "a" / "b" / "code" / "x.py").touch()
        assert names(watcher.change(SOON)) == ["x.py"]


def test_another_scope_loses_nothing(project: Path, watcher: Watcher) -> None:
    (project / "lib").mkdir()
    (project / "lib" / "old.py").write_text("1\n")
    _edit(project)
    both = scope(project)
    watcher.set(Scope(trees=(*both.trees, str(project / "lib")), files=both.files))
    assert names(watcher.change(SOON)) == ["train.py"]  # saved before, and in both
    (project / "lib" / "old.py").write_text("2\n")
    assert names(watcher.change(SOON)) == ["old.py"]


def test_changes_wait_until_they_are_asked_for(project: Path, watcher: Watcher) -> None:
    _edit(project)
    time.sleep(0.5)
    (project / "job.toml").write_text("2\n")
    time.sleep(0.5)
    assert sorted(names(watcher.change(SOON))) == ["job.toml", "train.py"]


def test_git_at_work_is_waited_for(project: Path, watcher: Watcher) -> None:
    (project / "code" / ".git").mkdir()
    (project / "code" / ".git" / "HEAD").touch()
    lock = project / "code" / ".git" / "index.lock"
    lock.touch()
    _edit(project)
    assert watcher.change(NEVER) is None
    (project / "code" / "run.sh").write_text("2\n")
    lock.unlink()
    assert names(watcher.change(SOON)) == ["run.sh", "train.py"]


def test_a_storm_without_an_end_is_told_all_the_same(project: Path, watcher: Watcher) -> None:
    writing = subprocess.Popen(
        [
            "sh",
            "-c",
            'n=0; while :; do n=$((n+1)); echo $n > "$0"; sleep 0.005; done',
            str(project / "code" / "n.txt"),
        ]
    )
    try:
        assert names(watcher.change(SOON)) == ["n.txt"]
    finally:
        writing.kill()
        writing.wait()


def watching_process() -> psutil.Process:
    """Not the only child of the process that runs the tests: other tests' libraries start helpers."""
    (child,) = [
        each for each in psutil.Process().children() if "harness.debugging._watch_process" in each.cmdline()
    ]
    return child


def test_a_watcher_that_is_killed_is_replaced(project: Path, watcher: Watcher) -> None:
    child = watching_process()
    child.send_signal(signal.SIGKILL)
    change = watcher.change(SOON)
    assert change is not None
    assert change.files == ()  # nobody knows what was missed
    assert any("another one watches now" in notice for notice in watcher.notices)
    _edit(project)
    assert names(watcher.change(SOON)) == ["train.py"]


def test_the_watchers_process_ends_with_it(project: Path) -> None:
    with Patient() as watcher:
        watcher.set(scope(project))
        child = watching_process()
    assert not child.is_running()


def test_the_watchers_process_ends_with_a_killed_parent(project: Path) -> None:
    code = (
        "import sys, time; from harness.debugging import Scope, Watcher; w = Watcher();"
        f"w.set(Scope(trees=({str(project)!r},))); print('ready', flush=True); time.sleep(100)"
    )
    import sys

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    psutil.wait_procs([child], timeout=SOON)
    assert not child.is_running()


# ------------------------------------------------------------------- polling


def test_without_notice_the_files_are_looked_at_again_and_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kernel whose user may have no inotify instance at all."""
    if subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here")
    import sys

    starved = tmp_path / "python"
    starved.write_text(
        "#!/bin/sh\nexec unshare -Ur sh -c "
        f'\'echo 0 > /proc/sys/user/max_inotify_instances; exec "$0" "$@"\' {sys.executable} "$@"\n'
    )
    starved.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(starved))
    with Patient() as watcher:
        watcher.set(scope(project))
        _edit(project)
        assert names(watcher.change(SOON)) == ["train.py"]
        assert [notice for notice in watcher.notices if "four times a second" in notice]
        (project / "code" / "train.py").write_text("a = 1\nb = 5\nc = 3\n")
        assert names(watcher.change(SOON)) == ["train.py"]
        assert len(watcher.notices) == 1


@pytest.mark.parametrize(
    ("kind", "polls"),
    [("ext4", False), ("overlay", False), ("nfs4", True), ("fuse.sshfs", True), ("fuseblk", False)],
)
def test_file_systems_that_others_change(tmp_path: Path, kind: str, polls: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        rf"40 22 0:38 / /mnt/my\040data rw shared:9 - {kind} server:/x rw" + "\n"
    )
    why = why_poll(["/home/me", "/mnt/my data/code"], mounts)
    assert (why is not None) is polls
    assert why is None or ("/mnt/my data/code" in why and kind in why)
    assert why_poll(["/home/me"], mounts) is None


# ---------------------------------------------------------------- what is watched


def test_the_scope_of_a_spec(project: Path) -> None:
    (project / "lib").mkdir()
    (project / "config.yaml").touch()
    (project / "data").mkdir()
    spec = Spec(
        request={"TrainingJobName": "t"},
        uploads=(
            Upload(
                path=project / "code",
                uri="s3://b/k",
                kind="source",
                dependencies=(project / "lib", project / "config.yaml"),
            ),
            Upload(path=project / "data", uri="s3://b/d", kind="channel", channel="training"),
            Upload(path=project / "job.toml", uri="s3://b/e", kind="channel", channel="other"),
        ),
    )
    found = scope_of(project / "job.toml", spec)
    assert found.trees == (str(project / "code"), str(project / "lib"))
    assert found.files == (str(project / "job.toml"), str(project / "config.yaml"))


def test_the_scope_of_a_spec_that_doesnt_compile(project: Path) -> None:
    file = project / "job.toml"
    file.write_text('source_dir = "not yet"\nentry_point = 3\nnonsense = 1\n')
    assert scope_of_file(file).trees == (str(project / "not yet"),)
    file.write_text("=")
    assert scope_of_file(file) == Scope(files=(str(file),))
    file.unlink()
    assert scope_of_file(file) == Scope(files=(str(file),))

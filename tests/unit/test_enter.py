"""The parts of entering a host that need none: environments, paths, terminals, bytes to and fro."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import termios
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from harness.debugging._copy import HostPath, parse_place
from harness.debugging._kept_files import KeptFiles
from harness.debugging._script_log import logged_environment
from harness.debugging._shell import shell_command
from harness.engines._terminal import Terminal, relay
from harness.engines.archive import pack
from harness.engines.enter import Report, script_environment
from harness.errors import UsageError
from harness.model import HostLaunch, Mount

# The script's environment


def test_the_oldest_process_that_the_toolkit_started_tells_the_environment() -> None:
    script = {"SM_CURRENT_HOST": "algo-1", "PATH": "/bin", "PWD": "/", "SHLVL": "1", "_": "x"}
    found = {
        1: {"PATH": "/first"},
        9: {**script, "RANK": "1"},
        8: script,
        7: {**script, "HARNESS_ENTERED": "a shell's"},
    }

    assert script_environment(found, {"PATH": "/recorded"}) == {"SM_CURRENT_HOST": "algo-1", "PATH": "/bin"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({1: {"PATH": "/first", "A": "1"}, 5: {"A": "5"}}, {"PATH": "/first", "A": "recorded"}),
        ({}, {"A": "recorded"}),
    ],
)
def test_without_a_script_process_1_and_what_is_recorded_tell_it(
    found: dict[int, dict[str, str]], expected: dict[str, str]
) -> None:
    assert script_environment(found, {"A": "recorded"}) == expected


def test_what_makes_a_process_stop_for_a_debugger_is_not_another_s() -> None:
    script = {
        "SM_CURRENT_HOST": "algo-1",
        "HARNESS_DEBUG_PORT": "1",
        "HARNESS_HOOK": "/run/harness/debug/x.py",
        "PYTHONPATH": "/run/harness/debug:/opt/ml/code",
    }

    assert script_environment({2: script}, {}) == {"SM_CURRENT_HOST": "algo-1", "PYTHONPATH": "/opt/ml/code"}


LOG = b"""installing requirements
2026-11-23 11:00:19,303 sagemaker-training-toolkit INFO     Invoking user script

Training Env:

{
    "additional_framework_parameters": {}
}

Environment variables:

SM_HPS={"a":1,"b":"x=y"}
SM_HP_LINES=one
 two

three
EMPTY=
PYTHONPATH=/opt/ml/code

Invoking script with the following command:

/usr/bin/python3 train.py

Environment variables:

SM_HPS=what the script says

Invoking script with the following command:
"""


@pytest.mark.parametrize("log", [LOG, LOG.replace(b"\n", b"\r\n")])
def test_the_environment_that_the_toolkit_logged(tmp_path: Path, log: bytes) -> None:
    (tmp_path / "log").write_bytes(log)

    found = logged_environment(tmp_path / "log")

    assert {name: value.replace("\r", "") for name, value in found.items()} == {
        "SM_HPS": '{"a":1,"b":"x=y"}',
        "SM_HP_LINES": "one\n two\n\nthree",
        "EMPTY": "",
        "PYTHONPATH": "/opt/ml/code",
    }


@pytest.mark.parametrize("log", [None, b"", b"nothing of the kind", LOG[:200]])
def test_a_log_without_the_environment(tmp_path: Path, log: bytes | None) -> None:
    if log is not None:
        (tmp_path / "log").write_bytes(log)

    assert logged_environment(tmp_path / "log") == {}


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job:/a", HostPath(job="job", host=None, path="/a")),
        ("job-1/algo-2:/a:b", HostPath(job="job-1", host="algo-2", path="/a:b")),
        ("job:a/b", HostPath(job="job", host=None, path="/a/b")),
        ("./a:b", "./a:b"),
        ("/a:b", "/a:b"),
        ("a.b:c", "a.b:c"),
        ("-", "-"),
        ("plain", "plain"),
    ],
)
def test_which_words_name_a_host(text: str, expected: HostPath | str) -> None:
    assert parse_place(text) == expected


def test_a_host_without_a_path_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="names no path"):
        parse_place("job:")


def test_the_shell_command_runs_here_too() -> None:
    import subprocess

    argv, extra = shell_command("job", "algo-1", "echo $0 $#; exit 4")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert (done.returncode, extra) == (4, {})
    assert done.stdout in ("bash 0\n", "sh 0\n")


# The kept files


@pytest.fixture
def kept(tmp_path: Path) -> KeptFiles:
    """/opt/ml, /tmp, a channel that is read-only and one that may be written."""
    for name in ("ml/model", "ml/input/data/train", "ml/input/data/fs", "scratch/tmp", "data", "fs", "mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ml/model/m").write_text("m")
    (tmp_path / "data/d").write_text("d")
    (tmp_path / "scratch/tmp/t").write_text("t")
    (tmp_path / "mine/secret").write_text("secret")
    target = PurePosixPath("/opt/ml/input/data")
    launch = HostLaunch(
        job_name="j",
        host="algo-1",
        hosts=("algo-1",),
        hostname="h",
        image=None,
        entrypoint=None,
        command=(),
        environment={},
        ml=tmp_path / "ml",
        mounts=(
            Mount(source=tmp_path / "data", target=target / "train", mode="overlay"),
            Mount(source=tmp_path / "fs", target=target / "fs", mode="rw"),
        ),
        scratch=tmp_path / "scratch",
        gpus=(),
        shm_bytes=1,
    )
    return KeptFiles(launch)


def out(kept: KeptFiles, path: str, to: Path, **how: bool) -> Report:
    from harness.engines.archive import unpack

    with kept.pack(path, follow=how.get("follow", False), contents=how.get("contents", False)) as (
        stream,
        report,
    ):
        if first := stream.read(1):
            unpack(_Again(first, stream), str(to))  # type: ignore[arg-type]
        return report()


class _Again:
    def __init__(self, first: bytes, rest: Any) -> None:
        self.first, self.rest = first, rest

    def read(self, size: int) -> bytes:
        first, self.first = self.first, b""
        return bytes(first + self.rest.read(size - len(first)))


@pytest.mark.parametrize(
    ("link", "leads_to", "path", "expected"),
    [
        (None, "", "/opt/ml/model/m", "m"),
        (None, "", "/tmp/t", "t"),
        (None, "", "/opt/ml/input/data/train/d", "d"),
        (None, "", "/opt/ml/model/../input/data/train/d", "d"),
        ("ml/alias", "/tmp", "/opt/ml/alias/t", "t"),
        ("ml/alias", "../../tmp/t", "/opt/ml/alias", "t"),
        ("ml/alias", "/opt/ml/input/data/train", "/opt/ml/alias/d", "d"),
    ],
)
def test_a_kept_path_leads_where_it_led_in_the_host(
    kept: KeptFiles, tmp_path: Path, link: str | None, leads_to: str, path: str, expected: str
) -> None:
    if link is not None:
        (tmp_path / link).symlink_to(leads_to)

    out(kept, path, tmp_path / "got", follow=True)

    assert (tmp_path / "got").read_text() == expected


@pytest.mark.parametrize(
    ("leads_to", "path", "words"),
    [
        ("{mine}", "/opt/ml/model/alias/secret", "was not kept"),
        ("{mine}/secret", "/opt/ml/model/alias", "was not kept"),
        ("../../../mine/secret", "/opt/ml/model/alias", "was not kept"),
        ("alias", "/opt/ml/model/alias", "too many links"),
        ("", "/etc/passwd", "/etc/passwd was not kept: /opt/ml, /opt/ml/input/data/fs"),
        ("", "/opt", "/opt was not kept"),
        ("", "/opt/ml/none", "no such file"),
    ],
)
def test_a_kept_link_never_leads_to_this_machine_s_files(
    kept: KeptFiles, tmp_path: Path, leads_to: str, path: str, words: str
) -> None:
    if leads_to:
        (tmp_path / "ml/model/alias").symlink_to(leads_to.format(mine=tmp_path / "mine"))
    source = tmp_path / "mine/secret"

    if "{mine}" in leads_to and tmp_path.is_relative_to("/tmp"):
        words = "no such file"  # the host's /tmp is another
    refused = out(kept, path, tmp_path / "got", follow=True)["refused"]
    assert words in refused
    assert "scratch" not in refused
    assert not (tmp_path / "got").exists()
    if "no such file" not in words:
        refused = kept.unpack(lambda stream, name: pack(str(source), stream, name=name), path, "file")
        assert words in refused["refused"]


def test_kept_files_are_changed_only_where_they_are_the_job_s(kept: KeptFiles, tmp_path: Path) -> None:
    source = tmp_path / "new"
    source.write_text("new")

    def put(path: str) -> Report:
        return kept.unpack(lambda stream, name: pack(str(source), stream, name=name), path, "file")

    assert (
        put("/opt/ml/model/m")["files"]
        == put("/tmp")["files"]
        == put("/opt/ml/input/data/fs/x")["files"]
        == 1
    )
    assert "not the job's to change" in put("/opt/ml/input/data/train/d")["refused"]
    assert (tmp_path / "ml/model/m").read_text() == "new"
    assert (tmp_path / "scratch/tmp/new").read_text() == "new"
    assert (tmp_path / "fs/x").read_text() == "new"
    assert (tmp_path / "data/d").read_text() == "d"


def test_what_was_mounted_into_a_kept_directory_is_told(kept: KeptFiles, tmp_path: Path) -> None:
    report = out(kept, "/opt/ml", tmp_path / "got")

    assert report["why"] == [
        f"/opt/ml/input/data/{name}: mounted from elsewhere, copy it by itself" for name in ("train", "fs")
    ]
    assert (tmp_path / "got/model/m").read_text() == "m"


# Terminals and bytes


class Remote:
    """One end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def read(self) -> bytes:
        return self._end.recv(65536)

    def write(self, data: bytes) -> int:
        return self._end.send(data)

    def end(self) -> None:
        self._end.shutdown(socket.SHUT_WR)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_input_and_output_don_t_wait_for_each_other(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    ours, theirs = ends
    given = os.urandom(8_000_000)
    (tmp_path / "in").write_bytes(given)
    said = bytearray()
    got = bytearray()

    def stubborn() -> None:
        # Says all that it has to say before it reads anything.
        theirs.sendall(given)
        while data := theirs.recv(65536):
            got.extend(data)
        theirs.shutdown(socket.SHUT_WR)

    other = threading.Thread(target=stubborn)
    other.start()
    with (tmp_path / "in").open("rb") as file:
        relay(Remote(ours), stdin=file.fileno(), sink=said.extend)
    other.join()

    assert said == got == given


def test_the_end_is_the_command_s_though_others_hold_its_terminal(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    silent, keep = os.pipe()
    done, tell = os.pipe()
    said = bytearray()
    theirs.sendall(b"last words")
    os.close(tell)

    relay(Remote(ours), stdin=silent, sink=said.extend, until=done)

    assert said == b"last words"
    for descriptor in (silent, keep, done):
        os.close(descriptor)


@pytest.mark.parametrize(
    ("said", "undone"),
    [
        ((b"\x1b[?1049h\x1b[?25lvim",), b"\x1b[?1049l\x1b[?25h"),
        ((b"\x1b[?2004h$ ", b"\x1b[?2004l"), b""),
        ((b"\x1b[?20", b"04h"), b"\x1b[?2004l"),
        ((b"plain",), b""),
    ],
)
def test_the_terminal_is_given_back_as_it_was(said: tuple[bytes, ...], undone: bytes) -> None:
    outside, inside = pty.openpty()
    before = termios.tcgetattr(inside)

    with contextlib.suppress(RuntimeError), Terminal(inside, inside) as terminal:
        raw = termios.tcgetattr(inside)
        for piece in said:
            terminal.show(piece)
        raise RuntimeError("whatever happens")

    assert raw != before
    assert termios.tcgetattr(inside) == before
    expected = b"".join(said) + undone
    shown = b""
    while len(shown) < len(expected):  # it comes in pieces, when the kernel finds the time
        shown += os.read(outside, 1000)
    assert shown == expected
    os.close(outside)
    os.close(inside)

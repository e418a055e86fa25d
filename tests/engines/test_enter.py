"""Into running hosts from outside: commands, terminals and files, by nothing but `Host.entry`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from harness.engines import Host
from harness.engines.archive import pack, unpack
from harness.engines.enter import (
    Command,
    Door,
    Ended,
    GoneError,
    Kind,
    Report,
    Terminal,
    open_door,
    script_environment,
)
from harness.engines.sandbox import Mode, SandboxEngine
from harness.errors import EngineError

REAL = ["sandbox", pytest.param("docker", marks=pytest.mark.docker)]
IDLE = "import time; print('up', flush=True); time.sleep(600)"
SCRIPT = """
    import os, subprocess, sys, time
    os.chdir('/opt/ml/code')
    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={**os.environ, 'SM_CURRENT_HOST': 'algo-1'})
    print('up', flush=True)
    time.sleep(600)
"""


@pytest.fixture
def job(request: pytest.FixtureRequest, engine: Any, make_job: Callable[[Any], Any]) -> Any:
    del request
    return make_job(engine)


def start(job: Any, code: str = IDLE, **fields: Any) -> tuple[Host, Door]:
    """A host that says `up`, and the way into it, as another process would find it."""
    launch = job.script(textwrap.dedent(code), **fields)
    (launch.ml / "code").mkdir(exist_ok=True)
    (host,) = job.start(launch)
    said = b""
    for chunk in host.output():
        said += chunk
        if b"up" in said:
            break
    else:
        pytest.fail(f"{said!r} {host.wait(0)}")
    entry = json.loads(json.dumps(dict(host.entry)))
    return host, open_door(entry, job=job.name, host=host.name)


def command(door: Door, *argv: str, **more: str) -> Command:
    mark = uuid.uuid4().hex
    environment = {**script_environment(door.environments(), {}), "HARNESS_ENTERED": mark, **more}
    return Command(argv=argv, environment=environment, mark=f"HARNESS_ENTERED={mark}")


def run(door: Door, *argv: str, stdin: bytes = b"", **more: str) -> tuple[bytes, bytes, Ended]:
    """Stdout, stderr and the end of a command in the host."""
    import tempfile

    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        ended = door.run(
            command(door, *argv, **more), terminal=None, stdio=(given.fileno(), out.fileno(), err.fileno())
        )
        out.seek(0)
        err.seek(0)
        return out.read(), err.read(), ended


def processes_with(word: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found


def soon(condition: Callable[[], Any], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def seconds() -> str:
    """For `sleep`: a number of seconds that no other process sleeps."""
    return str(10**6 + uuid.uuid4().int % 10**6)


# Commands


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_a_command_is_in_the_host_with_its_own_streams_and_exit_code(job: Any) -> None:
    _, door = start(job)
    code = (
        "cat; hostname >&2; pwd >&2; cat /proc/1/cmdline | tr '\\0' ' ' >&2; touch /opt/ml/model/made; exit 3"
    )

    out, err, ended = run(door, "sh", "-c", code, stdin=b"given" * 100_000)

    assert (out, ended) == (b"given" * 100_000, Ended(code=3))
    host, cwd, first = err.decode().split("\n")
    assert host == "ip-10-0-1-2.us-east-1.compute.internal"
    assert cwd == "/opt/ml/code"
    assert "time.sleep(600)" in first
    assert (job.root / "algo-1/ml/model/made").exists()


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_a_command_that_cannot_be_executed_says_nothing_but_why(job: Any) -> None:
    _, door = start(job)

    for argv, code, words in (
        ("no-such-command", 127, "no-such-command"),
        ("/no/such/command", 127, "no such file"),
        ("/etc", 126, "/etc"),
    ):
        out, err, ended = run(door, argv)
        assert (out, err, ended.code) == (b"", b"", code)
        assert words in (ended.error or "")
        assert "OCI" not in (ended.error or "")


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_what_ended_by_a_signal_and_what_looks_like_the_daemon_s_words(job: Any) -> None:
    _, door = start(job)

    assert run(door, "sh", "-c", "kill -9 $$") == (b"", b"", Ended(code=137))
    assert run(door, "sh", "-c", "echo OCI runtime exec failed: no; exit 126") == (
        b"OCI runtime exec failed: no\n",
        b"",
        Ended(code=126),
    )


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_the_environment_is_that_of_the_user_s_process(job: Any) -> None:
    host, door = start(job, SCRIPT, environment={"PYTHONUNBUFFERED": "1", "FROM_LAUNCH": "a b\nc"})
    assert soon(lambda: any("SM_CURRENT_HOST" in each for each in door.environments().values()))

    fresh = open_door(host.entry, job=job.name, host="algo-1")
    out, _, _ = run(
        fresh, "sh", "-c", 'printf "%s|%s|%s" "$SM_CURRENT_HOST" "$FROM_LAUNCH" "$EXTRA"', EXTRA="x"
    )

    assert out == b"algo-1|a b\nc|x"


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_the_rights_are_those_of_the_host_s_own_processes(job: Any) -> None:
    _, door = start(job)
    look = "grep -E 'Cap(Bnd|Eff)|NoNewPrivs' /proc/{}/status; ulimit -n; mount -t tmpfs x /mnt 2>&1; umask"

    mine, _, _ = run(door, "sh", "-c", look.format("self"))
    first, _, _ = run(door, "sh", "-c", "grep -E 'Cap(Bnd|Eff)|NoNewPrivs' /proc/1/status")

    assert mine.startswith(first)
    assert b"denied" in mine or b"must be superuser" in mine
    assert mine.endswith(b"0022\n")


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_a_host_that_ended_is_not_entered(job: Any) -> None:
    host, door = start(job)
    before = door.runs
    host.kill()
    job.engine.close(job.name)

    assert (before, door.runs) == (True, False)
    with pytest.raises(GoneError, match=f"algo-1 of {job.name} has ended"):
        door.run(Command(argv=("true",)), terminal=None, stdio=(0, 1, 2))
    with pytest.raises(GoneError), door.pack("/opt/ml", follow=False, contents=False) as (_, report):
        report()


@pytest.mark.parametrize("engine", ["sandbox"], indirect=True)
def test_a_process_that_got_the_number_of_a_host_is_not_entered(job: Any) -> None:
    host, _ = start(job)
    entry = dict(host.entry)

    for recycled in ({**entry, "started": entry["started"] - 1}, {**entry, "boot": "another"}):
        assert not open_door(recycled, job=job.name, host="algo-1").runs
    door = open_door({**entry, "started": entry["started"] - 1}, job=job.name, host="algo-1")
    with pytest.raises(GoneError):
        door.run(Command(argv=("true",)), terminal=None, stdio=(0, 1, 2))


@pytest.mark.parametrize("engine", ["fake"], indirect=True)
def test_hosts_that_play_a_script_cannot_be_entered(engine: Any, make_job: Callable[[Any], Any]) -> None:
    job = make_job(engine)
    (host,) = job.start(job.launch("x"))

    with pytest.raises(EngineError, match="hosts of the fake engine can't be entered"):
        open_door(host.entry, job=job.name, host="algo-1")


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_a_command_ends_with_its_host_and_it_is_told(job: Any, seconds: str) -> None:
    host, door = start(job)
    threading.Timer(0.7, host.kill).start()

    _, _, ended = run(door, "sleep", seconds)

    assert (ended.code, ended.host_ended) == (137, True)
    assert processes_with(seconds) == []


VISITOR = """
import json, sys
from harness.engines.enter import Command, open_door, script_environment
told = json.loads(sys.argv[1])
door = open_door(told["entry"], job="j", host="algo-1")
name, _, value = told["mark"].partition("=")
environment = {**script_environment(door.environments(), {}), name: value}
door.run(Command(argv=tuple(told["argv"]), environment=environment, mark=told["mark"]), terminal=None, stdio=(0, 1, 2))
"""


@pytest.mark.parametrize("engine", REAL, indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_who_asks_takes_along_all_that_was_started(job: Any, seconds: str, number: int) -> None:
    host, door = start(job)
    mark = f"HARNESS_ENTERED={uuid.uuid4().hex}"
    deep = f"trap '' INT HUP; (setsid sleep {seconds} &); nohup sleep {seconds} & sleep {seconds}; true"
    told = {"entry": dict(host.entry), "mark": mark, "argv": ["sh", "-c", deep]}
    visitor = subprocess.Popen(
        [sys.executable, "-c", VISITOR, json.dumps(told)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert soon(lambda: len(processes_with(seconds)) == 3), processes_with(seconds)

    visitor.send_signal(number)
    visitor.wait()
    if number == signal.SIGKILL and host.entry["engine"] == "docker":
        door.kill(mark)  # what the guard beside the command line does

    assert soon(lambda: processes_with(seconds) == []), processes_with(seconds)
    assert host.wait(0) is None


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_what_a_command_left_behind_in_order_lives_on(job: Any, seconds: str) -> None:
    _, door = start(job)

    assert run(door, "sh", "-c", f"sleep {seconds} </dev/null >/dev/null 2>&1 &")[2] == Ended(code=0)

    assert soon(lambda: processes_with(seconds))  # the shell may end before its child has become `sleep`


# Terminals


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, Terminal, int]]:
    """(keyboard and screen, the terminal, its inner descriptor)."""
    outside, inside = pty.openpty()
    try:
        yield outside, Terminal(inside, inside), inside
    finally:
        os.close(outside)
        os.close(inside)


def converse(outside: int, talk: list[tuple[bytes, bytes]], screen: bytearray) -> None:
    """Wait for each text, then type; after a minute in vain leave the shell."""
    for awaited, typed in talk:
        while awaited not in screen:
            if not select.select([outside], [], [], 60)[0]:
                os.write(outside, b"\nexit 99\n")
                return
            screen += os.read(outside, 65536)
        del screen[: screen.index(awaited) + len(awaited)]
        os.write(outside, typed)


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_a_terminal_of_its_own(job: Any) -> None:
    import fcntl
    import struct
    import termios

    _, door = start(job)
    screen = bytearray()
    with terminal() as (outside, ours, inside):
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        before = termios.tcgetattr(inside)
        talk = [
            (b"now# ", b"tty; stty size; printf '\\033[?1049h'\n"),
            (b"33 101", b'sh -c \'trap "exit 42" INT; echo g""o; while :; do sleep 0.1; done\'\n'),
            (b"go", b"\x03"),
            (b"now# ", b"echo code=$?\n"),
            (b"code=42", b"exit 5\n"),
        ]
        typist = threading.Thread(target=converse, args=(outside, talk, screen))
        typist.start()
        with ours:
            assert not termios.tcgetattr(inside)[3] & termios.ECHO
            ended = door.run(command(door, "sh", PS1="now# ", TERM="xterm"), terminal=ours, stdio=(0, 1, 2))
        typist.join(10)

        assert ended == Ended(code=5)
        assert termios.tcgetattr(inside) == before
        while b"\x1b[?1049l" not in screen:  # the other screen is left
            screen += os.read(outside, 65536)


# Files


def names(stream: IO[bytes]) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        return {member.name.removeprefix("./").rstrip("/"): member for member in tar}


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_files_come_out(job: Any, tmp_path: Path) -> None:
    code = """
        import os, socket
        os.makedirs('/opt/ml/model/sub/deep'); open('/opt/ml/model/sub/a', 'w').write('a' * 100_000)
        os.symlink('/etc/passwd', '/opt/ml/model/sub/deep/link'); os.symlink('sub', '/opt/ml/model/alias')
        os.chmod('/opt/ml/model/sub/a', 0o4755); os.utime('/opt/ml/model/sub/a', (1e9, 1e9))
        open('/opt/ml/model/sub/naïve name ' + 'n' * 200, 'w'); open('/tmp/t', 'w').write('t')
    """
    _, door = start(job, textwrap.dedent(code) + IDLE)

    with door.pack("/opt/ml/model/sub", follow=False, contents=False) as (stream, _):
        done = unpack(stream, str(tmp_path))

    made = tmp_path / "sub"
    assert (made / "a").read_text() == "a" * 100_000
    assert (made / "a").stat().st_mode & 0o7777 == 0o755
    assert (made / "a").stat().st_mtime == 1e9
    assert (made / "a").stat().st_uid == os.geteuid()
    assert (made / "deep/link").readlink() == Path("/etc/passwd")
    assert (made / ("naïve name " + "n" * 200)).exists()
    assert (done["files"], done["bytes"]) == (2, 100_000)
    with door.pack("/tmp/t", follow=False, contents=False) as (stream, _):
        assert list(names(stream)) == ["t"]
    with door.pack("/opt/ml/model/sub", follow=False, contents=True) as (stream, _):
        assert {"a", "deep", "deep/link"} <= set(names(stream))
    with door.pack("/opt/ml/model/alias", follow=False, contents=False) as (stream, _):
        assert names(stream)["alias"].issym()
    with door.pack("/opt/ml/model/alias", follow=True, contents=False) as (stream, _):
        assert any(name.endswith("/a") for name in names(stream))
    for missing in ("/no/such", "/opt/ml/model/sub/a/"):
        with door.pack(missing, follow=False, contents=False) as (stream, report):
            stream.read()
            assert missing in report()["refused"]


def filler(path: Path, **how: Any) -> Callable[[IO[bytes], str | None], Report]:
    return lambda stream, name: pack(str(path), stream, name=name, **how)


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_files_go_in(job: Any, tmp_path: Path) -> None:
    _, door = start(job)
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/a").write_text("a")
    (tree / "link").symlink_to("sub/a")
    ml = job.root / "algo-1/ml"

    reports = [
        door.unpack(filler(tree), "/opt/ml/model", "directory"),
        door.unpack(filler(tree), "/opt/ml/model/new", "directory"),
        door.unpack(filler(tree, contents=True), "/opt/ml/output", "contents"),
        door.unpack(filler(tree, contents=True), "/opt/ml/output/new", "contents"),
        door.unpack(filler(tree / "sub/a"), "/opt/ml/input/renamed", "file"),
        door.unpack(filler(tree / "sub/a"), "/opt/ml/input", "file"),
    ]

    assert [each["files"] for each in reports] == [1] * 6
    for path in (
        "model/tree/sub/a",
        "model/new/link",
        "output/sub/a",
        "output/new/sub/a",
        "input/renamed",
        "input/a",
    ):
        assert (ml / path).read_text() == "a", path
    assert run(door, "cat", "/opt/ml/model/tree/sub/a")[0] == b"a"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("one", "two/three"):
            tar.addfile(tarfile.TarInfo(name))

    def forward(stream: IO[bytes], name: str | None) -> Report:
        assert name is None
        stream.write(archive.getvalue())
        return {"files": 2, "bytes": 0, "skipped": 0, "why": []}

    assert door.unpack(forward, "/tmp", "archive")["files"] == 2
    assert run(door, "ls", "/tmp/one", "/tmp/two/three")[2] == Ended(code=0)


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_what_does_not_fit_is_refused(job: Any, tmp_path: Path) -> None:
    _, door = start(job, "open('/opt/ml/model/here', 'w')\n" + IDLE)
    file = tmp_path / "a"
    file.write_bytes(os.urandom(3_000_000))

    cases: tuple[tuple[Path, str, Kind, str], ...] = (
        (file, "/opt/ml/no/such", "file", "there is no directory /opt/ml/no"),
        (file, "/opt/ml/new/", "file", "there is no directory"),
        (tmp_path, "/opt/ml/model/here", "directory", "is not a directory"),
        (file, "/opt/ml/new", "archive", "there is no directory /opt/ml/new"),
    )
    for source, path, kind, words in cases:
        assert words in door.unpack(filler(source), path, kind)["refused"]


@pytest.mark.parametrize("engine", ["sandbox"], indirect=True)
def test_a_host_that_ends_while_files_come_out_is_told(job: Any) -> None:
    host, door = start(job, "open('/opt/ml/model/big', 'wb').truncate(1 << 30)\n" + IDLE)

    with door.pack("/opt/ml/model", follow=False, contents=False) as (stream, report):
        stream.read(1000)
        host.kill()
        while stream.read(1 << 20):
            pass
        with pytest.raises(GoneError):
            report()


# Without namespaces


def test_without_namespaces_the_command_is_beside_the_host_and_ends_with_it(
    make_job: Callable[[Any], Any], seconds: str
) -> None:
    job = make_job(SandboxEngine(Mode("rewrite", "user.max_user_namespaces is 0")))
    host, door = start(job)
    assert not door.confined

    out, _, _ = run(door, "sh", "-c", 'pwd -P; echo "$SAGEMAKER_BASE_DIR"')
    assert out.decode().split("\n")[0] == str((job.root / "algo-1/ml/code").resolve())
    threading.Timer(0.5, host.kill).start()

    _, _, ended = run(door, "sh", "-c", f"(setsid sleep {seconds} &); sleep {seconds}")

    assert (ended.code, ended.host_ended) == (137, True)
    assert soon(lambda: processes_with(seconds) == [])

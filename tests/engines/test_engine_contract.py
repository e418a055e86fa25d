"""What every engine must do, on real commands; each test runs on each engine that can run here."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from harness.engines import Engine, Host, open_engine
from harness.model import ExitStatus, Mount

REAL = ["sandbox", pytest.param("docker", marks=pytest.mark.docker)]
pytestmark = pytest.mark.parametrize("engine", REAL, indirect=True)

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def job(engine: Engine, make_job: Callable[[Engine], Any]) -> Any:
    return make_job(engine)


def until(host: Host, text: bytes) -> None:
    """Read a host's output until it has said this, and leave the reading to a thread."""
    seen = threading.Event()

    def read() -> None:
        said = b""
        for chunk in host.output():
            said += chunk
            if text in said:
                seen.set()

    threading.Thread(target=read, daemon=True).start()
    assert seen.wait(30), f"{host.name} never said {text!r}"


# Output


def test_output_is_exact_to_the_byte(job: Any) -> None:
    data = bytes(range(256)) * 40 + b"\xff\xfe\n\r\n\x00no newline at the end"

    output, status = job.run(job.script(f"import sys; sys.stdout.buffer.write({data!r})"))

    assert output == data
    assert status == ExitStatus(code=0)


def test_a_line_of_20_megabytes_comes_through(job: Any) -> None:
    output, status = job.run(job.script("import os\nfor _ in range(20): os.write(1, b'x' * 2**20)"))

    assert len(output) == 20 << 20
    assert output.count(b"x") == 20 << 20
    assert status.code == 0


def test_both_streams_come_each_in_its_order(job: Any) -> None:
    code = "import os\nfor n in range(2000): os.write(1 + n % 2, b'%d %d\\n' % (1 + n % 2, n))"

    output, _ = job.run(job.script(code))

    lines = [tuple(map(int, line.split())) for line in output.splitlines()]
    assert len(lines) == 2000
    for stream in (1, 2):
        assert [n for s, n in lines if s == stream] == list(range(stream - 1, 2000, 2))


def test_output_comes_while_the_host_runs(job: Any) -> None:
    (host,) = job.start(job.script(SLEEP))

    assert next(host.output()).startswith(b"up")
    assert host.wait(0) is None


# Exit


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("import os; os._exit(3)", 3),
        ("raise SystemExit(255)", 255),
        ("1 // 0", 1),
    ],
)
def test_exit_codes(job: Any, code: str, expected: int) -> None:
    # contract: G5
    _, status = job.run(job.script(code))

    assert status == ExitStatus(code=expected)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGSEGV, 139), (signal.SIGKILL, 137), (signal.SIGTERM, 143)]
)
def test_death_by_a_signal_is_128_and_its_number(job: Any, number: int, expected: int) -> None:
    # Process 1 can't kill itself by a signal: its child does, and the shell tells of it.
    code = f"import os; os.kill(os.getpid(), {int(number)})"

    _, status = job.run(job.launch("/bin/sh", "-c", f'"{job.python}" -c "{code}"; exit $?'))

    assert status == ExitStatus(code=expected)


def test_a_command_that_is_not_there_ends_with_127(job: Any) -> None:
    # contract: A2
    (host,) = job.start(job.launch("no-such-train"))

    status = host.wait(10)
    assert status is not None
    assert status.code == 127
    assert status.error is not None
    assert "no-such-train" in status.error
    assert b"".join(host.output()) == b""


def test_a_command_that_is_not_executable_ends_with_126(job: Any) -> None:
    # contract: A3
    launch = job.launch("/opt/ml/input/train")
    (launch.ml / "input/train").write_text("#!/bin/sh\n")
    (launch.ml / "input/train").chmod(0o644)

    (host,) = job.start(launch)

    status = host.wait(10)
    assert status is not None
    assert (status.code, bool(status.error)) == (126, True)


def test_a_script_with_crlf_in_its_shebang_fails_and_is_named(job: Any) -> None:
    # contract: A3; the code is the container runtime's: 1 with runc 1.1, 127 or 255 with others
    launch = job.launch("/opt/ml/input/train")
    (launch.ml / "input/train").write_bytes(b"#!/bin/sh\r\nexit 0\r\n")
    (launch.ml / "input/train").chmod(0o755)

    output, status = job.run(launch)

    assert status.code in (1, 127, 255)
    assert "/opt/ml/input/train" in output.decode() + (status.error or "")


def test_wait_says_none_while_the_host_runs(job: Any) -> None:
    (host,) = job.start(job.script(SLEEP))

    began = time.monotonic()
    assert host.wait(0.2) is None
    assert time.monotonic() - began < 2


def test_a_host_over_its_memory_is_told_as_oom_killed(job: Any) -> None:
    _, status = job.run(job.script("x = bytearray(b'x' * (400 << 20))", memory_bytes=64 << 20))

    assert status == ExitStatus(code=137, oom_killed=True)


def test_memory_within_the_limit_is_given(job: Any) -> None:
    _, status = job.run(job.script("x = bytearray(b'x' * (64 << 20))", memory_bytes=256 << 20))

    assert status == ExitStatus(code=0)


# Signals


def test_sigterm_reaches_a_handler_of_process_1(job: Any) -> None:
    # contract: G9
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', os.getpid()), sys.exit(5)))\n"
        "print('up', flush=True); time.sleep(600)"
    )
    (host,) = job.start(job.script(code))
    output, said = host.output(), b""
    while said != b"up\n":
        said += next(output)

    host.signal(signal.SIGTERM)

    assert said + b"".join(output) == b"up\nsaved 1\n"
    assert host.wait(10) == ExitStatus(code=5)


def test_process_1_without_a_handler_ignores_sigterm(job: Any) -> None:
    # contract: G10
    (host,) = job.start(job.script(SLEEP))
    until(host, b"up")

    host.signal(signal.SIGTERM)
    assert host.wait(1) is None
    host.kill()

    assert host.wait(10) == ExitStatus(code=137)


def test_signals_after_the_end_do_nothing(job: Any) -> None:
    (host,) = job.start(job.script(""))
    assert host.wait(20) == ExitStatus(code=0)

    host.signal(signal.SIGTERM)
    host.kill()

    assert host.wait() == ExitStatus(code=0)


def test_kill_takes_daemons_of_the_host_along(job: Any) -> None:
    marker = f"6{time.time_ns() % 10**9}"
    (host,) = job.start(job.launch("/bin/sh", "-c", f"(setsid sleep {marker} &) ; echo up; sleep 600"))
    until(host, b"up")
    assert soon(lambda: running(marker))

    host.kill()

    assert not running(marker)


def test_daemons_end_with_process_1(job: Any) -> None:
    # A script that forks a daemon, which holds stdout open, and exits.
    marker = f"6{time.time_ns() % 10**9}"

    output, status = job.run(job.launch("/bin/sh", "-c", f"(setsid sleep {marker} &) ; echo up; exit 4"))

    assert (output, status) == (b"up\n", ExitStatus(code=4))
    assert not running(marker)


def soon(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true within ten seconds."""
    deadline = time.monotonic() + 10
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def running(marker: str) -> bool:
    """Whether a process with this argument is on the machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if arguments[:2] == [b"sleep", marker.encode()]:
            return True
    return False


# What the script sees


def test_environment_is_exact(job: Any, engine: Engine) -> None:
    given = {"SM_HOSTS": '["algo-1"]', "EMPTY": "", "UMLAUT": "größe", "LINES": "a\nb=c", "SPACE": " x "}

    output, _ = job.run(
        job.script(
            "import json, os; print(json.dumps({k: os.environ[k] for k in os.environ}))", environment=given
        )
    )

    seen = json.loads(output)
    assert {name: seen.get(name) for name in given} == given
    if engine.name == "docker":
        import docker

        client = docker.from_env()
        baked = dict(item.split("=", 1) for item in client.images.get(job.image).attrs["Config"]["Env"] or ())
        client.close()
        extra = {"PATH", "HOSTNAME", "HOME", "LC_CTYPE", "NVIDIA_VISIBLE_DEVICES"}
        assert seen.keys() - given.keys() - baked.keys() <= extra
    assert "HARNESS_HOME" not in seen


def test_hostname_is_the_instance_s_not_algo_1(job: Any) -> None:
    # contract: A20
    output, _ = job.run(job.script("import socket; print(socket.gethostname())"))

    assert output == b"ip-10-0-1-2.us-east-1.compute.internal\n"


def test_opt_ml_is_the_job_s_directory(job: Any) -> None:
    launch = job.script(
        "import pathlib\n"
        "text = pathlib.Path('/opt/ml/input/config.json').read_text()\n"
        "pathlib.Path('/opt/ml/model/weights').write_text(text * 2)\n"
        "pathlib.Path('/opt/ml/checkpoints').mkdir()\n"
        "pathlib.Path('/opt/ml/checkpoints/1').write_text('c')"
    )
    (launch.ml / "input/config.json").write_text("{}")

    _, status = job.run(launch)

    assert status == ExitStatus(code=0)
    assert (launch.ml / "model/weights").read_text() == "{}{}"
    assert (launch.ml / "checkpoints/1").read_text() == "c"


def test_shared_memory_has_the_size_of_the_plan(job: Any) -> None:
    # contract: B14
    output, _ = job.run(
        job.script(
            "import os; s = os.statvfs('/dev/shm'); print(s.f_frsize * s.f_blocks)", shm_bytes=96 << 20
        )
    )

    assert int(output) == 96 << 20


def test_tmp_is_the_host_s_own_and_writable_by_all(job: Any) -> None:
    # contract: B10. A checkout or an interpreter that lies in /tmp itself stays visible to the sandbox.
    needed = {
        Path(path).parts[2]
        for path in (sys.prefix, sys.base_prefix, __file__)
        if Path(path).is_relative_to("/tmp")
    }
    output, _ = job.run(
        job.script(
            "import json, os; print(oct(os.stat('/tmp').st_mode)); print(json.dumps(os.listdir('/tmp')));"
            " open('/tmp/x', 'w')"
        )
    )
    mode, entries = output.splitlines()

    assert mode == b"0o41777"
    assert set(json.loads(entries)) <= needed
    assert not Path("/tmp/x").exists()


def test_stdin_is_empty(job: Any) -> None:  # contract: I5
    output, _ = job.run(job.script("import sys; print(repr(sys.stdin.read()), sys.stdout.isatty())"))

    assert output == b"'' False\n"


# Mounts

TRY_WRITES = """
import errno, pathlib
channel = pathlib.Path('/opt/ml/input/data/training')
print(sorted(p.name for p in channel.iterdir()))
for act in (lambda: (channel / 'new').write_text('n'),
            lambda: (channel / 'old').write_text('changed'),
            lambda: (channel / 'gone').unlink()):
    try:
        act(); print('ok')
    except OSError as error:
        print(errno.errorcode[error.errno])
print(sorted(p.name for p in channel.iterdir()), (channel / 'old').read_text())
"""


def channel(job: Any, mode: Any, name: str = "a data, set: 1") -> Mount:
    source = job.root / name
    source.mkdir(parents=True)
    (source / "old").write_text("as it was")
    (source / "gone").write_text("not gone")
    scratch = job.root / "algo-1/overlay-training"
    return Mount(
        source=source, target=PurePosixPath("/opt/ml/input/data/training"), mode=mode, scratch=scratch
    )


@pytest.mark.parametrize(
    ("mode", "expected", "left"),
    [
        (
            "ro",
            ["['gone', 'old']", *["EROFS"] * 3, "['gone', 'old'] as it was"],
            {"old": "as it was", "gone": "not gone"},
        ),
        (
            "overlay",
            ["['gone', 'old']", *["ok"] * 3, "['new', 'old'] changed"],
            {"old": "as it was", "gone": "not gone"},
        ),
        ("rw", ["['gone', 'old']", *["ok"] * 3, "['new', 'old'] changed"], {"old": "changed", "new": "n"}),
    ],
)
def test_mounts(job: Any, mode: str, expected: list[str], left: dict[str, str]) -> None:
    # contract: B8, B16
    mount = channel(job, mode)

    output, status = job.run(job.script(TRY_WRITES, mounts=(mount,)))

    assert output.decode().splitlines() == expected
    assert status == ExitStatus(code=0)
    assert {path.name: path.read_text() for path in mount.source.iterdir()} == left


def test_a_second_attempt_sees_the_channel_as_it_was(job: Any) -> None:
    # contract: G21, a retry starts from the data again
    mount = channel(job, "overlay")
    launch = job.script(TRY_WRITES, mounts=(mount,))
    job.run(launch)
    job.engine.close(job.name)

    output, _ = job.run(launch)

    assert output.decode().splitlines()[0] == "['gone', 'old']"


def test_a_file_can_be_mounted(job: Any) -> None:
    source = job.root / "manifest"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("[]")
    target = PurePosixPath("/opt/ml/input/data/training-manifest")

    output, _ = job.run(
        job.script(
            f"print(open('{target}').read())", mounts=(Mount(source=source, target=target, mode="ro"),)
        )
    )

    assert output == b"[]\n"


# Several hosts and several jobs

PEERS = """
import json, os, socket, sys, time
me, hosts = sys.argv[1], sys.argv[2].split(',')
server = socket.create_server(('', 7777))
for peer in hosts:
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection((peer, 7777), timeout=5) as s:
                s.sendall(me.encode())
            break
        except OSError:
            if time.monotonic() > deadline: raise
            time.sleep(0.05)
heard = set()
while len(heard) < len(hosts):
    connection, _ = server.accept()
    with connection:
        heard.add(connection.recv(100).decode())
print(sorted(heard))
"""


def test_three_hosts_find_and_reach_one_another(job: Any, engine: Engine) -> None:
    # contract: H1, H27
    hosts = ("algo-1", "algo-2", "algo-3")
    code = (
        PEERS
        if engine.name == "docker"
        else PEERS.replace("create_server(('', 7777))", "create_server((me, 7777))")
    )
    launches = [
        job.launch(job.python, "-c", code, host, ",".join(hosts), host=host, hosts=hosts) for host in hosts
    ]

    started = job.start(*launches)

    assert [b"".join(host.output()) for host in started] == [b"['algo-1', 'algo-2', 'algo-3']\n"] * 3
    assert [host.wait(10) for host in started] == [ExitStatus(code=0)] * 3


@pytest.fixture
def service() -> Iterator[tuple[str, int]]:
    """A TCP service on an address of this machine that isn't loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no network but loopback")
        address = probe.getsockname()[0]
    with socket.create_server((address, 0)) as server:
        yield server.getsockname()


@pytest.mark.parametrize(("isolated", "expected"), [(False, b"reached\n"), (True, b"not reached\n")])
def test_an_isolated_job_reaches_its_own_hosts_only(
    job: Any, service: tuple[str, int], isolated: bool, expected: bytes
) -> None:
    code = (
        "import socket\n"
        "with socket.create_server(('', 7777)): socket.create_connection(('algo-1', 7777), timeout=5).close()\n"
        f"try: socket.create_connection({service!r}, timeout=2); print('reached')\n"
        "except OSError: print('not reached')\n"
    )

    output, status = job.run(job.script(code, network_isolated=isolated))

    assert (output, status) == (expected, ExitStatus(code=0))


def test_concurrent_jobs_do_not_see_one_another(engine: Engine, make_job: Callable[[Engine], Any]) -> None:
    jobs = [make_job(engine), make_job(engine)]
    hosts = [
        job.start(
            job.script(
                f"import socket, time; print(socket.gethostbyname('algo-1') != '', {number}, flush=True); time.sleep(1)"
            )
        )[0]
        for number, job in enumerate(jobs)
    ]

    engine.close(jobs[0].name)

    assert b"".join(hosts[1].output()) == b"True 1\n"
    assert hosts[1].wait(10) == ExitStatus(code=0)


# What it uses, and what it leaves


def test_usage_tells_cpu_and_memory_while_it_runs(job: Any) -> None:
    code = (
        "import time\nblock = bytearray(b'x' * (64 << 20))\nend = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\nprint('up', flush=True); time.sleep(600)"
    )
    (host,) = job.start(job.script(code))
    until(host, b"up")

    usage = host.usage()

    assert usage is not None
    assert usage.cpu_seconds >= 0.3
    assert 64 << 20 <= usage.memory_bytes < 1 << 30
    assert usage.memory_limit_bytes >= usage.memory_bytes
    assert usage.pids
    assert any("python" in Path(f"/proc/{pid}/comm").read_text() for pid in usage.pids)
    host.kill()
    assert host.usage() is None


def test_close_ends_what_runs_and_may_be_called_again(job: Any, engine: Engine) -> None:
    (host,) = job.start(job.script(SLEEP))
    until(host, b"up")

    engine.close(job.name)
    engine.close(job.name)

    status = host.wait(10)
    assert status is not None
    assert status.code == 137
    assert open_engine(engine.name).attach(job.name) == {}


def test_close_of_an_unknown_job_does_nothing(engine: Engine) -> None:
    engine.close("no-such-job")
    assert engine.attach("no-such-job") == {}

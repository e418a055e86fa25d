"""What the sandbox engine does beyond what every engine must: confinement, cleaning up, doing without.

`test_sandbox_as_an_ordinary_user.py` runs this file once more as another user.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import harness
from harness.engines.sandbox import Mode, SandboxEngine, sandbox_mode
from harness.engines.sandbox._environment import compose
from harness.engines.sandbox._interpreter import describe
from harness.engines.sandbox._layout import Layout
from harness.engines.sandbox._memory import MemoryGroup
from harness.errors import EngineError
from harness.model import ExitStatus, Gpu, Mount

REPOSITORY = Path(harness.__file__).parents[1]
ROOT = os.geteuid() == 0

needs_namespaces = pytest.mark.skipif(
    sandbox_mode().name != "namespaces", reason=f"no namespaces here: {sandbox_mode().reason}"
)


def left_in(scratch: Path) -> list[str]:
    """What a host left there, but for its /tmp, which is kept."""
    return [path.name for path in scratch.iterdir() if path.name != "tmp"]


@pytest.fixture
def job(make_job: Callable[[Any], Any]) -> Any:
    return make_job(SandboxEngine())


def say(expression: str) -> str:
    return f"import json, os, socket, sys; print(json.dumps({expression}))"


def told(job: Any, expression: str, **fields: Any) -> Any:
    output, status = job.run(job.script(say(expression), **fields))
    assert status == ExitStatus(code=0), output
    return json.loads(output)


def attempts(code: str) -> str:
    """Code that does each statement of `code` and prints the error's name, or ok."""
    return (
        "import errno, os, pathlib, subprocess\n"
        f"for act in {code.strip().splitlines()!r}:\n"
        "    try: exec(act); print('ok')\n"
        "    except OSError as error: print(errno.errorcode[error.errno])\n"
    )


def processes_with(marker: str) -> dict[int, str]:
    """Pid and command line of this machine's processes that have `marker` in them."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line:
            found[int(path.parent.name)] = line
    return found


@pytest.fixture
def marker() -> Iterator[str]:
    """A number of seconds that only one test sleeps; should it fail, its sleepers are ended here."""
    name = f"7{time.time_ns() % 10**9}"
    yield name
    for pid in processes_with(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


# The script can't harm what is the user's


@needs_namespaces
def test_the_machine_is_read_only_and_its_own_places_are_not(job: Any) -> None:
    package = Path(harness.__file__).parent
    code = attempts(
        f"""
open({str(package / "made-by-a-script")!r}, 'w')
open('/usr/made-by-a-script', 'w')
open('/etc/made-by-a-script', 'w')
open('/opt/ml/model/x', 'w')
open('/tmp/x', 'w')
open('/var/tmp/x', 'w')
open('/dev/shm/x', 'w')
open('/root/x', 'w')
open('/opt/x', 'w')
os.mkdir('/data')
"""
    )

    output, _ = job.run(job.script(code))

    assert output.decode().split() == ["EROFS"] * 3 + ["ok"] * 7
    assert not (package / "made-by-a-script").exists()


@needs_namespaces
def test_a_script_has_a_container_s_capabilities_and_can_t_make_it_writable(job: Any) -> None:
    # contract: A12
    code = attempts(
        """
os.write(1, pathlib.Path('/proc/self/status').read_text().partition('CapBnd:')[2].split()[0].encode() + b' ')
subprocess.run(['mount', '-o', 'remount,rw', '/usr'], check=True, stderr=subprocess.DEVNULL)
""".replace("check=True", "check=False")
    )
    inner = (
        "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.mount(b'none', b'/usr', None, 0x1020, None), ctypes.get_errno())\n"
        "print(libc.unshare(0x10020000), libc.mount(b'none', b'/usr', None, 0x1020, None), ctypes.get_errno())\n"
    )

    output, _ = job.run(job.script(code + inner))

    bounding, first, second, remount, nested = (
        output.decode().replace("\nok", " ok").split(maxsplit=4)[0:5] or [""] * 5
    )
    assert int(bounding, 16) == 0xA80425FB
    assert (first, second) == ("ok", "ok")
    assert remount == "-1"
    assert nested.split()[0] == str(errno.EPERM)
    assert nested.split()[-1] == str(errno.EPERM)


@needs_namespaces
def test_devices_are_a_container_s(job: Any) -> None:
    # contract: A12
    names = set(told(job, "os.listdir('/dev')"))

    assert names >= {"null", "zero", "random", "urandom", "shm", "pts", "ptmx", "fd", "stdin"}
    assert not names & {"fuse", "kmsg", "mem", "loop0", "vda", "sda"}
    assert told(job, "[os.ttyname(fd) for fd in os.openpty()][1]") == "/dev/pts/0"


@needs_namespaces
def test_only_its_own_processes_are_seen(job: Any) -> None:
    assert told(job, "[int(n) for n in os.listdir('/proc') if n.isdigit()]") == [1]
    assert told(job, "[os.getpid(), os.getsid(0), os.getuid(), os.getcwd()]") == [1, 1, 0, "/"]


@needs_namespaces
def test_what_root_could_break_through_proc_is_closed(job: Any) -> None:
    code = attempts(
        """
open('/proc/sys/vm/swappiness', 'w').write('60')
open('/proc/sys/kernel/hostname', 'w')
"""
    )

    output, _ = job.run(job.script(code))

    assert output.decode().split() == ["EROFS"] * 2


@needs_namespaces
def test_scratch_and_the_user_s_home_directory_are_not_shown(job: Any) -> None:
    launch = job.script("")
    scratch = str(launch.scratch)

    seen, home, variable = told(
        job,
        f"[os.path.exists({scratch!r}) and os.listdir({scratch!r}), os.listdir('/root'), os.environ['HOME']]",
    )

    assert not seen
    assert set(home) <= {".local", ".config", ".pyenv", ".cache"}
    assert variable == "/root"


@needs_namespaces
def test_files_belong_to_the_user_who_runs_it(job: Any) -> None:
    launch = job.script("import os; os.makedirs('/opt/ml/model/a'); open('/opt/ml/model/a/b', 'w')")
    job.run(launch)

    for path in (launch.ml / "model/a", launch.ml / "model/a/b"):
        assert path.stat().st_uid == os.geteuid()
        assert path.stat().st_gid == os.getegid()


# Environment


def test_nothing_of_the_user_s_environment_leaks(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name not in ("PATH", "HOME", "HARNESS_HOME"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("HOME", "/nonexistent")
    given = {"SM_HOSTS": '["algo-1"]', "EMPTY": "", "LANG": "C.utf8"}

    seen = told(job, "dict(os.environ)", environment=given)

    path = seen.pop("PATH").split(":")
    assert path[0] == str(Path(sys.executable).parent)
    assert path[1:] == [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/root/.local/bin",
    ]
    seen.pop("PIP_BREAK_SYSTEM_PACKAGES", None)
    seen.pop("CUDA_VISIBLE_DEVICES", None)
    assert seen == given | {
        "HOME": "/root",
        "HOSTNAME": "ip-10-0-1-2.us-east-1.compute.internal",
        "PYTHONUNBUFFERED": "1",
    }


def test_only_a_host_with_a_network_is_told_of_pip_s_index(job: Any) -> None:
    user = {"PIP_INDEX_URL": "https://pypi.example/simple", "https_proxy": "http://proxy:3128", "SECRET": "s"}
    python = describe(None)

    open_job = compose(job.script("", environment={}), python, user, False)
    isolated = compose(job.script("", environment={}, network_isolated=True), python, user, False)

    assert open_job.keys() - isolated.keys() == {"PIP_INDEX_URL", "https_proxy"}


GPUS = tuple(Gpu(index=n, uuid=f"GPU-{n}", name="x", memory_bytes=1) for n in (4, 6))


@pytest.mark.parametrize(
    ("gpus", "machine_has", "given", "expected"),
    [
        ((), False, {}, None),
        ((), True, {}, ""),
        (GPUS, True, {}, "GPU-4,GPU-6"),
        (GPUS, True, {"CUDA_VISIBLE_DEVICES": "1"}, "GPU-6"),  # the job's own choice among its GPUs
        (GPUS, True, {"CUDA_VISIBLE_DEVICES": "1, 0"}, "GPU-6,GPU-4"),
    ],
)
def test_a_host_sees_its_own_gpus(job: Any, gpus: Any, machine_has: bool, given: Any, expected: Any) -> None:
    environment = compose(job.script("", environment=given, gpus=gpus), describe(None), {}, machine_has)

    assert environment.get("CUDA_VISIBLE_DEVICES") == expected


@needs_namespaces
def test_python_is_a_command(job: Any) -> None:
    output, status = job.run(job.launch("sh", "-c", "python -c 'import sys; print(sys.version_info[:2])'"))

    assert (output.decode().strip(), status.code) == (str(sys.version_info[:2]), 0)


# Ends


def test_a_segmentation_fault_of_process_1_is_139(job: Any) -> None:
    _, status = job.run(job.script("import ctypes; ctypes.string_at(0)"))

    assert status == ExitStatus(code=139)


def test_a_line_of_100_megabytes(job: Any) -> None:
    (host,) = job.start(job.script("import os\nfor _ in range(100): os.write(1, b'x' * 2**20)"))

    assert sum(len(chunk) for chunk in host.output(skip=1000)) == (100 << 20) - 1000
    assert host.wait(10) == ExitStatus(code=0)


def test_output_goes_on_where_the_last_reader_stopped(job: Any) -> None:
    (host,) = job.start(
        job.script("import os, sys; os.write(1, b'one'); sys.stdin.read(); os.write(1, b'two')")
    )
    host.wait(20)
    first = next(host.output())

    assert first + b"".join(host.output()) == b"onetwo"
    with pytest.raises(EngineError, match="read already"):
        next(host.output(skip=1))


def test_a_directory_is_no_command(job: Any) -> None:
    # contract: A3
    (host,) = job.start(job.launch("/usr"))

    assert host.wait(10) == ExitStatus(code=126, error='exec: "/usr": is a directory')


def test_a_launch_without_a_command_or_with_a_lost_source_is_refused(job: Any) -> None:
    with pytest.raises(EngineError, match="no command"):
        job.engine.start(job.launch())
    gone = Mount(source=job.root / "gone", target=PurePosixPath("/opt/ml/input/data/a"), mode="ro")
    with pytest.raises(EngineError, match=r"gone, to be seen at /opt/ml/input/data/a, doesn't exist"):
        job.engine.start(job.launch("true", mounts=(gone,)))


def test_an_interpreter_that_is_not_there_is_named(job: Any) -> None:
    with pytest.raises(EngineError, match=r"interpreter /no/python is not an executable file"):
        job.engine.start(job.launch("true", python="/no/python"))


def test_what_the_kernel_refuses_is_an_error_and_leaves_nothing(job: Any) -> None:
    launch = job.launch("true", shm_bytes=-5)
    if sandbox_mode().name != "namespaces":
        pytest.skip("no mounts without namespaces")

    with pytest.raises(EngineError, match=r"can't start algo-1 of .*tmpfs"):
        job.start(launch)

    assert left_in(launch.scratch) == []


# Memory


@pytest.fixture(params=["control group", "guard"])
def limiter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to keep a limit: the kernel's, and the one for those who may not use the kernel's."""
    if request.param == "guard":
        monkeypatch.setattr(MemoryGroup, "make", lambda *_: None)
    else:
        probe = MemoryGroup.make("probe", "algo-1", 1 << 30)
        if probe is None:
            pytest.skip("this user can't make a memory control group")
        probe.remove()
    return str(request.param)


def test_an_oom_kill_is_told_as_such(job: Any, limiter: str) -> None:
    del limiter
    (host,) = job.start(
        job.script("block = []\nwhile True: block.append(bytearray(b'x' * (4 << 20)))", memory_bytes=48 << 20)
    )

    assert host.wait(60) == ExitStatus(code=137, oom_killed=True)


def test_an_oom_killed_worker_is_told_and_its_host_lives_on(job: Any, limiter: str) -> None:
    del limiter
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    while True: globals().setdefault('b', []).append(bytearray(b'x' * (4 << 20)))\n"
        "_, status = os.wait(); print(status, flush=True); time.sleep(600)"
    )
    (host,) = job.start(job.script(code, memory_bytes=48 << 20))

    assert next(host.output()).startswith(b"9")
    usage = host.usage()
    assert usage is not None
    assert 0 < usage.memory_bytes < 48 << 20
    assert usage.memory_limit_bytes == 48 << 20
    host.signal(signal.SIGKILL)
    assert host.wait(10) == ExitStatus(code=137, oom_killed=True)


def test_control_groups_are_removed(job: Any) -> None:
    probe = MemoryGroup.make("probe", "algo-1", 1 << 30)
    if probe is None:
        pytest.skip("this user can't make a memory control group")
    probe.remove()
    job.run(job.script("", memory_bytes=256 << 20))

    job.engine.close(job.name)

    assert not list(probe.directory.parent.glob(f"*{job.name}*"))


def test_sigkill_of_ours_is_no_oom(job: Any) -> None:
    (host,) = job.start(job.script("import time; time.sleep(600)", memory_bytes=256 << 20))
    host.kill()

    assert host.wait(10) == ExitStatus(code=137)


def test_a_fork_of_the_supervisor_doesn_t_keep_its_host_alive(tmp_path: Path, marker: str) -> None:
    # A pool of worker processes that outlives its parent holds copies of all its pipes.
    code = SUPERVISOR.replace("time.sleep(600)", "import os\nos.fork()\ntime.sleep(600)")
    with subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            code,
            str(tmp_path),
            f"t-{marker}",
            marker,
            sandbox_mode().name,
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=SUPERVISOR_ENVIRONMENT,
        start_new_session=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "up\n"
        assert soon(lambda: len(processes_with(f"t-{marker}")) >= 3)  # supervisor, its fork, launcher

        supervisor.kill()

        assert soon(lambda: processes_with(f"sleep {marker}") == {}, 5)
        assert soon(lambda: len(processes_with(f"t-{marker}")) == 1)  # the fork: it was left in peace
        for pid in processes_with(f"t-{marker}"):
            os.kill(pid, signal.SIGKILL)


# The interpreter


@needs_namespaces
def test_packages_go_to_a_layer_and_not_into_the_user_s_environment(job: Any, tmp_path: Path) -> None:
    # contract: A24. The venv lies in /tmp, where a host has its own files.
    venv.create(tmp_path / "env", symlinks=True, with_pip=False)
    python = str(tmp_path / "env/bin/python")
    code = (
        "import pathlib, sys, sysconfig\n"
        "site = pathlib.Path(sysconfig.get_path('purelib'))\n"
        "(site / 'fresh.py').write_text('value = 7')\n"
        "(pathlib.Path(sysconfig.get_path('scripts')) / 'tool').write_text('')\n"
        "import fresh; print(sys.prefix, fresh.value)"
    )

    output, status = job.run(job.launch(python, "-c", code, python=python))

    assert (output.decode(), status.code) == (f"{tmp_path / 'env'} 7\n", 0)
    assert not list((tmp_path / "env").rglob("fresh*"))
    assert not (tmp_path / "env/bin/tool").exists()


@needs_namespaces
def test_where_no_layer_can_be_had_pip_installs_beside(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # procfs can't have a layer over it: what a kernel before 5.11 says to any place.
    venv.create(tmp_path / "env", symlinks=True, with_pip=False)
    python = str(tmp_path / "env/bin/python")
    monkeypatch.setattr(Layout, "_layer", lambda _self, path, _: ("/proc/1", path, "/sys", "/sys"))

    (host,) = job.start(job.launch(python, "-c", say("dict(os.environ)"), python=python))

    seen = json.loads(b"".join(host.output()))
    assert seen["PIP_PREFIX"] == "/root/.pip-prefix"
    assert seen["PYTHONPATH"].startswith("/root/.pip-prefix/lib/python3")
    assert [note for note in host.notes if "pip installs beside" in note]


@needs_namespaces
def test_where_the_disk_can_hold_no_layer_memory_does(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a scratch directory on NFS, or on a container's own overlayfs, says; here sysfs.
    make = Layout._mount
    monkeypatch.setattr(
        Layout, "_mount", lambda *a: make(*a) | {"upper": "/sys/kernel", "work": "/sys/kernel"}
    )
    source = tmp_path / "set"
    source.mkdir()
    (source / "a").write_text("a")
    target = "/opt/ml/input/data/training"
    mount = Mount(source=source, target=PurePosixPath(target), mode="overlay")

    (host,) = job.start(
        job.script(f"import os; os.remove('{target}/a'); print(os.listdir('{target}'))", mounts=(mount,))
    )

    assert b"".join(host.output()) == b"[]\n"
    assert (source / "a").read_text() == "a"
    assert host.notes == (
        f"what is written to {target} is kept in memory: Invalid argument in a layer on disk",
    )


# Mounts


@needs_namespaces
@pytest.mark.parametrize("target", ["/data/set", "/usr/share/harness-test/set", "/tmp/set", "/opt/x/set"])
def test_a_mount_outside_opt_ml(job: Any, target: str, tmp_path: Path) -> None:
    source = tmp_path / "checkpoints"
    source.mkdir()
    mount = Mount(source=source, target=PurePosixPath(target), mode="rw")

    _, status = job.run(job.script(f"open('{target}/1', 'w').write('c')", mounts=(mount,)))

    assert status == ExitStatus(code=0)
    assert (source / "1").read_text() == "c"
    assert not Path("/usr/share/harness-test").exists()
    # What stood beside the mount point is still there.
    assert told(job, "len(os.listdir('/usr/share'))", mounts=(mount,)) >= len(
        list(Path("/usr/share").iterdir())
    )


@needs_namespaces
def test_one_file_can_be_written_without_reaching_its_source(job: Any, tmp_path: Path) -> None:
    source = tmp_path / "data, 1.csv"
    source.write_text("a,b\n")
    target = "/opt/ml/input/data/training/data.csv"
    mount = Mount(source=source, target=PurePosixPath(target), mode="overlay", scratch=tmp_path / "upper")

    output, _ = job.run(
        job.script(f"open('{target}', 'a').write('1,2\\n'); print(open('{target}').read())", mounts=(mount,))
    )

    assert output == b"a,b\n1,2\n\n"
    assert source.read_text() == "a,b\n"
    job.engine.close(job.name)
    assert list((tmp_path / "upper").iterdir()) == []


# Network


@needs_namespaces
def test_a_host_resolves_itself_and_what_the_machine_resolves(job: Any) -> None:
    # contract: A20, H1
    own, name, local = told(
        job, "[socket.gethostbyname(n) for n in ('algo-1', socket.gethostname(), 'localhost')]"
    )

    assert own == name
    assert own.startswith("127.")
    assert own != local == "127.0.0.1"


@needs_namespaces
def test_two_jobs_have_different_addresses(make_job: Callable[[Any], Any]) -> None:
    engine = SandboxEngine()
    first, second = make_job(engine), make_job(engine)
    second.name, name = first.name + "x", first.name
    from harness.engines.sandbox import _network

    taken = _network.JobNetwork(name, ("algo-1",), False, "eth0", engine.mode)
    again = _network.JobNetwork(name, ("algo-1",), False, "eth0", engine.mode)
    try:
        assert taken.addresses != again.addresses
    finally:
        taken.close()
        again.close()


@needs_namespaces
def test_an_isolated_job_has_the_interface_it_expects(job: Any) -> None:
    hosts = ("algo-1", "algo-2")
    code = say("[sorted(n for _, n in socket.if_nameindex()), socket.gethostbyname(sys.argv[1])]")
    launches = [
        job.launch(job.python, "-c", code, peer, host=host, hosts=hosts, network_isolated=True)
        for host, peer in zip(hosts, reversed(hosts), strict=True)
    ]

    seen = [json.loads(b"".join(host.output())) for host in job.start(*launches)]

    interfaces = seen[0][0]
    assert interfaces in (["eth0", "lo"], ["lo"])  # the latter where the kernel can make no link
    assert [address for _, address in seen] == ["10.0.1.2", "10.0.1.1"]


# Leaving nothing


@needs_namespaces
def test_nothing_is_left_behind(job: Any) -> None:
    launch = job.script(
        "import os, sys\n"
        "os.chdir('/var/tmp')\n"
        "for _ in range(1500): os.mkdir('deep-down'); os.chdir('deep-down')\n"
        "os.makedirs('/var/tmp/a/b'); open('/var/tmp/a/b/c', 'w'); os.chmod('/var/tmp/a/b', 0); os.chmod('/var/tmp/a', 0)\n"
        "os.symlink('/usr', '/var/tmp/link'); open(sys.prefix + '/in-the-layer', 'w') if len(sys.argv) > 1 else 0"
    )
    job.run(launch)

    job.engine.close(job.name)

    assert left_in(launch.scratch) == []
    assert Path("/usr/bin").is_dir()
    assert str(job.root) not in Path("/proc/self/mountinfo").read_text()
    assert processes_with(job.name) == {}


def test_another_engine_leaves_a_living_supervisor_s_job_alone(job: Any) -> None:
    (host,) = job.start(job.script("import time; time.sleep(600)"))

    SandboxEngine().close(job.name)

    assert host.wait(0.3) is None


SUPERVISOR_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
}
SUPERVISOR = """
import sys, time
from pathlib import Path
from harness.engines.sandbox import Mode, SandboxEngine, sandbox_mode
from harness.model import HostLaunch
root, name, marker, mode = Path(sys.argv[1]), *sys.argv[2:]
engine = SandboxEngine(sandbox_mode() if mode == "namespaces" else Mode("rewrite", "for a test"))
(root / "ml").mkdir(); (root / "scratch").mkdir()
host = engine.start(HostLaunch(
    job_name=name, host="algo-1", hosts=("algo-1",), hostname="h", image=None,
    entrypoint=("sh", "-c"), command=(f"(setsid sh -c 'setsid sleep {marker} & sleep {marker}' &); echo up; sleep {marker}",),
    environment={}, ml=root / "ml", mounts=(), scratch=root / "scratch", gpus=(), shm_bytes=1 << 20))
print(next(host.output()).decode(), host.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["supervisor", "launcher"])
@pytest.mark.parametrize("mode", ["namespaces", "rewrite"])
def test_a_host_dies_with_its_supervisor_and_with_its_launcher(
    tmp_path: Path, marker: str, victim: str, mode: str
) -> None:
    if mode == "namespaces" and sandbox_mode().name != mode:
        pytest.skip(sandbox_mode().reason)
    name = f"t-{marker}"
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), name, marker, mode],
        stdout=subprocess.PIPE,
        text=True,
        env=SUPERVISOR_ENVIRONMENT,
        start_new_session=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "up\n"
        pid = int(supervisor.stdout.readline())
        assert soon(lambda: len(processes_with(f"sleep {marker}")) >= 4)
        status = Path(f"/proc/{pid}/status").read_text()
        launcher = int(status.partition("PPid:")[2].split()[0])

        os.kill(supervisor.pid if victim == "supervisor" else launcher, signal.SIGKILL)
        began = time.monotonic()
        if (victim, mode) == ("launcher", "rewrite"):
            # Without a PID namespace only process 1 dies with the launcher. The supervisor ends the others;
            # here it dies before it can, and close does it for the next one.
            supervisor.kill()
            supervisor.wait()
            SandboxEngine().close(name)
        gone = soon(lambda: processes_with(f"sleep {marker}") == {}, 5)

        assert gone, processes_with(marker)
        assert time.monotonic() - began < 3
        supervisor.kill()
    assert soon(lambda: not processes_with(name))
    if victim == "supervisor":
        assert soon(lambda: not (tmp_path / "scratch/sandbox").exists())


# Without namespaces


@pytest.fixture
def plain(make_job: Callable[[Any], Any]) -> Any:
    return make_job(SandboxEngine(Mode("rewrite", "user.max_user_namespaces is 0")))


def test_without_namespaces_the_base_directory_leads_to_the_tree(plain: Any, tmp_path: Path) -> None:
    # contract: B21
    source = tmp_path / "set"
    (source / "sub").mkdir(parents=True)
    (source / "sub/a").write_text("a")
    mount = Mount(source=source, target=PurePosixPath("/opt/ml/input/data/training"), mode="overlay")
    code = (
        "import os, pathlib, shutil\n"
        "base = pathlib.Path(os.environ['SAGEMAKER_BASE_DIR'], 'opt/ml')\n"
        "print((base / 'input/data/training/sub/a').read_text(), os.getpid() != 1)\n"
        "(base / 'model/m').write_text('m'); shutil.rmtree(base / 'input/data/training')\n"
        "open(os.environ['HOME'] + '/x', 'w'); import tempfile; tempfile.mkstemp()"
    )
    launch = plain.script(code, mounts=(mount,))
    (host,) = plain.start(launch)

    assert b"".join(host.output()) == b"a True\n"
    assert host.wait(10) == ExitStatus(code=0)
    assert "hard-coded /opt/ml paths don't work: user.max_user_namespaces is 0" in host.notes
    assert (launch.ml / "model/m").read_text() == "m"
    assert (source / "sub/a").read_text() == "a"
    plain.engine.close(plain.name)
    assert left_in(launch.scratch) == []
    assert not (launch.ml / "input/data/training").exists()


def test_without_namespaces_daemons_end_as_well(plain: Any, marker: str) -> None:

    output, status = plain.run(
        plain.launch("sh", "-c", f"(setsid sh -c 'setsid sleep {marker} &' &); echo up; exit 4")
    )

    assert (output, status) == (b"up\n", ExitStatus(code=4))
    assert processes_with(f"sleep {marker}") == {}


def test_a_dead_launcher_is_told_and_its_host_ended(plain: Any, marker: str) -> None:
    (host,) = plain.start(plain.launch("sh", "-c", f"(setsid sleep {marker} &); echo up; sleep {marker}"))
    next(host.output())
    parent = Path(f"/proc/{host.pid}/status").read_text().partition("PPid:")[2].split()[0]

    os.kill(int(parent), signal.SIGKILL)

    status = host.wait(10)
    assert (status.code, status.vanished) == (137, True)
    assert processes_with(f"sleep {marker}") == {}
    plain.engine.close(plain.name)
    assert left_in(plain.root / "algo-1/scratch") == []


@needs_namespaces
def test_close_removes_what_a_killed_supervisor_and_launcher_left(home: Path, tmp_path: Path) -> None:
    # As after a power cut: overlayfs's directory of mode 000 among it.
    name = "interrupted"
    scratch = home / "jobs" / name / "hosts/algo-1/scratch"
    overlay = tmp_path / "overlay"
    for directory in (scratch / "sandbox/tmp", overlay / "work/work", overlay / "kept"):
        directory.mkdir(parents=True)
    (overlay / "work/work").chmod(0)
    remove = [str(scratch / "sandbox"), str(overlay / "work")]
    (scratch / "sandbox/remove.json").write_text(json.dumps({"owner": 2**22 + 1, "remove": remove}))

    SandboxEngine().close(name)

    assert list(scratch.iterdir()) == []
    assert list(overlay.iterdir()) == [overlay / "kept"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network_isolated": True}, "wants network isolation"),
        ({"hosts": ("algo-1", "algo-2")}, "wants several hosts"),
    ],
)
def test_without_namespaces_what_needs_them_is_refused(
    plain: Any, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=f"{words}.*user.max_user_namespaces is 0.*docker"):
        plain.start(plain.script("", **fields))


@needs_namespaces
def test_the_setting_that_forbids_namespaces_is_named() -> None:
    # In a user namespace of its own anyone may forbid further ones: what a careful machine does.
    code = (
        "from harness.engines.sandbox.inner import kernel, launcher\n"
        "from harness.engines.sandbox import sandbox_mode\n"
        "launcher.enter_user_namespace()\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "kernel.drop_capabilities()\n"
        "print(*sandbox_mode())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=SUPERVISOR_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.startswith("rewrite user.max_user_namespaces is 0")
    assert "`sudo sysctl -w user.max_user_namespaces=" in done.stdout


@pytest.mark.skipif(not ROOT, reason="only root can do without a user namespace")
@pytest.mark.parametrize("isolated", [False, True])
def test_root_needs_no_user_namespace(make_job: Callable[[Any], Any], isolated: bool) -> None:
    job = make_job(SandboxEngine(Mode("namespaces", "", user_namespace=False)))
    code = attempts("open('/usr/made-by-a-script', 'w')\nopen('/opt/ml/model/x', 'w')\nos.mkdir('/root/x')")

    output, status = job.run(job.script(code, network_isolated=isolated))

    assert (output, status) == (b"EROFS\nok\nok\n", ExitStatus(code=0))


# Speed: printed, and only a start that has gone badly wrong fails


def test_start_to_first_line(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bare, confined = [], []
    launch = job.script("print(1)")
    for _ in range(5):
        began = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", "print(1)"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        (host,) = job.start(launch)
        next(host.output())
        confined.append(time.perf_counter() - began)
        host.wait()
    with capsys.disabled():
        print(f"\nsandbox: first line after {min(confined) * 1e3:.0f} ms, bare {min(bare) * 1e3:.0f} ms")
    assert min(confined) < min(bare) + 1.0

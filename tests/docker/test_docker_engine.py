"""The docker engine beyond the contract of all engines: survival, truth about loss, cleanliness, errors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import pytest

from harness.engines import open_engine
from harness.engines.docker import DockerEngine, _daemon, _host
from harness.engines.docker._engine import _claim
from harness.errors import EngineError
from harness.model import ExitStatus, Mount

pytestmark = [
    pytest.mark.docker,
    pytest.mark.parametrize("engine", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True),
]

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def job(engine: DockerEngine, make_job: Callable[[DockerEngine], Any]) -> Any:
    return make_job(engine)


def container_of(client: docker.DockerClient, job: Any, host: str = "algo-1") -> Any:
    """The container of a host, found as a person would."""
    return client.containers.get(f"harness-{job.name}-{host}")


def left(client: docker.DockerClient, job: Any) -> list[Any]:
    """Everything of a job that the daemon still knows."""
    query = {"label": f"harness.job={job.name}"}
    return [
        *client.containers.list(all=True, filters=query),
        *client.networks.list(filters=query),
        *client.volumes.list(filters=query),
    ]


# What it makes


def test_the_container_is_plain(job: Any, client: docker.DockerClient) -> None:
    # contract: A9, A10, A12. There is no --init.
    job.start(job.script(SLEEP, memory_bytes=256 << 20))

    config = container_of(client, job).attrs
    host = config["HostConfig"]
    assert (host["Privileged"], host["Init"], host["CapAdd"], host["AutoRemove"]) == (
        False,
        False,
        None,
        False,
    )
    assert (host["Memory"], host["MemorySwap"]) == (256 << 20, 256 << 20)
    assert host["RestartPolicy"]["Name"] == "no"
    assert (config["Config"]["Tty"], config["Config"]["OpenStdin"]) == (False, False)
    assert config["Config"]["Labels"]["harness.job"] == job.name
    assert config["Config"]["Labels"]["harness.host"] == "algo-1"


def test_the_interface_is_eth0(job: Any) -> None:
    # contract: H27
    output, _ = job.run(job.script("import os; print(sorted(os.listdir('/sys/class/net')))"))

    assert b"'eth0'" in output


def test_gpus_are_asked_for_by_id(job: Any, engine: DockerEngine) -> None:
    from harness.engines.docker import _launch
    from harness.model import Gpu

    gpus = tuple(Gpu(index=n, uuid=f"GPU-{n}", name="x", memory_bytes=1) for n in (1, 3))
    launch = job.script("", gpus=gpus, environment={})
    (launch.ml / "code").mkdir()
    settings = {"network": "n", "scope": "s", "since": 0.0, "overlays": True, "podman": False}

    body = _launch.container(engine._daemon.client, launch, **settings)

    (request,) = body["HostConfig"]["DeviceRequests"]
    assert (request["DeviceIDs"], request["Capabilities"]) == (["GPU-1", "GPU-3"], [["gpu"]])
    assert body["Env"] == []


def test_a_host_without_gpus_says_so_to_the_nvidia_runtime(job: Any) -> None:
    # contract: A14
    output, _ = job.run(job.script("import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])"))

    assert output == b"void\n"


@pytest.mark.parametrize("entrypoint", [None, ("/bin/sh", "-c")], ids=["image's own", "given"])
def test_the_image_s_entrypoint_stays_unless_replaced(
    job: Any, client: docker.DockerClient, entrypoint: tuple[str, ...] | None
) -> None:
    # contract: A1, A4-A6
    base = client.containers.create(job.image, "true")
    tag = f"harness-test-{job.name}"
    base.commit(repository=tag, changes=['ENTRYPOINT ["echo", "own"]', 'CMD ["cmd"]'])
    base.remove()
    try:
        launch = job.launch(
            image=tag, entrypoint=entrypoint, command=("echo given",) if entrypoint else ("train",)
        )
        output, _ = job.run(launch)
        assert output == (b"given\n" if entrypoint else b"own train\n")
    finally:
        job.engine.close(job.name)
        client.images.remove(tag)


def test_code_baked_into_the_image_is_seen_and_nothing_else_under_opt_ml(
    job: Any, client: docker.DockerClient
) -> None:
    # contract: A11
    base = client.containers.run(
        job.image,
        [
            "sh",
            "-c",
            "mkdir -p /opt/ml/code /opt/ml/model && echo c >/opt/ml/code/t.py && echo m >/opt/ml/model/x",
        ],
        detach=True,
    )
    base.wait()
    tag = f"harness-test-{job.name}"
    base.commit(repository=tag)
    base.remove(v=True)
    try:
        code = "import os; print(os.listdir('/opt/ml/code'), os.listdir('/opt/ml/model')); open('/opt/ml/code/w', 'w')"
        output, status = job.run(job.script(code, image=tag))
        assert (output, status.code) == (b"['t.py'] []\n", 0)
    finally:
        job.engine.close(job.name)
        client.images.remove(tag)


# Truth about how it ended


def test_a_killed_container_is_not_told_as_oom(job: Any, client: docker.DockerClient) -> None:
    (host,) = job.start(job.script(SLEEP, memory_bytes=256 << 20))
    output = host.output()
    assert next(output)

    container_of(client, job).kill()

    assert host.wait(10) == ExitStatus(code=137)
    assert b"".join(output) in (b"", b"\n")


def test_a_removed_container_is_told_as_vanished(job: Any, client: docker.DockerClient) -> None:
    (host,) = job.start(job.script(SLEEP))
    output = host.output()
    assert next(output)

    container_of(client, job).remove(force=True)

    status = host.wait(10)
    assert status is not None
    assert (status.vanished, status.error) == (True, "the container of algo-1 was removed while it ran")
    list(output)
    host.kill()
    host.signal(signal.SIGTERM)
    assert host.usage() is None
    assert left(client, job)
    job.engine.close(job.name)
    assert left(client, job) == []


def test_output_that_nobody_reads_does_not_stop_the_host(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "UNREAD_SECONDS", 0.5)
    (host,) = job.start(job.script("import os\nfor _ in range(8): os.write(1, b'x' * 2**20)"))

    assert host.wait(20) == ExitStatus(code=0)
    assert b"".join(host.output()).count(b"x") == 8 << 20


# Survival

TALK = """
import os, sys, time
for n in range(400):
    os.write(1 + n % 3 // 2, b'%d ' % n + bytes([128 + n % 128]) * 50 + b'\\n')
    if n == 200:
        os.write(1, b'half\\n')
        while not os.path.exists('/opt/ml/input/go'): time.sleep(0.02)
"""


def test_a_new_engine_finds_the_host_and_goes_on_at_the_byte(job: Any) -> None:
    launch = job.script(TALK)
    (host,) = job.start(launch)
    first = b""
    for chunk in host.output():
        first += chunk
        if b"half\n" in first:
            break
    # What a crashed supervisor's log file holds may end anywhere.
    kept = first[: len(first) - 137]
    del host

    survivor = open_engine("docker").attach(job.name)["algo-1"]
    rest = survivor.output(skip=len(kept))
    second = next(rest)
    (launch.ml / "input/go").touch()
    second += b"".join(rest)

    lines = [line for line in (kept + second).split(b"\n") if line not in (b"", b"half")]
    assert sorted(int(line.split()[0]) for line in lines) == list(range(400))
    assert all(line.endswith(bytes([128 + int(line.split()[0]) % 128]) * 50) for line in lines)
    assert survivor.wait(10) == ExitStatus(code=0)


def test_without_notes_the_first_bytes_of_the_log_are_skipped(job: Any) -> None:
    launch = job.script("import os; os.write(1, b'abcdefgh\\n')")
    output, _ = job.run(launch)
    (launch.scratch / "streams").unlink()

    survivor = open_engine("docker").attach(job.name)["algo-1"]

    assert b"".join(survivor.output(skip=3)) == output[3:]
    assert b"".join(survivor.output(skip=5)) == output[5:]
    assert b"".join(survivor.output()) == output


def test_hosts_that_ended_without_a_supervisor_are_found_with_their_status(job: Any) -> None:
    job.run(job.script("raise SystemExit(9)"))
    hosts = open_engine("docker").attach(job.name)

    assert {name: host.wait(0) for name, host in hosts.items()} == {"algo-1": ExitStatus(code=9)}


def test_a_host_that_never_ran_is_found_with_its_error(job: Any) -> None:
    job.start(job.launch("no-such-train"))

    status = open_engine("docker").attach(job.name)["algo-1"].wait(0)

    assert status is not None
    assert status.code == 127
    assert "no-such-train" in (status.error or "")


# The daemon goes away


class Wire:
    """A socket in front of the daemon's, that can be cut and mended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[socket.socket] = []
        self.mend()

    def mend(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen(64)
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def cut(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.path.unlink()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect("/var/run/docker.sock")
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def wire(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    if not Path("/var/run/docker.sock").exists():
        pytest.skip("the daemon isn't at /var/run/docker.sock")
    wire = Wire(tmp_path_factory.mktemp("w") / "s")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{wire.path}")
    yield wire
    wire.cut()


def test_a_daemon_that_comes_back_costs_no_byte_and_no_status(wire: Wire, job: Any) -> None:
    engine = open_engine("docker")
    launch = job.script(TALK + "raise SystemExit(6)")
    engine.prepare((launch,))
    host = engine.start(launch)
    output, said = host.output(), b""
    while b"half\n" not in said:
        said += next(output)

    wire.cut()
    time.sleep(0.3)
    wire.mend()
    (launch.ml / "input/go").touch()
    said += b"".join(output)

    assert sorted(int(line.split()[0]) for line in said.split(b"\n") if line[:1].isdigit()) == list(
        range(400)
    )
    assert host.wait(10) == ExitStatus(code=6)


def test_a_daemon_that_stays_away_is_told_as_vanished(
    wire: Wire, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_daemon, "RETURN_SECONDS", 0.5)
    engine = open_engine("docker")
    launch = job.script(SLEEP)
    engine.prepare((launch,))
    host = engine.start(launch)
    output = host.output()
    assert next(output)

    wire.cut()
    rest = list(output)
    status = host.wait(10)

    # The line's end may have come in a piece of its own.
    assert b"".join(rest) in (b"", b"\n")
    assert status is not None
    assert status.vanished
    assert "went away while algo-1 ran" in (status.error or "")
    with pytest.raises(EngineError, match="there is no socket at"):
        engine.close(job.name)
    wire.mend()


# Cleanliness


def test_close_leaves_nothing(job: Any, engine: DockerEngine, client: docker.DockerClient) -> None:
    before = {volume.id for volume in client.volumes.list()}
    source = job.root / "data"
    source.mkdir(parents=True)
    mount = Mount(source=source, target=PurePosixPath("/opt/ml/input/data/d"), mode="overlay")
    job.start(
        *(job.script(SLEEP, host=f"algo-{n}", hosts=("algo-1", "algo-2"), mounts=(mount,)) for n in (1, 2))
    )
    assert len(left(client, job)) == 2 + 1 + 4  # containers, network, volumes

    DockerEngine().close(job.name)

    assert left(client, job) == []
    assert {volume.id for volume in client.volumes.list()} - before == set()
    engine.close(job.name)


def test_close_takes_the_network_from_a_stranger_s_container(
    job: Any, engine: DockerEngine, client: docker.DockerClient
) -> None:
    job.start(job.script(SLEEP))
    stranger = client.containers.run(job.image, ["sleep", "600"], detach=True, network=f"harness-{job.name}")
    try:
        engine.close(job.name)
        assert left(client, job) == []
        stranger.reload()
        assert stranger.status == "running"
    finally:
        stranger.remove(force=True)


def test_two_state_directories_may_have_jobs_of_one_name(
    job: Any, engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine,) = job.start(job.script(SLEEP))
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "other"))
    other = DockerEngine()
    twin = type(job)(other, job.image, tmp_path / "twin")
    twin.name = job.name

    output, status = twin.run(twin.script("print('other')"))
    other.close(job.name)

    assert (output, status) == (b"other\n", ExitStatus(code=0))
    assert mine.wait(0) is None
    assert set(engine.attach(job.name)) == {"algo-1"}


def test_files_of_another_user_are_the_invoking_user_s_afterwards(job: Any, engine: DockerEngine) -> None:
    code = (
        "import os; os.chmod('/opt/ml/model', 0o777); os.setuid(4321)\n"
        "os.mkdir('/opt/ml/model/d'); open('/opt/ml/model/d/f', 'w').close(); os.symlink('/etc', '/opt/ml/model/l')\n"
        "os.chmod('/opt/ml/model/d', 0)"
    )
    launch = job.script(code)
    _, status = job.run(launch)
    assert status == ExitStatus(code=0)
    etc = Path("/etc").stat().st_uid

    engine.close(job.name)

    model = launch.ml / "model"
    assert {path.lstat().st_uid for path in (model / "d", model / "d/f", model / "l")} == {os.geteuid()}
    assert Path("/etc").stat().st_uid == etc


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_s_job_leaves_no_root_owned_file(job: Any, engine: DockerEngine) -> None:
    del engine
    told = as_user(54321, job)

    assert told["output"] == "0 54321\n"
    assert told["status"] == [0, None]
    assert told["owners"] == [54321]
    assert told["kept"] == [0]
    assert told["modes"] == ["0o600"]
    assert told["shared_new"] == 54321
    assert "permission denied" in told["outsider"]


def as_user(uid: int, job: Any) -> dict[str, Any]:
    """Run a job in a child process that is an ordinary user in the socket's group; what it saw."""
    import shutil
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="harness-user-", dir="/tmp"))
    shared = root / "efs"
    shared.mkdir()
    (shared / "kept").write_text("someone else's, from before")
    os.utime(shared / "kept", (1, 1))
    os.chown(root, uid, uid)
    os.chown(shared, uid, uid)
    job.root = root
    group = Path("/var/run/docker.sock").stat().st_gid
    reader, writer = os.pipe()
    time.sleep(0.3)  # `kept` is from before the job by the file system's clock too
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.environ["HARNESS_HOME"] = str(root / "home")
            os.umask(0o022)
            os.setgroups([group])
            os.setgid(uid)
            os.setuid(uid)
            told: dict[str, Any] = user_story(job, root, shared)
        except BaseException as error:
            import traceback

            told = {"error": traceback.format_exception(error)}
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    try:
        with open(reader) as pipe:  # noqa: PTH123
            told = json.load(pipe)
    finally:
        os.waitpid(child, 0)
        told_kept = [(shared / "kept").stat().st_uid]
        shutil.rmtree(root)
    assert "error" not in told, "".join(told["error"])
    return {**told, "kept": told_kept}


def user_story(job: Any, root: Path, shared: Path) -> dict[str, Any]:
    """The child's part: one job whose root writes everywhere it can."""
    engine = DockerEngine()
    job.engine = engine
    source = root / "data"
    source.mkdir()
    (source / "old").write_text("x")
    mounts = (
        Mount(source=source, target=PurePosixPath("/opt/ml/input/data/d"), mode="overlay"),
        Mount(source=shared, target=PurePosixPath("/opt/ml/input/data/efs"), mode="rw"),
    )
    code = (
        "import os, pathlib\n"
        "ml = pathlib.Path('/opt/ml')\n"
        "(ml / 'model/secret').mkdir(mode=0o700)\n"
        "(ml / 'model/secret/w').write_text('w'); os.chmod(ml / 'model/secret/w', 0o600)\n"
        "(ml / 'input/data/d/old').write_text('y')\n"
        "(ml / 'input/data/efs/new').write_text('n')\n"
        "os.symlink('/etc/passwd', ml / 'input/data/efs/link')\n"
        "pathlib.Path('/tmp/t').write_text('t')\n"
        "print(os.getuid(), os.stat(ml).st_uid)\n"
    )
    launch = job.script(code, mounts=mounts)
    output, status = job.run(launch)
    engine.close(job.name)
    engine.close(job.name)
    own = [path for top in (launch.ml, launch.scratch) for path in (top, *top.rglob("*"))]
    told = {
        "output": output.decode(),
        "status": [status.code, status.error],
        "owners": sorted({path.lstat().st_uid for path in own}),
        "modes": [oct((launch.ml / "model/secret/w").stat().st_mode & 0o777)],
        "shared_new": (shared / "new").lstat().st_uid,
    }
    assert (shared / "link").lstat().st_uid == os.geteuid()
    assert (source / "old").read_text() == "x"
    return {**told, "outsider": outsider()}


def outsider() -> str:
    """What a user who isn't in the socket's group is told."""
    socket = Path(os.environ["HARNESS_HOME"]).parent / "locked"
    socket.mkdir()
    (socket / "s").touch(mode=0)
    os.environ["DOCKER_HOST"] = f"unix://{socket}/s"
    try:
        DockerEngine()
    except EngineError as error:
        return str(error)
    return "it was let in"


# Errors


def test_a_missing_image_says_what_to_do(job: Any, client: docker.DockerClient) -> None:
    with pytest.raises(EngineError, match="isn't on this machine: build it with `harness image build`"):
        job.start(job.script("", image="harness-no-such-image:1"))

    assert client.containers.list(all=True, filters={"label": f"harness.job={job.name}"}) == []


def test_a_missing_mount_is_named(job: Any) -> None:
    mount = Mount(source=Path("/no/such/data"), target=PurePosixPath("/opt/ml/input/data/d"), mode="ro")

    with pytest.raises(EngineError, match=r"/no/such/data.*doesn't see this directory"):
        job.start(job.script("", mounts=(mount,)))


def test_starting_a_running_host_again_is_refused(job: Any) -> None:
    launch = job.script(SLEEP)
    job.start(launch)

    with pytest.raises(EngineError, match="runs already"):
        job.engine.start(launch)


def test_starting_a_host_without_prepare_is_refused(job: Any) -> None:
    with pytest.raises(EngineError, match="no network"):
        job.engine.start(job.script(""))


def test_channels_become_read_only_where_overlays_do_not_work(
    job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    source = job.root / "data"
    source.mkdir(parents=True)
    (source / "a").touch()
    # The kernel refuses an upper directory inside the lower one's overlay; here: one that isn't there.
    mount = Mount(
        source=source,
        target=PurePosixPath("/opt/ml/input/data/d"),
        mode="overlay",
        scratch=Path("/dev/shm") / job.name,
    )
    code = (
        "import os; print(os.listdir('/opt/ml/input/data/d'))\n"
        "try: open('/opt/ml/input/data/d/b', 'w')\n"
        "except OSError as error: print(error.errno)\n"
    )
    launch = job.script(code, mounts=(mount,))
    (launch.scratch).mkdir(parents=True, exist_ok=True)
    from harness.engines.docker import _launch

    original = _launch._escape
    _launch._escape = lambda path, colon=False: original(Path("/no/such") / path.name, colon=colon)
    try:
        output, status = job.run(launch)
    finally:
        _launch._escape = original
        import shutil

        shutil.rmtree(Path("/dev/shm") / job.name, ignore_errors=True)

    assert (output, status) == (b"['a']\n30\n", ExitStatus(code=0))
    assert "read-only: this system can't overlay them" in caplog.text


def test_opening_the_engine_says_what_is_wrong_with_the_socket(
    engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del engine
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for name, words in (("none", "there is no socket at"), ("dead", "nobody listens at")):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / name}")
        with pytest.raises(EngineError, match=f"no Docker Engine: {words}.*--engine sandbox"):
            DockerEngine()


def test_an_old_daemon_is_refused(
    engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del engine
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True)\n"
        "while True:\n    c, _ = s.accept()\n"
        "    if c.recv(9999): c.sendall(b'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nApi-Version: 1.40\\r\\n'\n"
        "                               b'Server: Docker/19.03.15 (linux)\\r\\nContent-Length: 2\\r\\n\\r\\nOK')\n"
        "    c.close()"
    )
    path = tmp_path / "old"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        try:
            with pytest.raises(
                EngineError, match=r"19\.03\.15 \(linux\), with API 1\.40; Docker Engine 20\.10"
            ):
                DockerEngine()
        finally:
            daemon.kill()


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (
            "could not find an available, non-overlapping IPv4 address pool among the defaults",
            "network prune",
        ),
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', "NVIDIA Container Toolkit"),
        ("write /var/lib/docker/x: no space left on device", "docker system df"),
    ],
)
def test_known_causes_come_with_advice(engine: DockerEngine, text: str, advice: str) -> None:
    from docker.errors import APIError

    with pytest.raises(EngineError, match=advice), engine._daemon.doing("start algo-1"):
        raise APIError("500", explanation=text)


def test_labels_of_all_hosts_make_the_claim(engine: DockerEngine) -> None:
    del engine
    of_job = {"harness.job": "j", "harness.scope": "s"}
    first = {"harness.own": '["/b"]', "harness.shared": '["/s"]', "harness.since": "20", "harness.image": "i"}
    second = {"harness.own": '["/a", "/b"]', "harness.since": "10", "harness.image": "i"}

    claim = _claim([of_job, {**of_job, **first}, {**of_job, **second}])

    assert claim.own == (Path("/a"), Path("/b"))
    assert (claim.shared, claim.since, claim.images) == ((Path("/s"),), 10.0, ("i",))
    assert claim.labels == of_job


def test_a_helper_that_was_left_is_no_host_and_goes_with_close(
    job: Any, engine: DockerEngine, client: docker.DockerClient
) -> None:
    job.start(job.script(""))
    labels = {"harness.job": job.name, "harness.scope": engine._scope}
    client.containers.create(job.image, "true", labels=labels)

    assert set(engine.attach(job.name)) == {"algo-1"}
    engine.close(job.name)

    assert left(client, job) == []

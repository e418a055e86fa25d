"""What the machine has: limits, GPUs, namespaces, interpreter, network, and what doctor says of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from harness import machine as room
from harness.engines import images
from harness.errors import DiskError, EngineError
from harness.home import Home
from harness.machine import Docker, Machine, Sandbox, _gpus, _limits, _machine, _namespaces, _python, checks
from harness.machine._python import Cuda
from harness.model import Gpu
from tests.conftest import gpu_unavailable

GIB = 1024**3


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# ------------------------------------------------------------------------------------------ cores and memory


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, None),
        (
            {
                "proc/self/cgroup": "0::/jobs/one\n",
                "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
                "sys/fs/cgroup/jobs/one/memory.max": "max\n",
                "sys/fs/cgroup/jobs/memory.max": "536870912\n",
            },
            512 * 1024**2,
        ),
        (
            {  # version 1, in a container: the group's own path isn't mounted, the root is our group
                "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
            },
            256 * 1024**2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
        ),
    ],
    ids=["none", "v2 above", "v1 container", "v1 unlimited"],
)
def test_memory_counts_control_groups(tmp_path: Path, files: dict[str, str], memory: int | None) -> None:
    assert _limits.memory_bytes(tree(tmp_path, files)) == min(physical(), memory or physical())


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.controllers": "", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.controllers": "", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "1:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "30000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
    ],
    ids=["none", "v2 unlimited", "v2 half a core", "v1"],
)  # fmt: skip
def test_cores_count_control_groups(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    assert _limits.cores(tree(tmp_path, files)) == (cores or len(os.sched_getaffinity(0)))


# ----------------------------------------------------------------------------------------------------- GPUs


def gpu(index: int) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}f3e", name="NVIDIA A100", memory_bytes=40 * GIB)


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("1,7,0", [1]),  # CUDA: the first that is none ends the list
        ("GPU-2f,GPU-0f", [2, 0]),
        ("GPU-", []),  # ambiguous
        ("1,1", [1]),
    ],
)
def test_cuda_visible_devices_is_respected(setting: str | None, indices: list[int]) -> None:
    found = _gpus.visible((gpu(0), gpu(1), gpu(2)), setting)
    assert [each.index for each in found] == indices


@pytest.mark.gpu
def test_the_gpus_of_this_machine() -> None:
    found, reason = _gpus.probe({})
    assert found
    assert reason == ""
    for index, each in enumerate(found):
        assert each.index == index
        assert each.uuid.startswith("GPU-")
        assert each.memory_bytes > GIB
    assert _gpus.probe({"CUDA_VISIBLE_DEVICES": ""}) == ((), "CUDA_VISIBLE_DEVICES hides every GPU")


# ----------------------------------------------------------------------------------------------- namespaces


def test_the_sandbox_engine_goes_by_the_trial() -> None:
    from harness.engines.sandbox import sandbox_mode

    found = _namespaces.Trial().finish()
    assert found == _namespaces.sandbox()
    assert bool(found.reason) != found.ok
    mode = sandbox_mode()
    assert (mode.name == "namespaces", mode.reason, mode.user_namespace) == (
        found.ok,
        found.reason,
        found.user_namespace,
    )


def test_a_probe_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with room.Probe(Home(tmp_path)):
        pass
    assert set(psutil.Process().children(recursive=True)) <= before


def test_the_trial_leaves_no_mount_behind() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    _namespaces.Trial().finish()
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize(
    ("files", "setting"),
    [
        ({"sys/kernel/unprivileged_userns_clone": "0\n"}, "kernel.unprivileged_userns_clone=1"),
        ({"sys/user/max_user_namespaces": "0\n"}, "user.max_user_namespaces=15000"),
        (
            {
                "sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
                "sys/user/max_user_namespaces": "9\n",
            },
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"self/status": "Name:\tpython\nSeccomp:\t2\n"}, "--security-opt seccomp=unconfined"),
    ],
)
def test_a_refusal_names_the_setting(tmp_path: Path, files: dict[str, str], setting: str) -> None:
    assert setting in _namespaces.explain("user", 1, tree(tmp_path, files))


@pytest.mark.docker
def test_in_an_ordinary_container_namespaces_are_refused_with_the_way_out(docker_image: str) -> None:
    import docker

    source = Path(room.__file__).parents[1]
    code = (
        "import sys; sys.path.insert(0, '/src')\n"
        "from harness.machine import Machine\nfrom harness.home import Home\nfrom pathlib import Path\n"
        "m = Machine.probe(Home(Path('/tmp/h')))\nprint(m.sandbox.ok, m.sandbox.reason, m.memory_bytes, m.cpus)"
    )
    client = docker.from_env()
    try:
        said = client.containers.run(
            docker_image,
            ["python3", "-c", code],
            entrypoint="",
            remove=True,
            mem_limit="512m",
            nano_cpus=1_000_000_000,
            network_mode="none",
            volumes={str(source): {"bind": "/src/harness", "mode": "ro"}},
        ).decode()
    finally:
        client.close()
    assert said.startswith("False ")
    assert "seccomp=unconfined" in said
    assert said.split()[-2:] == [str(512 * 1024**2), "1"]


# ---------------------------------------------------------------------------------------------- interpreter


def test_our_own_python_and_its_pytorch_without_importing_it() -> None:
    code = (
        "import sys; from harness.machine import _python; p = _python.inspect(); "
        "print(p.torch, p.version, p.executable == sys.executable, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    torch, version, same, imported = said.split()
    assert (same, imported) == ("True", "False")
    assert version == ".".join(map(str, sys.version_info[:3]))
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        installed = "None"
    assert torch.split("+")[0] == installed.split("+")[0]


def test_another_interpreter_is_asked_and_keeps_its_name() -> None:
    assert _python.inspect(sys.executable) == _python.inspect()


def interpreter(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"there is no interpreter .*\[local\] python"):
        _python.inspect(str(tmp_path / "python9"))


def test_a_python_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no Python that runs .*no such thing"):
        _python.inspect(interpreter(tmp_path / "python", "echo no such thing >&2; exit 3"))


def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    answer = '{"version": "3.6.9", "torch": null, "torchvision": null}'
    with pytest.raises(EngineError, match=r"Python 3\.6\.9; scripts need 3\.8"):
        _python.inspect(interpreter(tmp_path / "python", f"echo '{answer}'"))


@pytest.mark.parametrize(
    ("text", "torch", "cuda"),
    [
        ("__version__ = '2.6.0+cpu'\ncuda: Optional[str] = None\n", "2.6.0+cpu", None),
        ("__version__ = '2.6.0+cu124'\ndebug = False\ncuda: Optional[str] = '12.4'\n", "2.6.0+cu124", "12.4"),
        ("__version__ = '1.13.0a0'\ncuda = None\n", "1.13.0a0", None),
        ("", "unknown", None),
    ],
)
def test_version_files_of_pytorch(tmp_path: Path, text: str, torch: str, cuda: str | None) -> None:
    (tmp_path / "version.py").write_text(text)
    assert _python._versions(str(tmp_path / "__init__.py")) == (torch, cuda)


# -------------------------------------------------------------------------------------------------- network

ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize(
    ("routes", "routes_6", "interface"),
    [
        ("", "", "lo"),
        ("docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n", "", "lo"),
        (
            (
                "wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
                "eno1\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
            ),
            "",
            "eno1",
        ),
        ("", f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 00000400 00000001 00000000 00450003 ens5\n", "ens5"),
    ],
    ids=["none", "no default", "lowest metric", "IPv6 only"],
)
def test_the_interface_of_the_default_route(
    tmp_path: Path, routes: str, routes_6: str, interface: str
) -> None:
    (tmp_path / "4").write_text(ROUTES + routes)
    (tmp_path / "6").write_text(routes_6)
    assert _machine.default_interface(tmp_path / "4", tmp_path / "6") == interface


# ---------------------------------------------------------------------------------------------------- whole


def test_a_probe_changes_nothing_and_tells_the_truth(tmp_path: Path) -> None:
    found = Machine.probe(Home(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert 0 < found.memory_bytes <= physical()
    assert bool(found.gpus) != bool(found.gpu_reason)
    assert Path("/sys/class/net", found.interface).exists()
    assert found.disk_free(tmp_path / "not" / "there" / "yet") > 0
    assert bool(found.docker) != bool(found.docker.reason)


def test_probing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from harness.home import Home; from harness.machine import Machine; "
        "Machine.probe(Home(Path('/nowhere'))); "
        "print(*{'docker', 'psutil', 'botocore', 'rich', 'http.client', 'importlib.metadata'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == []


def test_free_disk_of_a_place_that_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(path: Path) -> Any:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(_machine.shutil, "disk_usage", refused)
    found = Machine.probe(Home(tmp_path))
    with pytest.raises(DiskError, match="Input/output error"):
        found.disk_free(tmp_path)


# --------------------------------------------------------------------------------------------------- doctor


@pytest.fixture
def box(tmp_path: Path) -> Callable[..., Machine]:
    def make(**changes: Any) -> Machine:
        values: dict[str, Any] = {
            "home": Home(tmp_path / "home"),
            "cpus": 8,
            "memory_bytes": 32 * GIB,
            "gpus": (gpu(0),),
            "docker": Docker(version=None, reason="there is no socket at unix:///x: install Docker"),
            "sandbox": Sandbox(ok=True),
            "interface": "eth0",
        }
        return Machine(**{**values, **changes})

    return make


def by_name(found: Machine) -> dict[str, room.Check]:
    return {check.name: check for check in checks(found)}


def test_doctor_names_what_is_missing_and_what_to_do(box: Callable[..., Machine]) -> None:
    sandbox = Sandbox(ok=False, reason="user.max_user_namespaces is 0: `sudo sysctl -w user…`")
    found = by_name(box(gpus=(), gpu_reason="there is no NVIDIA driver on this machine", sandbox=sandbox))
    assert (found["docker"].status, found["docker"].advice) == ("warn", "install Docker")
    assert found["docker"].detail == "there is no socket at unix:///x"
    assert found["sandbox"].status == "warn"
    assert "/opt/ml" in found["sandbox"].detail
    assert found["sandbox"].advice == "`sudo sysctl -w user…`"
    assert found["gpus"].detail == "there is no NVIDIA driver on this machine: jobs run on the CPU"
    assert "image" not in found  # without a daemon nobody knows


def test_doctor_is_content_with_a_good_machine(box: Callable[..., Machine]) -> None:
    found = by_name(box())
    assert found["sandbox"].status == found["state"].status == found["gpus"].status == "ok"
    assert "NVIDIA A100 (40 GiB)" in found["gpus"].detail


@pytest.mark.parametrize(
    ("cuda", "status", "words"),
    [
        (Cuda(nccl="2.21.5", problem=""), "ok", "PyTorch can use the GPUs; NCCL 2.21.5"),
        (Cuda(nccl=None, problem=""), "ok", "gloo"),
        (
            Cuda(nccl="2.21.5", problem="The NVIDIA driver is too old"),
            "warn",
            "can't use the GPUs: The NVIDIA",
        ),
        (EngineError("PyTorch of x can't be imported: no"), "warn", "can't be imported: no"),
    ],
)
def test_doctor_tries_pytorch_on_the_gpus(
    box: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    cuda: Cuda | EngineError,
    status: str,
    words: str,
) -> None:
    def tried(executable: str) -> Cuda:
        assert executable == "/usr/bin/mine"
        if isinstance(cuda, EngineError):
            raise cuda
        return cuda

    mine = room.Python(
        executable="/usr/bin/mine", version="3.11.2", torch="2.6.0+cu124", cuda="12.4", torchvision=None
    )
    monkeypatch.setattr(_python, "try_cuda", tried)
    monkeypatch.setattr(_gpus, "driver", lambda: "driver 550.54.15 for CUDA up to 12.4")
    found = by_name(box(_pythons={None: mine}))
    assert found["gpus"].detail.endswith("(40 GiB); driver 550.54.15 for CUDA up to 12.4")
    assert found["cuda"].status == status
    assert words in found["cuda"].detail
    assert bool(found["cuda"].advice) == (status == "warn")


def test_the_driver_is_told_as_the_library_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: open_.append(1))
    monkeypatch.setattr(pynvml, "nvmlShutdown", open_.pop)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: b"550.54.15")
    monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", lambda: 12040)
    assert _gpus.driver() == "driver 550.54.15 for CUDA up to 12.4"

    def refuse() -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", refuse)
    assert _gpus.driver() == ""
    assert open_ == []


def test_pytorch_is_tried_in_a_process_of_its_own(tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no PyTorch here")
    found = _python.try_cuda(sys.executable)
    if gpu_unavailable():
        assert found.problem
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named torch' >&2\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(EngineError, match="can't be imported: ModuleNotFoundError: No module named torch"):
        _python.try_cuda(str(bare))


def test_doctor_fails_only_for_what_stops_everything(box: Callable[..., Machine], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    found = by_name(box())
    assert found["state"].status == "fail"
    assert "HARNESS_HOME" in found["state"].advice
    assert [name for name, check in found.items() if check.status == "fail"] == ["state"]


def test_the_image_is_the_one_that_image_build_makes() -> None:
    from harness.machine._checks import IMAGE
    from harness.plan._image import BUILT_IN

    assert IMAGE == BUILT_IN == images.DEFAULT_TAG


def test_a_probe_takes_little_time_even_on_a_busy_machine() -> None:
    """Not a benchmark: a guard against a second of imports or timeouts."""
    started = time.process_time()
    Machine.probe(Home(Path("/nowhere")))
    assert time.process_time() - started < 0.25

"""Jobs on this machine's GPUs, in the sandbox: skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from harness.home import Home
from harness.lifecycle import end_idle, warm_sets
from harness.machine import Machine, checks
from harness.machine._python import try_cuda
from harness.model import Gpu
from harness.spec import load
from harness.targets import local
from tests.jobs.conftest import Job, Submit

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ONE_GPU = "ml.g5.xlarge"
"""A host gets as many GPUs as one of its type has in the cloud."""
LOOK = """
import json, os, torch

found = {"touched": torch.cuda.is_initialized(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
found["count"] = torch.cuda.device_count()
found["sum"] = torch.ones(1000, device="cuda").sum().item()
print("FOUND", json.dumps(found), flush=True)
"""
STAY = LOOK + "import time\ntime.sleep(int(os.environ['SECONDS']))\n"


@pytest.fixture(autouse=True)
def pytorch() -> None:
    """One that fits the driver: without it no script could use a GPU, whatever we do."""
    if problem := try_cuda(sys.executable).problem:
        pytest.skip(f"PyTorch can't use the GPU: {problem}")


@pytest.fixture
def gpus(home: Path) -> tuple[Gpu, ...]:
    return Machine.probe(Home(home)).gpus


@pytest.fixture
def warm_home(home: Path) -> Iterator[Home]:
    """Where no warm host outlives the test."""
    yield Home(home)
    end_idle(Home(home), "the test is over")


def look(job: Job) -> dict[str, Any]:
    """What `LOOK` printed."""
    assert job.wait().status == "Completed", job.log().decode(errors="replace")
    (line,) = (line for line in job.log().decode().splitlines() if line.startswith("FOUND "))
    told: dict[str, Any] = json.loads(line.removeprefix("FOUND "))
    return told


def with_cuda(processes: list[psutil.Process]) -> list[str]:
    """Those that have a CUDA context, and with it memory of a GPU: CUDA needs this node, NVML doesn't."""
    found = []
    for process in processes:
        try:
            opened = [os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]  # noqa: PTH115
        except OSError:
            continue  # it has ended meanwhile
        if "/dev/nvidia-uvm" in opened:
            found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


def used_mib(gpu: Gpu) -> int:
    """Memory in use on it, by whomever."""
    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)).used >> 20)
    finally:
        pynvml.nvmlShutdown()


def test_a_script_gets_a_gpu_of_its_own(submit: Submit, gpus: tuple[Gpu, ...]) -> None:
    job = submit(LOOK, engine="sandbox", instance_type=ONE_GPU)
    told = look(job)
    (index,) = job.record.hosts[0].gpus
    assert told == {
        "touched": False,
        "visible": next(gpu.uuid for gpu in gpus if gpu.index == index),
        "count": 1,
        "sum": 1000,
    }


def test_a_job_without_gpus_sees_none(submit: Submit) -> None:
    script = "import torch\nassert torch.cuda.device_count() == 0, torch.cuda.device_count()\n"
    assert submit(script, engine="sandbox").wait().status == "Completed"


def test_a_warm_host_touches_no_gpu_between_two_runs(
    write_spec: Callable[..., Path], warm_home: Home, gpus: tuple[Gpu, ...]
) -> None:
    spec = write_spec(
        LOOK,
        engine="sandbox",
        instance_type=ONE_GPU,
        local={"warm": True, "gpus": str(gpus[0].index)},
    )
    before = used_mib(gpus[0])
    runs = []
    for number in range(3):
        job = Job(warm_home, local.submit(load(spec, job_name=f"run-{number}"), home=warm_home).name)
        runs.append(look(job))
        warm = job.record.result["warm"]
        assert warm["kept"], warm
        assert warm["reused"] == (number > 0), warm
        (kept,) = warm_sets(warm_home)
        assert "torch" in kept["preloaded"]
        keeper = psutil.Process(owner(job))
        assert with_cuda([keeper, *keeper.children(recursive=True)]) == []
        # What a context takes is hundreds of MiB; others may use the GPU a little meanwhile.
        assert used_mib(gpus[0]) < before + 100
    assert runs[0] == runs[1] == runs[2]


def owner(job: Job) -> int:
    """The process that ran the job, and keeps its hosts."""
    return int((job.home.job(job.name) / "supervisor.lock").read_text())


def test_a_warm_host_is_gone_from_the_gpu_in_the_middle_of_a_run(
    submit: Submit, warm_home: Home, gpus: tuple[Gpu, ...]
) -> None:
    """A run that is killed leaves no context either."""
    warm = {"warm": True, "gpus": str(gpus[0].index), "stop_grace": 1}
    job = submit(STAY, engine="sandbox", instance_type=ONE_GPU, environment={"SECONDS": "600"}, local=warm)
    job.until_log(b"FOUND")
    keeper = psutil.Process(owner(job))
    assert with_cuda(keeper.children(recursive=True))
    local.stop(job.name, home=warm_home)
    assert job.wait().status == "Stopped"
    assert with_cuda([keeper, *keeper.children(recursive=True)] if keeper.is_running() else []) == []


def test_two_jobs_at_once_share_no_gpu(submit: Submit, gpus: tuple[Gpu, ...]) -> None:
    """With two GPUs side by side; with one, the second waits for the first."""
    jobs = [
        submit(STAY, engine="sandbox", instance_type=ONE_GPU, environment={"SECONDS": "5"}) for _ in range(2)
    ]
    jobs[0].until_log(b"FOUND")
    if len(gpus) > 1:
        jobs[1].until_log(b"FOUND")
        assert jobs[0].record.status == "InProgress"
        assert look(jobs[0])["visible"] != look(jobs[1])["visible"]
        return
    jobs[1].until(lambda: jobs[1].record.secondary_status == "Pending")
    assert look(jobs[0])["visible"] == look(jobs[1])["visible"]
    assert (jobs[1].record.training_start or 0) >= (jobs[0].record.training_end or 0) > 0


def test_the_hosts_of_a_job_share_no_gpu(submit: Submit, gpus: tuple[Gpu, ...]) -> None:
    if len(gpus) < 2:
        pytest.skip("one GPU here, and two are needed")
    job = submit(LOOK, engine="sandbox", instance_type=ONE_GPU, instance_count=2)
    assert job.wait().status == "Completed"
    visible = [
        json.loads(line.removeprefix("FOUND "))["visible"]
        for host in ("algo-1", "algo-2")
        for line in job.log(host).decode().splitlines()
        if line.startswith("FOUND ")
    ]
    assert len(set(visible)) == 2


def test_samples_tell_what_the_script_does_on_the_gpu(submit: Submit) -> None:
    script = """
    import time, torch
    square = torch.ones(4096, 4096, device="cuda")
    end = time.monotonic() + 8
    while time.monotonic() < end:
        square = square @ square / 4096
        torch.cuda.synchronize()
    """
    job = submit(script, engine="sandbox", instance_type=ONE_GPU)
    assert job.wait().status == "Completed", job.log().decode()
    sampled = job.metrics(sampled=True)
    assert 50 < max(sampled["GPUUtilization"]) <= 100
    assert 0 < max(sampled["GPUMemoryUtilization"]) <= 100


def test_doctor_tells_driver_cuda_and_nccl(home: Path) -> None:
    found = {check.name: check for check in checks(Machine.probe(Home(home)))}
    assert "driver" in found["gpus"].detail
    assert "CUDA up to" in found["gpus"].detail
    assert found["cuda"].status == "ok"
    assert "NCCL" in found["cuda"].detail

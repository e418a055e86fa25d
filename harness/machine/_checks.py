"""What `harness doctor` says of this machine."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from typing import Literal

from harness._values import dataclass
from harness.errors import HarnessError
from harness.machine._machine import Machine

__all__ = ["IMAGE", "Check", "checks"]

IMAGE = "harness-pytorch"
"""What `harness image build` makes when nothing else is said; a test keeps it equal."""

_GIB = 1024**3
_LOW_DISK = 5 * _GIB


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of `harness doctor`."""

    name: str
    status: Literal["ok", "warn", "fail"]
    """warn: works, but less than it could. fail: nothing, or not what was set, can run."""
    detail: str
    advice: str = ""
    """What to do; empty when there is nothing to do."""


def checks(machine: Machine) -> tuple[Check, ...]:
    """Everything that a job on this machine depends on, most basic first."""
    return tuple(_checks(machine))


def _checks(machine: Machine) -> Iterator[Check]:
    yield Check(
        name="machine",
        status="ok",
        detail=f"{platform.system()} {platform.release()}, {machine.cpus} cores, "
        f"{machine.memory_bytes / _GIB:.1f} GiB memory, network interface {machine.interface}",
    )
    yield _python(machine)
    yield _home(machine)
    yield _disk(machine)
    yield _docker(machine)
    if machine.docker:
        yield _image(machine)
    yield _sandbox(machine)
    yield _gpus(machine)
    if machine.gpus and machine.python().cuda:
        yield _cuda(machine)
    yield _sdk()


def _python(machine: Machine) -> Check:
    python = machine.python()
    detail = f"Python {python.version} at {python.executable}"
    if python.torch is None:
        return Check(
            name="python",
            status="warn",
            detail=f"{detail}, without PyTorch: the sandbox has none for a script",
            advice="install torch into it, or name another interpreter in [local] python",
        )
    built = f"CUDA {python.cuda}" if python.cuda else "a CPU build"
    if machine.gpus and python.cuda is None:
        return Check(
            name="python",
            status="warn",
            detail=f"{detail}, PyTorch {python.torch}, {built}: the sandbox can't use the GPUs",
            advice="install a CUDA build of torch",
        )
    return Check(name="python", status="ok", detail=f"{detail}, PyTorch {python.torch} ({built})")


def _home(machine: Machine) -> Check:
    try:
        machine.home.ensure()
    except HarnessError as error:
        return Check(
            name="state", status="fail", detail=str(error), advice="set HARNESS_HOME to a directory of yours"
        )
    return Check(name="state", status="ok", detail=str(machine.home.root))


def _disk(machine: Machine) -> Check:
    try:
        free = machine.disk_free(machine.home.root)
    except HarnessError as error:
        return Check(name="disk", status="fail", detail=str(error))
    detail = f"{free / _GIB:.1f} GiB free for data, checkpoints and artifacts"
    if free < _LOW_DISK:
        return Check(
            name="disk",
            status="warn",
            detail=detail,
            advice="free some space (`harness gc` removes ended jobs), or set HARNESS_HOME to another disk",
        )
    return Check(name="disk", status="ok", detail=detail)


def _docker(machine: Machine) -> Check:
    docker = machine.docker
    if docker:
        return Check(name="docker", status="ok", detail=f"{docker.title} at {docker.address}")
    why, _, advice = docker.reason.partition(": ")
    other = "the sandbox engine needs none" if machine.sandbox else ""
    return Check(name="docker", status="warn", detail=why, advice="; ".join(filter(None, (advice, other))))


def _image(machine: Machine) -> Check:
    try:
        image = machine.image(IMAGE)
    except HarnessError as error:
        return Check(name="image", status="warn", detail=str(error))
    if image is None:
        return Check(
            name="image",
            status="warn",
            detail=f"{IMAGE} isn't here, so PyTorch jobs don't use Docker",
            advice="`harness image build`",
        )
    torch = image.labels.get("harness.torch")
    made = (
        f"PyTorch {torch}, Python {image.labels.get('harness.python')}"
        if torch
        else "not made by the harness"
    )
    return Check(name="image", status="ok", detail=f"{IMAGE}: {made}, {image.size_bytes / 1e9:.1f} GB")


def _sandbox(machine: Machine) -> Check:
    if machine.sandbox:
        return Check(name="sandbox", status="ok", detail="namespaces work for this user")
    why, _, advice = machine.sandbox.reason.partition(": ")
    return Check(
        name="sandbox",
        status="warn",
        detail=f"{why}; without namespaces a script's hard-coded /opt/ml paths don't work",
        advice=advice,
    )


def _gpus(machine: Machine) -> Check:
    if not machine.gpus:
        return Check(name="gpus", status="warn", detail=f"{machine.gpu_reason}: jobs run on the CPU")
    names = ", ".join(f"{gpu.name} ({gpu.memory_bytes / _GIB:.0f} GiB)" for gpu in machine.gpus)
    detail = "; ".join(filter(None, (f"{len(machine.gpus)}: {names}", machine.gpu_driver)))
    return Check(name="gpus", status="ok", detail=detail)


def _cuda(machine: Machine) -> Check:
    """Tried, not guessed: whether a PyTorch fits a driver depends on both, and on the GPU."""
    try:
        found = machine.cuda()
    except HarnessError as error:
        return Check(name="cuda", status="warn", detail=str(error), advice="install torch again")
    nccl = f"NCCL {found.nccl}" if found.nccl else "no NCCL: ranks meet through gloo"
    if found.problem:
        return Check(
            name="cuda",
            status="warn",
            detail=f"PyTorch can't use the GPUs: {found.problem} ({nccl})",
            advice="install a build of torch for the CUDA of the driver, or a newer driver",
        )
    return Check(name="cuda", status="ok", detail=f"PyTorch can use the GPUs; {nccl}")


def _sdk() -> Check:
    if importlib.util.find_spec("sagemaker") is None:
        return Check(
            name="sagemaker sdk",
            status="warn",
            detail="not installed: framework_version can't be turned into an image",
            advice=f"`{sys.executable} -m pip install 'sagemaker-harness[sagemaker]'`, or write image_uri",
        )
    return Check(name="sagemaker sdk", status="ok", detail="installed: framework_version becomes AWS's image")

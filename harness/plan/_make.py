"""The plan of one request on one machine."""

from __future__ import annotations

from typing import Final

from harness import ledger
from harness.errors import DiskError, MachineError
from harness.machine import Machine, Python
from harness.model import FieldTreatment, HostPlan, Plan, Spec, Treatment
from harness.plan import _engine, _file_systems, _image, _launcher
from harness.plan._gpus import allowed_gpus, share
from harness.plan._hosts import cloud_hosts
from harness.plan._notes import Facts, notes
from harness.plan._sizes import parse, show

__all__ = ["LEAST_DISK", "make"]

LEAST_DISK: Final = 100 * 1024**2
"""Bytes: with less than this free even an empty job's log and records may not fit."""


def make(spec: Spec, machine: Machine, *, engine: str | None = None) -> Plan:
    """How `machine` runs `spec`; `engine` is used in place of the spec's `[local] engine`.

    Raises:
        EngineError: the engine that was asked for can't run it, or none can.
        GpuError: `[local] gpus` insists on GPUs that aren't there.
        DiskError: the disk of $HARNESS_HOME is all but full.
        MachineError: the request has something that this version can't do, or a file system of it has no
            directory here.
        SpecError: an unknown instance type or engine, or a size that is none.
    """
    cloud = cloud_hosts(spec.request)
    chosen = _engine.choose(spec, machine, engine or spec.local.engine)
    if problem := _file_systems.missing(spec):
        raise MachineError(problem)
    free = _disk(machine)
    gpus = allowed_gpus(machine, spec.local.gpus)
    shares = share(len(gpus), tuple(host.instance.gpus for host in cloud))
    hosts = tuple(
        HostPlan(
            name=host.name,
            instance_type=host.instance.name,
            instance_group=host.group,
            cloud_gpus=host.instance.gpus,
            gpus=own,
            processes=_launcher.processes(spec.request, spec.local.ranks, host, own),
        )
        for host, own in zip(cloud, shares, strict=True)
    )
    python = machine.python(spec.local.python) if chosen.name == "sandbox" else None
    asked = spec.request["AlgorithmSpecification"].get("TrainingImage")
    image_note = _note(chosen, python, asked)
    world_size = _launcher.ranks(spec.request, hosts)
    cloud_world_size = _launcher.cloud_ranks(spec.request, cloud)
    return Plan(
        engine=chosen.name,
        engine_reason=chosen.reason,
        image=None if chosen.image is None else chosen.image.name,
        image_asked=asked,
        image_note=image_note,
        hosts=hosts,
        network_interface=_interface(spec, machine, chosen.name),
        shm_bytes=_shm(spec, machine, len(hosts)),
        memory_bytes=None if spec.local.memory is None else parse(spec.local.memory, "[local] memory"),
        cpus=machine.cpus,
        disk_free_bytes=free,
        python=None if python is None else python.executable,
        world_size=world_size,
        cloud_world_size=cloud_world_size,
        treatments=(*_layout(chosen.name, machine), *ledger.treat(spec, chosen.name)),
        notes=notes(
            Facts(
                spec=spec,
                machine=machine,
                engine=chosen.name,
                cloud=cloud,
                hosts=hosts,
                gpus_allowed=len(gpus),
                world_size=world_size,
                cloud_world_size=cloud_world_size,
                disk_free_bytes=free,
                python=python,
                image=chosen.image,
                image_note=image_note,
            )
        ),
    )


def _note(chosen: _engine.Engine, python: Python | None, asked: str | None) -> str:
    if python is not None:
        return _image.compare_python(asked, python)
    return "" if chosen.image is None else _image.compare(chosen.image)


def _disk(machine: Machine) -> int:
    root = machine.home.root
    free = machine.disk_free(root)
    if free < LEAST_DISK:
        raise DiskError(
            f"only {show(free)} are free at {root}, where jobs are kept: free some space (`harness gc` removes "
            "ended jobs), or set HARNESS_HOME to another disk"
        )
    return free


def _shm(spec: Spec, machine: Machine, hosts: int) -> int:
    """/dev/shm of each host: half of the memory among all, unless it is given (contract: B14)."""
    if spec.local.shm_size is not None:
        return parse(spec.local.shm_size, "[local] shm_size")
    return machine.memory_bytes // 2 // hosts


def _interface(spec: Spec, machine: Machine, engine: str) -> str:
    """The name of the network interface that hosts are told (contract: C14, H27).

    In containers, and in an isolated sandbox, it is eth0; other sandbox hosts share this machine's network.
    """
    if engine == "sandbox" and not spec.request.get("EnableNetworkIsolation"):
        return machine.interface
    return "eth0"


def _layout(engine: str, machine: Machine) -> tuple[FieldTreatment, ...]:
    """The line for what is no field: /opt/ml itself, when the sandbox can't make it (contract: B21)."""
    if engine != "sandbox" or machine.sandbox:
        return ()
    return (
        FieldTreatment(
            path="/opt/ml",
            value=None,
            treatment=Treatment.CLOUD_ONLY,
            reason=f"SAGEMAKER_BASE_DIR stands in for it, so hard-coded paths don't work: {machine.sandbox.reason}.",
            visible=True,
        ),
    )

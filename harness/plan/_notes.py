"""What the user should know of a plan, one sentence each, most important first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness._values import dataclass
from harness.instances import Instance
from harness.machine import Machine, Python
from harness.model import HostPlan, Spec
from harness.plan import _image, _launcher
from harness.plan._hosts import CloudHost
from harness.plan._sizes import show

__all__ = ["Facts", "notes"]

_GB = 1000**3


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the notes are made of."""

    spec: Spec
    machine: Machine
    engine: str
    cloud: tuple[CloudHost, ...]
    hosts: tuple[HostPlan, ...]
    gpus_allowed: int
    world_size: int
    cloud_world_size: int
    disk_free_bytes: int
    python: Python | None
    image: _image.Choice | None
    image_note: str


def notes(facts: Facts) -> tuple[str, ...]:
    """Sentences for people; each says what is so, and what follows from it."""
    return tuple(
        sentence
        for part in (_cannot, _launch, _gpus, _versions, _untested, _pace, _disk, _spot)
        for sentence in part(facts)
    )


def _cannot(facts: Facts) -> Iterator[str]:
    """What will probably make the job fail here."""
    if facts.engine == "sandbox" and not facts.machine.sandbox:
        yield (
            f"Hard-coded /opt/ml paths don't work, only the SM_* variables do: {facts.machine.sandbox.reason}."
        )
    if facts.python is not None and facts.python.torch is None and "pytorch" in (_asked(facts.spec) or ""):
        yield (
            f"{facts.python.executable} has no PyTorch, so a script that imports it fails: "
            "install it, or name another interpreter in [local] python."
        )
    if (
        any(host.gpus for host in facts.hosts)
        and facts.python
        and facts.python.torch
        and not facts.python.cuda
    ):
        yield (
            f"{facts.python.executable} has a CPU build of PyTorch, which can't use the GPUs: "
            "install a CUDA build, or name another interpreter in [local] python."
        )
    if (
        facts.image is not None
        and facts.image.image is not None
        and facts.image.image.user not in ("", "root", "0")
    ):
        yield (  # contract: A19
            f"The image runs as {facts.image.image.user}, not root: in the cloud it can't read /opt/ml/input/config."
        )


def _launch(facts: Facts) -> Iterator[str]:
    launcher = _launcher.asked(facts.spec.request)
    here, there = facts.world_size, facts.cloud_world_size
    if launcher is not None:
        if here != there:
            yield f"{launcher.title} starts {_ranks(here)} here and {_ranks(there)} in the cloud."
        if here < there:
            yield (
                f"With a batch size per rank the global batch is {_times(there, here)} as large in the cloud: "
                "a learning rate that fits here may not fit there. --ranks cloud keeps the cloud's number."
            )
        shared = [host for host in facts.hosts if host.processes and host.processes > max(host.gpus, 1)]
        if shared:
            yield (
                f"With --ranks cloud {launcher.title} starts {shared[0].processes} processes on each host, which "
                + (
                    f"share {_count(shared[0].gpus)}: NCCL wants one for each, gloo and smddp's stand-in don't."
                    if shared[0].gpus
                    else "share this machine's CPUs."
                )
            )
        return
    idle = max((host.instance.gpus for host in facts.cloud), default=0)
    if idle > 1 and not facts.spec.request["AlgorithmSpecification"].get("ContainerEntrypoint"):
        yield (
            f"No launcher is asked for (distribution): in the cloud too the script starts once on each host, and "
            f"{idle - 1} of its {idle} GPUs idle unless it uses them itself."
        )


def _gpus(facts: Facts) -> Iterator[str]:
    wanted = max((host.cloud_gpus for host in facts.hosts), default=0)
    if wanted == 0:
        neuron = [host.instance for host in facts.cloud if host.instance.neuron_cores]
        if neuron:
            yield f"{neuron[0].name} has Neuron cores, which this machine can't stand in for: the script runs on the CPU."
        elif facts.gpus_allowed:
            yield f"{facts.hosts[0].instance_type} has no GPU, so the job gets none of this machine's."
        return
    given = min(host.gpus for host in facts.hosts if host.cloud_gpus)
    if given >= wanted:
        return
    instance = next(host.instance_type for host in facts.hosts if host.cloud_gpus == wanted)
    where = f"{instance} has {_count(wanted)}; here each host gets"
    if given:
        yield f"{where} {given}: scaling over the others is not tested."
    elif facts.gpus_allowed:
        yield f"{where} none, because {len(facts.hosts)} hosts can't share {facts.gpus_allowed}: they run on the CPU."
    elif facts.machine.gpus:
        yield f"{where} none, as [local] gpus says: the script runs on the CPU."
    else:
        yield f"{where} none, because {facts.machine.gpu_reason}: the script runs on the CPU."


def _versions(facts: Facts) -> Iterator[str]:
    if "asked for" in facts.image_note.replace("as asked for", "") or "not known" in facts.image_note:
        yield f"{facts.image_note}."


def _untested(facts: Facts) -> Iterator[str]:
    """What of the instance this machine hasn't got, so that no run here says anything about it."""
    seen: dict[str, Instance] = {host.instance.name: host.instance for host in facts.cloud}
    for instance in seen.values():
        parts = []
        if instance.gpus:
            parts.append(_gpu_memory(instance, facts))
        if instance.efa:
            parts.append("EFA")
        if instance.gpus > 1:
            parts.append(f"the links between its {instance.gpus} GPUs")
        if instance.memory_bytes > facts.machine.memory_bytes:
            parts.append(f"{show(instance.memory_bytes)} of memory ({show(facts.machine.memory_bytes)} here)")
        parts = [part for part in parts if part]
        if parts:
            yield f"Not tested here, of {instance.name}: {_list(parts)}."


def _gpu_memory(instance: Instance, facts: Facts) -> str:
    if not facts.machine.gpus or not any(host.gpus for host in facts.hosts):
        model = f" ({instance.gpu_model})" if instance.gpu_model else ""
        return f"its GPUs{model} and their memory"
    smallest = min(facts.machine.gpus, key=lambda gpu: gpu.memory_bytes)
    if instance.gpu_memory_bytes is None or smallest.memory_bytes >= instance.gpu_memory_bytes * 0.95:
        return ""
    return f"{show(instance.gpu_memory_bytes)} on each GPU ({show(smallest.memory_bytes)} on {smallest.name} here)"


def _pace(facts: Facts) -> Iterator[str]:
    """How fast channels come, if not as fast as this machine can."""
    local = facts.spec.local
    paces = [
        f"{local.s3_latency_ms:g} ms for each object" if local.s3_latency_ms else "",
        f"{local.s3_throughput_mbps:g} Mbit/s to each host" if local.s3_throughput_mbps else "",
    ]
    modes = _input_modes(facts.spec)
    if not any(paces) or not modes:
        return
    slowed = [mode for mode in ("File", "Pipe") if mode in modes.values()]
    if slowed:
        yield f"Channels in {' and '.join(slowed)} mode come at the pace that [local] gives: {_list([p for p in paces if p])}."
    fast = [name for name, mode in modes.items() if mode == "FastFile"]
    if fast:
        yield f"FastFile is not slowed down: {_list(fast)} {'are' if len(fast) > 1 else 'is'} read at this machine's own speed."


def _input_modes(spec: Spec) -> dict[str, str]:
    """Channel → its effective mode (contract: E1), without file systems."""
    default = spec.request["AlgorithmSpecification"].get("TrainingInputMode") or "File"
    return {
        channel["ChannelName"]: channel.get("InputMode") or default
        for channel in spec.request.get("InputDataConfig") or ()
        if "S3DataSource" in channel["DataSource"]
    }


def _disk(facts: Facts) -> Iterator[str]:
    volume = facts.spec.request["ResourceConfig"].get("VolumeSizeInGB")
    free = facts.disk_free_bytes
    if volume and free < volume * _GB:
        yield (
            f"{show(free)} are free at {facts.machine.home.root}, less than the {volume} GB volume that is asked for: "
            "free some (`harness gc`), or set HARNESS_HOME to another disk."
        )


def _spot(facts: Facts) -> Iterator[str]:
    if facts.spec.request.get("EnableManagedSpotTraining"):
        yield "No spot interruption happens here by itself."


def _asked(spec: Spec) -> str | None:
    image: str | None = spec.request["AlgorithmSpecification"].get("TrainingImage")
    return image


def _ranks(number: int) -> str:
    return f"{number} process{'es' * (number != 1)}"


def _count(number: int) -> str:
    return f"{number} GPU{'s' * (number != 1)}"


def _times(there: int, here: int) -> str:
    ratio = there / here
    return f"{ratio:g} times" if ratio != int(ratio) else f"{int(ratio)} times"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

"""Which of this machine's GPUs a job may use, and how many each host gets."""

from __future__ import annotations

from harness.errors import GpuError
from harness.machine import Machine
from harness.model import Gpu

__all__ = ["allowed_gpus", "share"]


def allowed_gpus(machine: Machine, wanted: str | int) -> tuple[Gpu, ...]:
    """The GPUs that `[local] gpus` lets jobs use: "all", "none", a number, or indices such as "0,2".

    Raises:
        GpuError: a number or an index that this machine hasn't got.
    """
    have = machine.gpus
    words = str(wanted).strip()
    if words == "all":
        return have
    if words == "none":
        return ()
    if words.isdecimal():
        if int(words) > len(have):
            raise GpuError(
                f"gpus = {words}, but {_count(machine)}: set [local] gpus to all, or to a number that is here"
            )
        return have[: int(words)]
    by_index = {str(gpu.index): gpu for gpu in have}
    chosen = list(dict.fromkeys(word.strip() for word in words.split(",")))
    missing = [word for word in chosen if word not in by_index]
    if missing:
        raise GpuError(f'gpus = "{words}" names GPU {", ".join(missing)}, but {_count(machine)}: name others')
    return tuple(by_index[word] for word in chosen)


def share(gpus: int, cloud: tuple[int, ...]) -> tuple[int, ...]:
    """GPUs for each host, given how many each has in the cloud: as many as there, if the machine has them.

    A GPU is never two hosts', and hosts that are equal in the cloud are equal here (contract: H3); what
    can't be shared out evenly stays unused.
    """
    users = sum(1 for count in cloud if count)
    each = gpus // users if users else 0
    return tuple(min(count, each) for count in cloud)


def _count(machine: Machine) -> str:
    number = len(machine.gpus)
    if number == 0:
        return f"this machine has none ({machine.gpu_reason})"
    indices = ", ".join(str(gpu.index) for gpu in machine.gpus)
    return f"this machine has {number} (index {indices})"

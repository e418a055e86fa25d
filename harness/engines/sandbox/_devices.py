"""The device nodes that a host gets."""

from __future__ import annotations

from pathlib import Path

from harness.model import Gpu

__all__ = ["machine_has_gpus", "nodes"]

_PLAIN = ("null", "zero", "full", "random", "urandom", "tty")

_ACCELERATORS = ("infiniband", "gdrdrv", "kfd", "dri", "dxg", "neuron*", "accel", "knem")
"""What isn't handed out by number: EFA (contract: B15), AMD, WSL, Neuron, TPU, Gaudi."""

_DEV = Path("/dev")


def machine_has_gpus() -> bool:
    """Whether this machine has an NVIDIA GPU that a host could see."""
    return any(path.name.removeprefix("nvidia").isdigit() for path in _DEV.glob("nvidia*"))


def nodes(gpus: tuple[Gpu, ...]) -> list[str]:
    """Names below /dev: of NVIDIA's GPUs only the host's own, as a container gets them."""
    names = [name for name in _PLAIN if (_DEV / name).exists()]
    for pattern in _ACCELERATORS:
        names += [path.name for path in _DEV.glob(pattern)]
    if gpus:
        minors = _minors()
        own = {minors.get(gpu.uuid) for gpu in gpus}
        for path in _DEV.glob("nvidia*"):
            number = path.name.removeprefix("nvidia")
            if not number.isdigit() or None in own or int(number) in own:
                names.append(path.name)
    return names


def _minors() -> dict[str, int]:
    """GPU UUID → minor number of its node, which need not be its index."""
    found = {}
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        lines = (line.partition(":") for line in path.read_text().splitlines())
        told = {key.strip(): value.strip() for key, _, value in lines}
        if "GPU UUID" in told and told.get("Device Minor", "").isdigit():
            found[told["GPU UUID"]] = int(told["Device Minor"])
    return found

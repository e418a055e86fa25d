"""The GPUs that this process may use, as NVIDIA's management library knows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from harness.model import Gpu

__all__ = ["driver", "probe", "visible"]

_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""The driver's own device; WSL's."""


def probe(environ: Mapping[str, str] = os.environ) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs, and why there are none when there are none."""
    if not any(Path(device).exists() for device in _DEVICES):  # importing pynvml takes 30 ms
        return (), "there is no NVIDIA driver on this machine"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"the NVIDIA driver doesn't answer: {error}"
    try:
        found = tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return (), f"the NVIDIA driver doesn't tell its GPUs: {error}"
    finally:
        pynvml.nvmlShutdown()
    if not found:
        return (), "the NVIDIA driver lists no GPU"
    allowed = visible(found, environ.get("CUDA_VISIBLE_DEVICES"))
    return allowed, "" if allowed else "CUDA_VISIBLE_DEVICES hides every GPU"


def driver() -> str:
    """The driver's version, and the newest CUDA that it runs, for `doctor`; empty when it doesn't tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ""
    try:
        version = _text(pynvml.nvmlSystemGetDriverVersion())
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    except pynvml.NVMLError:
        return ""
    finally:
        pynvml.nvmlShutdown()
    return f"driver {version} for CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"


def visible(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """Those of `gpus` that CUDA_VISIBLE_DEVICES lets a process see, in its order.

    Indices or (beginnings of) UUIDs; as CUDA reads it, the first that names no GPU ends the list.
    """
    if setting is None:
        return gpus
    allowed: list[Gpu] = []
    for word in (part.strip() for part in setting.split(",")):
        named = [gpu for gpu in gpus if word and (word == str(gpu.index) or gpu.uuid.startswith(word))]
        if len(named) != 1 or named[0] in allowed:
            break
        allowed += named
    return tuple(allowed)


def _gpu(index: int) -> Gpu:
    from pynvml import (
        nvmlDeviceGetHandleByIndex,
        nvmlDeviceGetMemoryInfo,
        nvmlDeviceGetName,
        nvmlDeviceGetUUID,
    )

    handle = nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=_text(nvmlDeviceGetUUID(handle)),
        name=_text(nvmlDeviceGetName(handle)),
        memory_bytes=int(nvmlDeviceGetMemoryInfo(handle).total),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

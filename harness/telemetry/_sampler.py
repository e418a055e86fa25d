"""What the hosts of a job use, as CloudWatch's instance metrics."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.engines.base import Host
from harness.model import Gpu, MetricPoint, Usage

__all__ = ["Sampler"]


class Sampler:
    """Turns what an engine tells about its hosts into metrics, all in percent (contract: I14).

    CPUUtilization counts 100 for each core that is busy (contract: I15), GPUUtilization and
    GPUMemoryUtilization count 100 for each GPU; they are there only for hosts with GPUs, and only while
    NVIDIA's library answers (contract: I16). DiskUtilization is that of the file system of /opt/ml.
    """

    def __init__(self, disks: Mapping[str, Path], gpus: Mapping[str, Sequence[Gpu]]) -> None:
        """`disks`: where each host's /opt/ml is; `gpus`: the GPUs that each host was given."""
        self._disks = dict(disks)
        self._gpus = {host: tuple(each) for host, each in gpus.items() if each}
        self._cpu: dict[str, tuple[float, float]] = {}
        self._devices: dict[str, Any] | None = None
        self._library = False
        self.last: dict[str, Usage | None] = {}
        """Host → what its engine told at the last sample."""

    def sample(self, host: Host, now_ms: int | None = None) -> list[MetricPoint]:
        """The metrics of `host` now; those that its engine can't tell are missing.

        CPUUtilization is the mean since the last call, so the first call has none.
        """
        values: dict[str, float] = {}
        usage = self.last[host.name] = host.usage()
        if usage is not None:
            now = time.monotonic()
            before = self._cpu.get(host.name)
            self._cpu[host.name] = (now, usage.cpu_seconds)
            if before is not None and now > before[0]:
                busy = max(0.0, usage.cpu_seconds - before[1])
                values["CPUUtilization"] = 100 * busy / (now - before[0])
            if usage.memory_limit_bytes > 0:
                values["MemoryUtilization"] = 100 * usage.memory_bytes / usage.memory_limit_bytes
        if host.name in self._disks:
            try:
                disk = shutil.disk_usage(self._disks[host.name])
                values["DiskUtilization"] = 100 * disk.used / disk.total
            except OSError as error:
                _debug("no DiskUtilization of %s: %s", host.name, error)
        if host.name in self._gpus:
            values.update(self._gpu_values(self._gpus[host.name]))
        stamp = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        return [
            MetricPoint(name=name, value=round(value, 2), timestamp_ms=stamp, host=host.name)
            for name, value in values.items()
        ]

    def close(self) -> None:
        """Give NVIDIA's library back."""
        if self._library:
            import pynvml

            self._library, self._devices = False, None
            pynvml.nvmlShutdown()

    def _gpu_values(self, gpus: Sequence[Gpu]) -> dict[str, float]:
        devices = self._open_devices()
        if not devices:
            return {}
        import pynvml

        values: dict[str, float] = {}
        for gpu in gpus:
            device = devices.get(gpu.uuid)
            if device is None:
                continue
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(device)
                _add(values, "GPUMemoryUtilization", 100 * memory.used / memory.total)
                _add(values, "GPUUtilization", pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
            except pynvml.NVMLError as error:
                # A MIG slice has no utilization rate; a GPU may fall off the bus.
                _debug("no GPU metrics of %s: %s", gpu.uuid, error)
        return values

    def _open_devices(self) -> dict[str, Any]:
        if self._devices is None:
            self._devices = {}
            try:
                import pynvml

                pynvml.nvmlInit()
            except (ImportError, OSError) as error:
                _debug("no GPU metrics: %s", error)
                return self._devices
            except pynvml.NVMLError as error:
                _debug("no GPU metrics: %s", error)
                return self._devices
            self._library = True
            for gpus in self._gpus.values():
                for gpu in gpus:
                    try:
                        self._devices[gpu.uuid] = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
                    except pynvml.NVMLError as error:
                        _debug("no GPU metrics of %s: %s", gpu.uuid, error)
        return self._devices


def _add(values: dict[str, float], name: str, value: float) -> None:
    values[name] = values.get(name, 0.0) + value


def _debug(message: str, *arguments: object) -> None:
    import logging  # rarely needed, and on the way to every script's first line

    logging.getLogger(__name__).debug(message, *arguments)

"""What the processes of a host are, use and hold open, at one moment."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from harness.model import Gpu, JsonObject, Usage
from harness.telemetry._secrets import hide_arguments

__all__ = ["gpu_processes", "look", "process"]

_MOST: Final = 200
"""Processes told of one host."""
_FILES: Final = 48
"""Open files told of one process."""
_WORDS: Final = 60
_LETTERS: Final = 400
"""Words of a command line, and letters of each, that are kept."""
_DULL: Final = ("/dev/null", "/dev/urandom", "/dev/pts/", "/proc/", "/memfd:", "/run/harness/")


def look(usage: Usage, *, ml: Path | None, gpus: Sequence[Gpu] = ()) -> JsonObject:
    """A host now: its processes, memory, disk, /dev/shm and GPUs. Sizes in bytes, times in epoch seconds.

    What can't be told is missing. Names and command lines only: never an environment; values of options
    that look like secrets are hidden.
    """
    found: JsonObject = {
        "at": time.time(),
        "memory": usage.memory_bytes,
        "memory_limit": usage.memory_limit_bytes,
        "cpu_seconds": round(usage.cpu_seconds, 2),
        "processes": [told for pid in usage.pids[:_MOST] if (told := process(pid)) is not None],
    }
    if ml is not None:
        with contextlib.suppress(OSError):
            disk = os.statvfs(ml)
            found["disk"] = {
                "free": disk.f_bavail * disk.f_frsize,
                "size": disk.f_blocks * disk.f_frsize,
                "free_files": disk.f_favail,
            }
    for pid in usage.pids:
        with contextlib.suppress(OSError):
            # Through any process of the host: its own /dev/shm, not the machine's.
            shm = os.statvfs(f"/proc/{pid}/root/dev/shm")
            size = shm.f_blocks * shm.f_frsize
            found["shm"] = {"used": size - shm.f_bfree * shm.f_frsize, "size": size}
            break
    if gpus:
        found["gpus"] = gpu_processes(gpus)
    return found


def process(pid: int) -> JsonObject | None:
    """One process; None when it has ended. What this user may not see is None."""
    import psutil

    try:
        each = psutil.Process(pid)
        with each.oneshot():
            if each.status() == psutil.STATUS_ZOMBIE:
                return None
            times = each.cpu_times()
            return {
                "pid": pid,
                "parent": each.ppid(),
                "name": each.name(),
                "command": _command(each),
                "status": each.status(),
                "started": each.create_time(),
                "threads": each.num_threads(),
                "memory": each.memory_info().rss,
                "cpu_seconds": round(times.user + times.system, 2),
                **_open_files(pid),
            }
    except (psutil.Error, OSError):
        return None


def _command(each: Any) -> list[str]:
    import psutil

    try:
        words: list[str] = each.cmdline()
    except psutil.Error:
        return []
    return [word[:_LETTERS] for word in hide_arguments(words[:_WORDS])]


def _open_files(pid: int) -> JsonObject:
    """How many descriptors it has, and the files among them."""
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)  # noqa: PTH208 - every two seconds, for every process
    except OSError:
        return {"open": None, "files": None}
    files: dict[str, None] = {}
    for number in numbers[:1024]:
        with contextlib.suppress(OSError):
            target = os.readlink(f"{directory}/{number}")  # noqa: PTH115
            if target.startswith("/") and not target.startswith(_DULL):
                files[target] = None
                if len(files) >= _FILES:
                    break
    return {"open": len(numbers), "files": list(files)}


def gpu_processes(gpus: Sequence[Gpu]) -> list[JsonObject]:
    """Memory and load of each GPU, and who uses its memory, as far as NVIDIA's library tells."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return []
    except pynvml.NVMLError:
        return []
    found = []
    try:
        for gpu in gpus:
            told: JsonObject = {"index": gpu.index, "name": gpu.name}
            try:
                device = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
                memory = pynvml.nvmlDeviceGetMemoryInfo(device)
                told |= {"memory": int(memory.used), "size": int(memory.total)}
                told["processes"] = {
                    str(each.pid): each.usedGpuMemory
                    for each in pynvml.nvmlDeviceGetComputeRunningProcesses(device)
                }
                told["utilization"] = pynvml.nvmlDeviceGetUtilizationRates(device).gpu
            except pynvml.NVMLError as error:
                told["problem"] = str(error)  # a slice has no utilization; a device may be lost
            found.append(told)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return found

"""The contract's defaults that expose common bugs, where they aren't how every job runs (its appendix 2).

`[local.strict]` switches them one by one, `--strict-contract` all at once; what each does is `model.STRICT`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.errors import ClientError, HarnessError
from harness.model import ALWAYS_STRICT, HostLaunch, JsonObject
from harness.store import StopRequest, Store

if TYPE_CHECKING:
    from harness.channels import StagedChannel
    from harness.engines import Host
    from harness.lifecycle._supervisor import Supervisor

__all__ = [
    "machine_seed",
    "refuse_clashes",
    "see_that_it_fits",
    "see_that_outputs_fit",
    "staggered",
    "tell_of_strictness",
]

_LATE: Final = (5.0, 30.0)
"""Seconds between the first host and any other (contract: H2, H4)."""
_POLL: Final = 0.2


def _on(job: Supervisor, name: str) -> bool:
    return name in job.spec.local.strict_contract


# ------------------------------------------------------------------------------------- hosts


def machine_seed(job: Supervisor) -> str:
    """What the hosts' EC2 names are made of: after a restart others than before (contract: C16)."""
    attempt = job.store.summary(job.name).attempt
    if attempt > 1 and _on(job, "remapped_hosts"):
        return f"{job.hostname_seed}#{attempt}"
    return job.hostname_seed


def staggered(
    job: Supervisor, launches: Sequence[HostLaunch], start: Callable[[HostLaunch], Host]
) -> Callable[[HostLaunch], Host]:
    """`start`, but one host of the job comes first and each other some seconds after it.

    Until then nobody resolves its name. A stop request lets them all start at once, to be stopped together.
    """
    if not _on(job, "late_hosts"):
        return start
    import random  # loads more than the rest of a supervisor's start

    chance = random.Random(job.name)
    first = chance.choice(launches).host
    delays = {each.host: 0.0 if each.host == first else chance.uniform(*_LATE) for each in launches}
    late = ", ".join(f"{host} {delay:.0f} s" for host, delay in delays.items() if delay)
    job.note(f"strict contract: hosts start late (after {first}: {late})")
    hurry = threading.Event()

    def watch() -> None:
        until = time.monotonic() + max(delays.values())
        with Store(job.home) as store:  # of this thread's own
            while time.monotonic() < until and store.summary(job.name).stop_request is StopRequest.NONE:
                time.sleep(_POLL)
        hurry.set()

    threading.Thread(target=watch, name="late-hosts", daemon=True).start()

    def late_start(launch: HostLaunch) -> Host:
        hurry.wait(delays[launch.host])
        return start(launch)

    return late_start


# ------------------------------------------------------------------------------------- volume


def _volume(job: Supervisor) -> int | None:
    """Bytes of the volume that the request asks for; None where it is the instance's own disk."""
    from harness import instances

    resources = job.request["ResourceConfig"]
    gigabytes = resources.get("VolumeSizeInGB")
    if not _on(job, "volume") or not gigabytes:
        return None
    kind = resources.get("InstanceType")
    known = instances.lookup(kind) if kind in instances.names() else None
    return None if known is not None and known.nvme else int(gigabytes) << 30


def see_that_it_fits(job: Supervisor, channels: Iterable[StagedChannel]) -> None:
    """Raise ClientError when a host's File channels are larger than its volume (contract: E3, E32)."""
    volume = _volume(job)
    if volume is None:
        return
    needed = sum(channel.size for channel in channels if channel.mode == "File")
    if needed > volume:
        raise ClientError(
            f"Data download failed:Insufficient disk space (the File channels have {needed:,} bytes, "
            f"VolumeSizeInGB stands for {volume:,})"
        )


def see_that_outputs_fit(job: Supervisor, trees: Mapping[str, Path]) -> None:
    """Raise ClientError when a host's files and the archive of its model exceed its volume (contract: F22)."""
    volume = _volume(job)
    if volume is None:
        return
    channels: Mapping[str, JsonObject] = job.store.job(job.name).result.get("channels") or {}
    data = sum(int(channel["bytes"]) for channel in channels.values())
    for host, tree in trees.items():
        needed = data + _size(tree) + _size(tree / "model")
        if needed > volume:
            raise ClientError(
                f"Artifact upload failed:Insufficient disk space (on {host} data, outputs and the archive of the model "
                f"need {needed:,} bytes, VolumeSizeInGB stands for {volume:,})"
            )


def _size(root: Path) -> int:
    total = 0
    for place, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 - many files are a lot of Paths
            except FileNotFoundError:
                continue
    return total


# ------------------------------------------------------------------------------------ outputs


def refuse_clashes(job: Supervisor, clashes: Sequence[str]) -> None:
    """Raise ClientError when hosts wrote files of one name (contract: F4)."""
    if clashes and _on(job, "clashes"):
        raise ClientError(
            f"Artifact upload failed: {', '.join(clashes[:3])} differs between hosts, and which copy wins is not "
            "defined (strict contract): put the host's name into the file's, or let one host write it"
        )


# ------------------------------------------------------------------------------------ verdict


def tell_of_strictness(job: Supervisor, status: str) -> None:
    """Put on record which defaults the job met, and whether it survived them."""
    if not job.spec.local.strict_contract:
        return
    idle = {
        name: why for name in (*ALWAYS_STRICT, *job.spec.local.strict_contract) if (why := _idle(job, name))
    }
    met = [name for name in (*ALWAYS_STRICT, *job.spec.local.strict_contract) if name not in idle]
    try:
        differing = _escaped_metrics(job) if "escaped_logs" in met else []
    except (HarnessError, OSError) as error:
        differing, idle["escaped_logs"] = [], f"the log can't be read again: {error}"
        met.remove("escaped_logs")
    if differing:
        job.note(
            f"strict contract: {', '.join(differing)} has other values when the log's control characters are escaped "
            "first, and which of the two the platform does is not known (contract I4)"
        )
    job.store.merge_result(job.name, strict={"met": met, "not_met": idle, "survived": status == "Completed"})


def _idle(job: Supervisor, name: str) -> str:
    """Why this job has nothing to do with that default; empty when it has."""
    request, hosts = job.request, len(job.plan.hosts)
    channels = [channel.get("InputMode") for channel in request.get("InputDataConfig") or ()]
    modes = {mode or request["AlgorithmSpecification"].get("TrainingInputMode") for mode in channels}
    record = job.store.job(job.name)
    idle = {
        "shuffled_groups": "" if hosts > 1 else "one host",
        "late_hosts": "" if hosts > 1 else "one host",
        "clashes": "" if hosts > 1 else "one host",
        "remapped_hosts": "" if record.attempt > 1 else "no restart",
        "string_hyperparameters": "" if request.get("HyperParameters") else "no hyperparameters",
        "real_channels": "" if modes & {"FastFile", "Pipe"} else "no FastFile or Pipe channel",
        "stop_signals": "" if record.result.get("stop") else "it wasn't stopped",
        "empty_model": "the model isn't empty" if "model" in record.result.get("artifacts", {}) else "",
        "escaped_logs": ""
        if request["AlgorithmSpecification"].get("MetricDefinitions")
        else "no metric definitions",
        "shell_arguments": "" if job.plan.engine == "sandbox" else "the image has a toolkit of its own",
        "volume": "" if _volume(job) is not None else "no volume: the instance has disks of its own",
    }
    return idle.get(name, "")


def _escaped_metrics(job: Supervisor) -> list[str]:
    """Names of metrics whose values differ between the log as printed and the log as shown."""
    from harness.telemetry import LogReader, MetricScanner

    definitions = job.request["AlgorithmSpecification"]["MetricDefinitions"]
    scanner = MetricScanner(definitions)
    escaped: dict[str, list[float]] = {}
    for host in job.plan.hosts:
        reader = LogReader(job.logs, host.name)
        token = 0
        while True:
            events, token = reader.read(token, final=True)
            if not events:
                break
            text = "".join(f"{event.message}\n" for event in events)
            for point in scanner.feed(host.name, text.encode(), 0):
                escaped.setdefault(point.name, []).append(point.value)
        reader.close()
    printed: dict[str, list[float]] = {}
    for _, point in job.store.metrics(job.name, sampled=False):
        printed.setdefault(point.name, []).append(point.value)
    return sorted(
        name
        for name in {*escaped, *printed}
        if sorted(escaped.get(name, [])) != sorted(printed.get(name, []))
    )

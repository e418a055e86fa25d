"""The plan for people: what to know first, then how the machine stands in, then field by field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from harness.instances import Instance, lookup
from harness.model import FieldTreatment, HostPlan, Plan, Spec, Treatment
from harness.plan import _launcher
from harness.plan._sizes import show

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["render"]

_VALUE: Final = 40
"""Longest value that is shown whole."""

_SECTIONS: Final = (
    (Treatment.UNCLASSIFIED, "Not classified: newer than this harness", "red"),
    (Treatment.CLOUD_ONLY, "Cloud only: no effect here", "yellow"),
    (Treatment.MAPPED, "Mapped: this machine stands in", "cyan"),
    (Treatment.EMULATED, "Emulated: the same effect by other means", "cyan"),
    (Treatment.HONOURED, "Honoured: as in the cloud", "green"),
)


def render(plan: Plan, spec: Spec, console: Console) -> None:
    """Print the plan on `console`, within its width; no colour where the console has none."""
    from rich.padding import Padding
    from rich.text import Text

    def title(words: str, style: str = "bold") -> None:
        console.print()
        console.print(Text(words, style=style))

    console.print(Text.assemble((spec.job_name, "bold"), f"  ({spec.origin})"))
    console.print(Padding(Text(f"{plan.engine} engine: {plan.engine_reason}"), (0, 0, 0, 2), expand=False))
    told = [*plan.notes, *spec.warnings]
    if told:
        title("To know")
        for sentence in told:
            console.print(_bullet(Text(sentence)))
    title("In the cloud, and here")
    console.print(_comparison(plan, spec))
    for treatment, words, style in _SECTIONS:
        items = [item for item in plan.treatments if item.treatment is treatment]
        if items:
            title(words, f"bold {style}")
            brief = treatment is Treatment.HONOURED
            console.print(_paths(items) if brief else _fields(items, console.width))
    refused = [item.path for item in plan.treatments if _refused(item)]
    console.print()
    if refused:
        console.print(
            _bullet(Text(f"--strict would refuse this job for {', '.join(dict.fromkeys(refused))}."))
        )
    else:
        console.print(
            Text("--strict would run this job: no field without effect changes what the script sees.")
        )


def _refused(item: FieldTreatment) -> bool:
    return item.treatment is Treatment.UNCLASSIFIED or (
        item.treatment is Treatment.CLOUD_ONLY and item.visible
    )


def _bullet(words: RenderableType) -> RenderableType:
    from rich.table import Table

    row = Table.grid(padding=(0, 1))
    row.add_column(width=1)
    row.add_column()
    row.add_row("•", words)
    return row


def _comparison(plan: Plan, spec: Spec) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for row in _rows(plan, spec):
        table.add_row(*row)
    return table


def _rows(plan: Plan, spec: Spec) -> Iterator[tuple[str, str, str]]:
    instances = {host.instance_type: lookup(host.instance_type) for host in plan.hosts}
    kinds = [(name, sum(host.instance_type == name for host in plan.hosts)) for name in instances]
    there = ", ".join(f"{count} × {name}" for name, count in kinds)
    yield "hosts", there, f"{len(plan.hosts)} on this machine: {_names(plan.hosts)}"
    if plan.image is not None or plan.python is not None:
        yield "image", plan.image_asked or "", plan.image or f"none: {plan.python}"
    if any(host.cloud_gpus or host.gpus for host in plan.hosts):
        yield "GPUs a host", _each(instances.values(), _gpus), _here(plan.hosts)
    launcher = _launcher.asked(spec.request)
    started = launcher.title if launcher is not None else "one a host, no launcher"
    yield "processes", f"{plan.cloud_world_size} ({started})", str(plan.world_size)
    yield "CPUs a host", _each(instances.values(), lambda each: str(each.vcpus)), f"{plan.cpus}, shared"
    limit = "no limit set" if plan.memory_bytes is None else f"{show(plan.memory_bytes)}, enforced"
    yield "memory a host", _each(instances.values(), lambda each: show(each.memory_bytes)), limit
    yield "/dev/shm", "not documented by AWS", f"{show(plan.shm_bytes)} a host"
    yield "disk", _volume(spec, instances.values()), f"{show(plan.disk_free_bytes)} free"
    yield (
        "network",
        "eth0" + (", EFA" if any(each.efa for each in instances.values()) else ""),
        plan.network_interface,
    )


def _names(hosts: Sequence[HostPlan]) -> str:
    names = [host.name for host in hosts]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} … ({len(names)})"


def _each(instances: Iterable[Instance], tell: Any) -> str:
    return ", ".join(dict.fromkeys(tell(instance) for instance in instances))


def _gpus(instance: Instance) -> str:
    if not instance.gpus:
        return "none"
    memory = f", {show(instance.gpu_memory_bytes)}" if instance.gpu_memory_bytes else ""
    return f"{instance.gpus} × {instance.gpu_model or 'GPU'}{memory}"


def _here(hosts: Sequence[HostPlan]) -> str:
    return ", ".join(dict.fromkeys(str(host.gpus) if host.gpus else "none" for host in hosts))


def _volume(spec: Spec, instances: Iterable[Instance]) -> str:
    size = spec.request["ResourceConfig"].get("VolumeSizeInGB")
    local = [instance.nvme for instance in instances if instance.nvme]
    if local:
        return f"{max(local) // 1000**3:,} GB of local NVMe"
    return f"{size} GB volume" if size else ""


def _paths(items: Iterable[FieldTreatment]) -> RenderableType:
    """What needs no word: the fields' names, in one paragraph."""
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(", ".join(dict.fromkeys(item.path for item in items))), (0, 0, 0, 2), expand=False)


def _fields(items: Sequence[FieldTreatment], width: int) -> RenderableType:
    """One paragraph for each reason: the fields that share it, with their values, then the reason."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    reasons: dict[str, list[FieldTreatment]] = {}
    # What --strict refuses comes first.
    for item in sorted(items, key=lambda item: not _refused(item)):
        reasons.setdefault(item.reason, []).append(item)
    paragraphs: list[RenderableType] = []
    for reason, same in reasons.items():
        values: dict[str, list[str]] = {}
        for item in same:
            values.setdefault(item.path, []).append(_value(item.value, min(_VALUE, width // 2)))
        for path, shown in values.items():
            text = Text.assemble((path, "bold"), "  ", (", ".join(dict.fromkeys(shown)), "dim"))
            paragraphs.append(Padding(text, (0, 0, 0, 2), expand=False))
        paragraphs.append(Padding(Text(reason), (0, 0, 0, 6), expand=False))
    return Group(*paragraphs)


def _value(value: Any, longest: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"

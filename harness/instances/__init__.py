"""The `ml.*` catalogue: what an instance type has, so that the plan can say what stands in for it.

The values and their sources are in `catalogue.json`. SageMaker's `ml.p4d.24xlarge` is EC2's
`p4d.24xlarge`; values that no source gives are None, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass
from harness.errors import SpecError
from harness.model import JsonObject

__all__ = ["EFA_TYPES", "RDMA_TYPES", "Instance", "closest", "lookup", "names", "rules", "warnings"]

EFA_TYPES: Final = frozenset(  # contract: H15
    {
        "ml.g4dn.8xlarge",
        "ml.g4dn.12xlarge",
        "ml.g5.48xlarge",
        "ml.p3dn.24xlarge",
        "ml.p4d.24xlarge",
        "ml.p4de.24xlarge",
        "ml.p5.48xlarge",
        "ml.trn1.32xlarge",
        "ml.p6e-gb200.36xlarge",
    }
)
"""Where the AWS toolkit sets NCCL up for EFA. EC2 offers EFA on more: see `Instance.efa_interfaces`."""

RDMA_TYPES: Final = frozenset(  # contract: H15
    {"ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.trn1.32xlarge", "ml.p6e-gb200.36xlarge"}
)
"""Where the AWS toolkit switches RDMA on."""

_SMDDP_TYPES: Final = {
    "ml.p3.16xlarge",
    "ml.p3dn.24xlarge",
    "ml.p4d.24xlarge",
    "ml.p4de.24xlarge",
}  # contract: K18
_ACCELERATED: Final = ("ml.p", "ml.g", "ml.trn")  # contract: G8
_MIB: Final = 1024**2


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One instance type, as AWS describes it."""

    name: str
    vcpus: int
    memory_bytes: int
    gpus: int
    """NVIDIA GPUs; 0 on CPU and Trainium types."""
    gpu_model: str | None
    gpu_memory_bytes: int | None
    """Of each GPU."""
    neuron_cores: int
    nvme: int | None
    """Bytes of local NVMe, which SageMaker mounts instead of an EBS volume; 0: EBS only; None: not known."""
    efa_interfaces: int | None
    """What EC2 offers; None: not known."""

    @property
    def efa(self) -> bool:
        """The AWS toolkit sets NCCL up for EFA here (contract: H15)."""
        return self.name in EFA_TYPES

    @property
    def rdma(self) -> bool:
        """The AWS toolkit switches RDMA on here (contract: H15)."""
        return self.name in RDMA_TYPES


def lookup(instance_type: str) -> Instance:
    """The instance type of that name.

    Raises:
        SpecError: no such type; says which one was probably meant.
    """
    try:
        return _load()[instance_type]
    except KeyError:
        pass
    meant = closest(instance_type)
    if instance_type.startswith("local"):
        hint = "name the type that the job gets in the cloud: it runs on this machine all the same"
    else:
        hint = f"did you mean {meant}?" if meant else "SageMaker's names look like ml.p4d.24xlarge"
    raise SpecError(f"there is no instance type {instance_type!r}; {hint}")


def names() -> tuple[str, ...]:
    """Every known instance type, family by family, small ones first."""
    return tuple(_load())


def closest(instance_type: str) -> str | None:
    """The known type whose name is most like this one."""
    import difflib

    word = instance_type.lower().replace("_", ".")
    word = word if word.startswith("ml.") else f"ml.{word}"
    near = difflib.get_close_matches(word, _load(), n=1, cutoff=0.75)
    return near[0] if near else None


def rules(request: JsonObject) -> list[str]:
    """Rules of CreateTrainingJob that depend on the instance type; the sentences that are broken.

    Types that the catalogue hasn't got are passed over: the service model has had its say on them.
    """
    resources = request.get("ResourceConfig") or {}
    volume, key = resources.get("VolumeSizeInGB"), resources.get("VolumeKmsKeyId")
    broken = []
    for instance in _used(resources):
        if key and instance.nvme:  # contract: K13
            broken.append(
                f"VolumeKmsKeyId can't be used with {instance.name}: it has local storage, encrypted by the hardware"
            )
        if volume and instance.nvme and volume * 1000**3 > instance.nvme:  # contract: K13
            broken.append(
                f"VolumeSizeInGB {volume} is more than the local storage of {instance.name} "
                f"({instance.nvme // 1000**3} GB), which is used instead of an EBS volume"
            )
        if volume is None and instance.nvme == 0:  # contract: K13
            broken.append(f"VolumeSizeInGB must be given for {instance.name}, which has no local storage")
        pending = (request.get("StoppingCondition") or {}).get("MaxPendingTimeInSeconds")
        if pending is not None and not instance.name.startswith(_ACCELERATED):  # contract: G8
            broken.append(
                f"MaxPendingTimeInSeconds works only for accelerated instance types (ml.p*, ml.g*, ml.trn*), "
                f"not {instance.name}"
            )
    return broken


def warnings(request: JsonObject) -> list[str]:
    """Lints of a valid request that depend on the instance type."""
    given = request.get("HyperParameters") or {}
    used = list(_used(request.get("ResourceConfig") or {}))
    found = []
    if given.get("sagemaker_distributed_dataparallel_enabled") == "true":  # contract: K18
        found += [
            f"smdistributed.dataparallel is not made for {instance.name}; AWS lists {', '.join(sorted(_SMDDP_TYPES))}"
            for instance in used
            if instance.name not in _SMDDP_TYPES
        ]
    if given.get("sagemaker_torch_distributed_enabled") == "true":  # contract: K20
        found += [
            f"torch_distributed on {instance.name}, which has no GPU and no Neuron core: SDK v2 refuses to send this"
            for instance in used
            if not instance.gpus and not instance.neuron_cores
        ]
    return found


def _used(resources: JsonObject) -> Iterator[Instance]:
    groups = resources.get("InstanceGroups") or resources.get("InstancePreferences") or [resources]
    known = _load()
    for name in dict.fromkeys(group.get("InstanceType") for group in groups):
        if name in known:
            yield known[name]


@cache
def _load() -> dict[str, Instance]:
    text = (Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8")
    return {name: _instance(name, row) for name, row in json.loads(text)["types"].items()}


def _instance(name: str, row: dict[str, Any]) -> Instance:
    gpu_memory, nvme = row.get("gpu_memory_mib"), row.get("nvme_gb")
    return Instance(
        name=name,
        vcpus=row["vcpus"],
        memory_bytes=row["memory_mib"] * _MIB,
        gpus=row.get("gpus", 0),
        gpu_model=row.get("gpu_model"),
        gpu_memory_bytes=None if gpu_memory is None else gpu_memory * _MIB,
        neuron_cores=row.get("neuron_cores", 0),
        nvme=None if nvme is None else nvme * 1000**3,
        efa_interfaces=row.get("efa_interfaces", 0),
    )

"""The library's start, who is who among the ranks, and what they say to one another."""

from __future__ import annotations

import enum
import json
import os
from typing import Any

import torch
import torch.distributed as dist

from ...dataparallel.torch import _backend, _ranks

_DEGREES = ("partitions", "pipeline_parallel_degree", "tensor_parallel_degree")
_NAME = "smp"


class CommGroup(enum.Enum):
    """Which processes a call is about."""

    WORLD = 0
    MP_GROUP = 1
    DP_GROUP = 2
    PP_GROUP = 3
    TP_GROUP = 4
    RDP_GROUP = 5


class RankType(enum.Enum):
    """Among which processes a rank is counted."""

    WORLD_RANK = 0
    MP_RANK = 1
    DP_RANK = 2
    PP_RANK = 3
    TP_RANK = 4
    RDP_RANK = 5


WORLD, MP_GROUP, DP_GROUP = CommGroup.WORLD, CommGroup.MP_GROUP, CommGroup.DP_GROUP


class _State:
    """What the parts of the stand-in know of each other in this process."""

    config: dict[str, Any] | None = None
    """The job's `parameters` of modelparallel; None before `init`."""
    alone: Any = None
    """The process group of this process only: every group of a degree of 1."""
    model: Any = None
    optimizer: Any = None
    microbatch: int | None = None
    """Which one of the step runs; None outside of steps."""
    resume: Any = None
    """A checkpoint for a model or an optimizer that isn't made yet."""

    @property
    def microbatches(self) -> int:
        return int((self.config or {}).get("microbatches", 1))


state = _State()


def init(config: dict[str, Any] | None = None) -> None:
    """Join the job's process group. `config`: in place of the estimator's `parameters` (contract: D26).

    RuntimeError: a degree above 1.
    """
    if state.config is not None:
        return
    chosen = dict(json.loads(os.environ.get("SM_HP_MP_PARAMETERS") or "{}") if config is None else config)
    for name in _DEGREES:
        if int(chosen.get(name, 1)) > 1:
            raise RuntimeError(
                f"[harness] smdistributed.modelparallel: {name} is {chosen[name]}, and the stand-in keeps the "
                "model in one piece: set it to 1 to run here, or run it on SageMaker"
            )
    _ranks.export()
    if not dist.is_initialized():
        _backend.register(_NAME, "AWS's model-parallel library at degree 1")
        dist.init_process_group(_NAME)
    if torch.cuda.device_count():
        torch.cuda.set_device(_ranks.local_rank() % torch.cuda.device_count())
    several = dist.get_world_size() > 1
    for number in range(dist.get_world_size()):  # every process takes part in making every group
        group = dist.new_group([number]) if several else dist.group.WORLD
        if number == dist.get_rank():
            state.alone = group
    state.config = chosen


def shutdown() -> None:
    """Leave the process group."""
    state.config = state.model = state.optimizer = state.alone = None
    if dist.is_initialized():
        dist.destroy_process_group()


def is_initialized() -> bool:
    """Whether `init` was called."""
    return state.config is not None


def is_tracing() -> bool:
    """Never: nothing is cut, so nothing is traced."""
    return False


def device() -> torch.device:
    """Where this rank's tensors live."""
    if not torch.cuda.device_count():
        return torch.device("cpu")
    return torch.device("cuda", _ranks.local_rank() % torch.cuda.device_count())


def rank() -> int:
    """This process among all."""
    return int(dist.get_rank())


def size() -> int:
    """All processes."""
    return int(dist.get_world_size())


def local_rank() -> int:
    """This process among those of its host."""
    return _ranks.local_rank()


def local_size() -> int:
    """Processes of this host."""
    return _ranks.local_world_size(dist.get_world_size())


# At degree 1 every rank has a whole model: all are replicas of one another.
dp_rank = rdp_rank = rank
dp_size = rdp_size = size


def mp_rank() -> int:
    """0: the model is in one piece."""
    return 0


def mp_size() -> int:
    """1: the model is in one piece."""
    return 1


pp_rank = tp_rank = mp_rank
pp_size = tp_size = mp_size


def get_mp_group() -> list[int]:
    """The ranks that have this model between them: this one."""
    return [rank()]


def get_dp_group() -> list[int]:
    """The ranks that have a replica: all."""
    return list(range(size()))


def get_world_process_group() -> Any:
    """torch.distributed's group of all."""
    return dist.group.WORLD


get_dp_process_group = get_rdp_process_group = get_world_process_group


def get_mp_process_group() -> Any:
    """torch.distributed's group of this process alone."""
    return state.alone


get_pp_process_group = get_tp_process_group = get_mp_process_group


def _group(which: CommGroup) -> Any:
    replicas = (CommGroup.WORLD, CommGroup.DP_GROUP, CommGroup.RDP_GROUP)
    return dist.group.WORLD if which in replicas else state.alone


def barrier(group: CommGroup = CommGroup.WORLD) -> None:
    """Wait until all of `group` have come here."""
    if _group(group) is not state.alone:
        dist.barrier()


def dp_barrier() -> None:
    """Wait for all replicas."""
    dist.barrier()


def mp_barrier() -> None:
    """Wait for this model's ranks: nobody else."""


pp_barrier = mp_barrier


def allgather(obj: Any, group: CommGroup) -> list[Any]:
    """What every process of `group` gave, by its rank."""
    if _group(group) is state.alone:
        return [obj]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, obj)
    return found

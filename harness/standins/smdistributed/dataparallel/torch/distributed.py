"""The older API (SMDDP 1.0 to 1.3): torch.distributed's functions under SMDDP's own name.

import smdistributed.dataparallel.torch.distributed as dist
dist.init_process_group()
"""

from __future__ import annotations

from typing import Any

import torch.distributed as _dist
from torch.distributed import (
    ReduceOp,
    all_gather,
    all_reduce,
    all_to_all_single,
    barrier,
    broadcast,
    get_rank,
    get_world_size,
    group,
    is_available,
    is_initialized,
)

from . import _ranks, torch_smddp  # noqa: F401

__all__ = [
    "ReduceOp",
    "all_gather",
    "all_reduce",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "get_local_rank",
    "get_rank",
    "get_world_size",
    "group",
    "init_process_group",
    "is_available",
    "is_initialized",
]


def init_process_group(*_args: Any, **_kwargs: Any) -> None:
    """Join the job's process group. As with AWS's, arguments are accepted and have no effect."""
    _dist.init_process_group(backend="smddp")


def get_local_rank() -> int:
    """This process's place among the ranks of its host: the GPU that is its own."""
    return _ranks.local_rank()

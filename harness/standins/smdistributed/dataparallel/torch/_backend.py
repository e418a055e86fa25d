"""The torch.distributed backend "smddp": NCCL where every local rank has a GPU of its own, else Gloo."""

from __future__ import annotations

import inspect
import os
import socket
import sys
from datetime import timedelta
from typing import Any, Set

import torch
import torch.distributed as dist
from smdistributed.dataparallel.torch import _ranks

NAME = "smddp"

_announced: Set[Any] = set()


def register() -> None:
    """Make "smddp" known to torch.distributed; more than once does no harm."""
    if hasattr(dist.Backend, NAME.upper()):
        return
    if "devices" in inspect.signature(dist.Backend.register_backend).parameters:
        # AWS's backend serves CUDA tensors only. So does this one where there are GPUs, and a script that
        # hands it CPU tensors fails here as it would there; without a GPU, CPU tensors are all there is.
        devices = ["cuda" if torch.cuda.device_count() else "cpu"]
        dist.Backend.register_backend(NAME, _create, extended_api=True, devices=devices)
    else:
        dist.Backend.register_backend(NAME, _create_before_torch_2)


def _create(options: Any, _backend_options: Any) -> Any:
    """Called by torch >= 2 once for each process group."""
    group = options.group_id
    return _open(group, options.store, options.group_rank, options.group_size, options.timeout)


def _create_before_torch_2(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    return _open(object(), store, rank, size, timeout)


def _open(group: Any, store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    local, gpus = _ranks.local_world_size(), torch.cuda.device_count()
    nccl = gpus >= local and dist.is_nccl_available()
    if rank == 0 and group not in _announced:
        _announced.add(group)
        if nccl:
            how = f"NCCL on {gpus} GPU{'s' * (gpus > 1)}"
        elif gpus:
            how = f"Gloo, because {local} local ranks share {gpus} GPU{'s' * (gpus > 1)}"
        else:
            how = "Gloo on CPU"
        ranks = f"{size} rank{'s' * (size > 1)}"
        print(
            f'[harness] backend "smddp" ({ranks}): {how} stands in for AWS\'s SMDDP',
            file=sys.stderr,
            flush=True,
        )
    if nccl:
        nccl_options = dist.ProcessGroupNCCL.Options()
        nccl_options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, size, nccl_options)
    return _gloo(store, rank, size, timeout)


def _gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """Gloo on the address that this host's name in the job stands for.

    Left alone, Gloo looks up gethostname(), which in a job is an EC2 name that need not resolve
    (contract: A20); it would then listen on loopback, where no other host finds it.
    """
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    address = _address(os.environ.get("SM_CURRENT_HOST"))
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, size, options)


def _address(host: str | None) -> str:
    if host is None or len(_ranks.hosts()) < 2:
        return "127.0.0.1"
    return socket.gethostbyname(host)

"""The torch.distributed backend "smddp": NCCL where every local rank has a GPU of its own, else Gloo."""

from __future__ import annotations

import functools
import inspect
import os
import socket
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from . import _ranks

NAME = "smddp"


def register(name: str = NAME, title: str = "AWS's SMDDP") -> None:
    """Make `name` known to torch.distributed; more than once does no harm. `title`: what it stands in for."""
    if hasattr(dist.Backend, name.upper()):
        return
    told = (name, title)
    if "devices" in inspect.signature(dist.Backend.register_backend).parameters:
        # AWS's backend serves CUDA tensors only. So does this one where there are GPUs, and a script that
        # hands it CPU tensors fails here as it would there; without a GPU, CPU tensors are all there is.
        devices = ["cuda" if torch.cuda.device_count() else "cpu"]
        create = functools.partial(_create, told)
        dist.Backend.register_backend(name, create, extended_api=True, devices=devices)
    else:
        dist.Backend.register_backend(name, functools.partial(_open, told))


def _create(told: tuple[str, str], options: Any, _backend_options: Any) -> Any:
    """Called by torch >= 2 once for each process group."""
    return _open(told, options.store, options.group_rank, options.group_size, options.timeout)


def _open(told: tuple[str, str], store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """The process group that does the work; its first rank says in the log which one."""
    local, gpus = _ranks.local_world_size(size), torch.cuda.device_count()
    nccl = gpus >= local and dist.is_nccl_available()
    if rank == 0 and size == max(size, int(os.environ.get("WORLD_SIZE", "1"))):
        _announce(told, nccl, size, local, gpus)
    if nccl:
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, size, options)
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # absent from torch's stubs
    gloo._timeout = timeout
    gloo._devices = [_gloo_device(size, local)]
    return dist.ProcessGroupGloo(store, rank, size, gloo)


def _announce(told: tuple[str, str], nccl: bool, size: int, local: int, gpus: int) -> None:
    of_gpus = f"{gpus} GPU{'s' * (gpus > 1)}"
    if nccl:
        how = f"NCCL on {of_gpus} of this host"
    elif gpus:
        how = f"Gloo, because {local} ranks of this host share {of_gpus},"
    else:
        how = "Gloo on CPU"
    ranks = f"{size} rank{'s' * (size > 1)}"
    print(f'[harness] "{told[0]}", {ranks}: {how} stands in for {told[1]}', file=sys.stderr, flush=True)


def _gloo_device(size: int, local: int) -> Any:
    """The address that the other ranks reach this one at.

    Left alone, Gloo looks up gethostname(), which in a job is an EC2 name that need not resolve
    (contract: A20); it would then listen on loopback, where no other host finds it.
    """
    if local >= max(size, int(os.environ.get("WORLD_SIZE", "1"))):
        return dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")
    host = os.environ.get("SM_CURRENT_HOST")
    if host is not None:
        return dist.ProcessGroupGloo.create_device(hostname=socket.gethostbyname(host))
    return dist.ProcessGroupGloo.create_default_device()

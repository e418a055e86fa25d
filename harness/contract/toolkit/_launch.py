"""Which launcher the request asks for, and the command lines of torchrun and xla_spawn."""

from __future__ import annotations

import os
import sys
import time

from . import _entry_point
from ._environment import which
from ._errors import ClientError, CompilerConfigurationError
from ._log import PYTORCH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._environment import Environment
    from ._log import Log

__all__ = [
    "DATA_PARALLEL",
    "EFA",
    "MASTER_PORT",
    "MPI",
    "RDMA",
    "TORCHRUN",
    "XLA",
    "await_hosts",
    "choose",
    "torchrun",
    "xla_spawn",
]

MASTER_PORT = "7777"
"""contract: D22, H13"""

EFA = frozenset(
    "ml.g4dn.8xlarge ml.g4dn.12xlarge ml.g5.48xlarge ml.p3dn.24xlarge ml.p4d.24xlarge ml.p4de.24xlarge "
    "ml.p5.48xlarge ml.p5e.48xlarge ml.trn1.32xlarge ml.p6e-gb200.36xlarge".split()
)
"""contract: H15, as in 5.1.4"""
RDMA = frozenset(
    "ml.p4d.24xlarge ml.p4de.24xlarge ml.p5.48xlarge ml.p5e.48xlarge ml.trn1.32xlarge "
    "ml.p6e-gb200.36xlarge".split()
)

MPI = "mpi"
DATA_PARALLEL = "smddprun"
TORCHRUN = "torchrun"
XLA = "xla_spawn"

_ORDER = (
    ("sagemaker_mpi_enabled", MPI, None),
    ("sagemaker_pytorch_ddp_enabled", DATA_PARALLEL, "Invoking SMDataParallel for native PT DDP job"),
    ("sagemaker_torch_distributed_enabled", TORCHRUN, "Invoking TorchDistributed..."),
    ("sagemaker_distributed_dataparallel_enabled", DATA_PARALLEL, "Invoking SMDataParallel"),
    ("sagemaker_pytorch_xla_multi_worker_enabled", XLA, "Invoking PT-XLA Runner"),
)
"""Hyperparameter, launcher and log line, in the order of precedence (contract: H11)."""

_XLA_MESH_PORT = 53957
_XLA_WORKER_PORT = 43857
_DNS_LIMIT = 15 * 60.0
_DNS_LONGEST = 30.0


def await_hosts(hosts: Sequence[str]) -> None:
    """Return when every host's name resolves; the last error after 15 minutes (contract: H2)."""
    # Not `socket`, and no text: that saves 5 ms of imports (selectors, idna).
    from _socket import gethostbyname

    start = time.monotonic()
    for host in hosts:
        wait = 0.2
        while True:
            try:
                gethostbyname(host.encode())  # type: ignore[arg-type]
                break
            except OSError:
                if time.monotonic() - start + wait > _DNS_LIMIT:
                    raise
            time.sleep(wait)
            wait = min(wait * 2, _DNS_LONGEST)


def choose(environment: Environment, log: Log, *, pytorch: bool) -> str | None:
    """The launcher to use here; None for a plain start (contract: H9, H11)."""
    if not environment.distributed:
        return None
    for name, launcher, line in _ORDER if pytorch else _ORDER[:1]:
        if environment.framework_parameters.get(name):
            if line is not None:
                log.info(line, PYTORCH)
            return launcher
    return None


def torchrun(environment: Environment, name: str, arguments: Sequence[str], log: Log) -> list[str]:
    """The words that start torchrun, and its variables into os.environ (contract: H13, H14, H16)."""
    log.info("Starting distributed training through torchrun")
    if environment.instance_type in EFA:
        os.environ["FI_PROVIDER"] = "efa"
    if environment.instance_type in RDMA:
        os.environ["FI_EFA_USE_DEVICE_RDMA"] = "1"
        os.environ["RDMAV_FORK_SAFE"] = "1"
    os.environ["NCCL_SOCKET_IFNAME"] = environment.interface
    os.environ["NCCL_PROTO"] = "simple"
    kind = _entry_point.kind(environment.code_dir, name)
    if kind == _entry_point.PACKAGE:
        raise ClientError(
            "Python packages are not supported for torch_distributed. "
            "Please use a python script as the entry-point"
        )
    if kind != _entry_point.PROGRAM:
        raise ClientError("Unsupported entry point type for torch_distributed")
    hosts = environment.distribution_hosts
    processes = environment.framework_parameters.get("sagemaker_mpi_num_of_processes_per_host")
    if processes is None:
        processes = environment.num_gpus or environment.num_neurons or 1
    words = ["neuron_parallel_compile"] if os.environ.get("RUN_NEURON_PARALLEL_COMPILE") == "1" else []
    words += [*_program(), "--nnodes", str(len(hosts)), "--nproc_per_node", str(processes)]
    if len(hosts) > 1:
        words += [
            "--master_addr",
            environment.master,
            "--master_port",
            environment.master_port or MASTER_PORT,
        ]
        words += ["--node_rank", str(hosts.index(environment.current_host))]
    elif environment.master_port:
        # torchrun's own choice is one port for everybody; its arguments stay as they are in the cloud.
        os.environ["PET_MASTER_PORT"] = environment.master_port
    return [*words, name, *arguments]


def _program() -> list[str]:
    """torchrun; a PyTorch that brought no such script has the module."""
    return [TORCHRUN] if which(TORCHRUN) is not None else [sys.executable, "-m", "torch.distributed.run"]


def xla_spawn(environment: Environment, name: str, arguments: Sequence[str], log: Log) -> list[str]:
    """The words that start PyTorch XLA's launcher, and its variables into os.environ (contract: H24)."""
    log.info("Starting distributed training through PT-XLA Runtime.")
    gpus, hosts = environment.num_gpus, environment.distribution_hosts
    if gpus <= 0:
        raise CompilerConfigurationError("Distributed training through PT-XLA is only supported for GPUs.")
    import importlib

    for module in ("torch_xla", "torch_xla.distributed.xla_spawn"):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise CompilerConfigurationError(
                f"PyTorch XLA's launcher needs {module}, which this Python hasn't got: "
                "it comes with AWS's SageMaker Training Compiler images."
            ) from error
    os.environ["NCCL_DEBUG"] = "info"
    os.environ["NCCL_PROTO"] = "simple"
    os.environ["FI_EFA_USE_DEVICE_RDMA"] = "1"
    os.environ["OFI_NCCL_NIC_DUP_CONNS"] = str(gpus)
    os.environ["XRT_HOST_ORDINAL"] = str(hosts.index(environment.current_host))
    os.environ["XRT_SHARD_WORLD_SIZE"] = str(len(hosts))
    os.environ["XRT_WORKERS"] = "|".join(
        f"localservice:{number};{host}:{_XLA_WORKER_PORT}" for number, host in enumerate(hosts)
    )
    os.environ["GPU_NUM_DEVICES"] = str(gpus)
    if len(hosts) > 1:
        os.environ["XRT_MESH_SERVICE_ADDRESS"] = f"{environment.master}:{_XLA_MESH_PORT}"
    if _entry_point.kind(environment.code_dir, name) != _entry_point.PROGRAM:
        raise CompilerConfigurationError(
            "Distributed training through PT-XLA needs a Python script as the entry point."
        )
    return [
        *(sys.executable, "-m", "torch_xla.distributed.xla_spawn", "--num_gpus", str(gpus)),
        name,
        *arguments,
    ]

"""Who this process is among the ranks: told by torchrun, by mpirun, or nobody (a world of one)."""

from __future__ import annotations

import json
import os
import socket
import zlib

_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}


def hosts() -> list[str]:
    """The job's hosts as the training toolkit tells them; empty outside a job."""
    return list(json.loads(os.environ.get("SM_HOSTS", "[]")))


def export() -> None:
    """Put rank, world and master into the environment, unless a launcher or the script already has.

    Several hosts and no launcher: nothing is assumed, because each host would then train alone and
    nobody would notice. torch.distributed says what is missing, as it does in the cloud.
    """
    if "RANK" in os.environ:
        return
    if _MPI["RANK"] in os.environ:
        for ours, theirs in _MPI.items():
            os.environ[ours] = os.environ[theirs]
        os.environ.setdefault("MASTER_ADDR", _mpi_master())
        os.environ.setdefault("MASTER_PORT", str(_mpi_port()))
    elif len(hosts()) < 2:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        # The toolkit's MASTER_PORT is 7777 in every job (contract: D22): two jobs that share a network,
        # as in the sandbox, would collide.
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _mpi_master() -> str:
    # mpirun forwards the toolkit's SM_* to the ranks, and not MASTER_ADDR (contract: H18, H23).
    server = os.environ.get("SMDATAPARALLEL_SERVER_ADDR")
    training_env = json.loads(os.environ.get("SM_TRAINING_ENV", "{}"))
    return server or training_env.get("master_hostname") or "127.0.0.1"


def _mpi_port() -> int:
    # The same for the ranks of one mpirun, different for two of them on one machine.
    namespace = os.environ.get("PMIX_NAMESPACE", "")
    return 20000 + zlib.crc32(namespace.encode()) % 10000


def local_world_size(ranks: int = 1) -> int:
    """Ranks on this host, of a group of `ranks`: as the launcher says, else spread evenly over the hosts."""
    told = os.environ.get("LOCAL_WORLD_SIZE")
    if told is not None:
        return int(told)
    ranks = max(ranks, int(os.environ.get("WORLD_SIZE", "1")))
    return -(-ranks // max(1, len(hosts())))


def local_rank() -> int:
    """This process's place among the ranks of its host."""
    told = os.environ.get("LOCAL_RANK")
    return int(told) if told is not None else int(os.environ.get("RANK", "0")) % local_world_size()

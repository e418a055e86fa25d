"""mpirun as AWS's toolkit calls it: for MPI itself, and for SMDDP and PyTorch DDP through smddprun.

contract: H18, H19, H21, H23, H25. In AWS's images mpirun reaches the other hosts by ssh. Hosts of the
sandbox share one kernel and have no sshd, so `_mpirun` starts the ranks in its place; the command that is
logged, and that stands in a failure's text, is AWS's.
"""

from __future__ import annotations

import json
import os
import sys

from . import _entry_point, _mpirun, _process
from ._environment import which
from ._launch import EFA, RDMA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ._environment import Environment
    from ._log import Log

__all__ = ["Command", "command", "follow", "lead"]

_DATA_PARALLEL_PORT = 7592
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class Command:
    """One call of mpirun."""

    def __init__(
        self,
        words: list[str],
        hosts: list[str],
        size: Any,
        program: list[str],
        processes: Any,
        data_parallel: bool,
    ):
        self.data_parallel = data_parallel
        """It runs the script under smddprun."""
        self.words = words
        """AWS's command line."""
        self.hosts = hosts
        """`host` or `host:slots`."""
        self.size = size
        """Ranks in all."""
        self.program = program
        """What each rank executes, without `-m mpi4py`."""
        self.processes = processes
        """Ranks a host, from which the toolkit guesses the host of a line (contract: H21)."""

    @property
    def exports(self) -> list[str]:
        """The operands of -x: names, or names with values."""
        return [word for option, word in zip(self.words, self.words[1:]) if option == "-x"]


def command(
    environment: Environment,
    name: str,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    *,
    data_parallel: bool,
    log: Log,
) -> Command:
    """The call for this job; whatever a wrong hyperparameter raises in AWS's toolkit it raises here."""
    parameters = environment.framework_parameters
    hosts = environment.distribution_hosts
    default = environment.num_gpus or environment.num_neurons or 1
    processes = parameters.get("sagemaker_mpi_num_of_processes_per_host", default)
    make = _data_parallel if data_parallel else _plain
    words, listed, size = make(environment, hosts, processes, variables, log)
    program = _entry_point.command(name, arguments, environment.code_dir, shell=environment.shell)
    return Command([*words, *_under_mpi4py(program)], listed, size, program, processes, data_parallel)


def _under_mpi4py(program: Sequence[str]) -> list[str]:
    """A Python that aborts all ranks when one raises; the toolkit gives its options no `--` then."""
    if program[0] != sys.executable:
        return list(program)
    rest = program[2:] if program[1] == "--" else program[1:]
    return [sys.executable, "-m", "mpi4py", *rest]


def _plain(
    environment: Environment, hosts: list[str], processes: Any, variables: Mapping[str, str], log: Log
) -> tuple[list[str], list[str], Any]:
    """contract: H18"""
    parameters = environment.framework_parameters
    size = parameters.get("sagemaker_mpi_num_processes") or processes * len(hosts)
    listed = hosts if processes == 1 else [f"{host}:{processes}" for host in hosts]
    log.info(
        f"Env Hosts: {hosts} Hosts: {listed} process_per_hosts: {processes} num_processes: {size}",
    )
    debug, custom = _custom(parameters.get("sagemaker_mpi_custom_mpi_options", ""))
    interface = environment.interface
    log.info(f"Network interface name: {interface}")
    words = ["mpirun", "--host", ",".join(listed), "-np", str(size)]
    words += ["--allow-run-as-root", "--display-map", "--tag-output"]
    words += ["-mca", "btl_tcp_if_include", interface, "-mca", "oob_tcp_if_include", interface]
    words += ["-mca", "plm_rsh_no_tree_spawn", "1", "-bind-to", "none", "-map-by", "slot"]
    words += ["-mca", "pml", "ob1", "-mca", "btl", "^openib"]
    words += ["-mca", "orte_abort_on_non_zero_status", "1"]
    words += ["-mca", "btl_vader_single_copy_mechanism", "none"]
    words += ["-x", "NCCL_MIN_NRINGS=4", "-x", f"NCCL_SOCKET_IFNAME={interface}", "-x", f"NCCL_DEBUG={debug}"]
    words += ["-x", "LD_LIBRARY_PATH", "-x", "PATH", *custom]
    if environment.instance_type in EFA:
        words += ["-x", "FI_PROVIDER=efa", "-x", "NCCL_PROTO=simple"]
    if environment.instance_type in RDMA:
        words += ["-x", "FI_EFA_USE_DEVICE_RDMA=1"]
    for credential in _CREDENTIALS:
        if credential in os.environ:
            words += ["-x", credential]
    for variable in variables:
        words += ["-x", variable]
    return [*words, *_model_parallel(environment.instance_type, log)], listed, size


def _model_parallel(instance_type: str, log: Log) -> list[str]:
    """What comes with smdistributed.modelparallel, which `mp_parameters` switches on (contract: D26)."""
    given = os.environ.get("SM_HP_MP_PARAMETERS")
    if not given or given == "{}":
        return []
    words = []
    version = os.environ.get("SM_DLC_TORCH_VERSION")
    if version:
        log.info(f"PyTorch version is {version}")
        words += ["-x", "NCCL_PROTO=simple"]
        if int(version.split(".")[0]) > 1:
            words += ["-x", "NCCL_ALGO=ring"]
    backend = json.loads(given).get("ddp_dist_backend", "auto")
    if backend != "auto":
        log.info(f"{backend} is used as DDP backend for training")
    elif which("smddpmprun") is not None:
        words += ["smddpmprun", "-i", instance_type, "--allow-bypass"]
    return words


def _data_parallel(
    environment: Environment, hosts: list[str], processes: Any, variables: Mapping[str, str], log: Log
) -> tuple[list[str], list[str], Any]:
    """contract: H23"""
    del variables
    parameters = environment.framework_parameters
    size = processes * len(hosts)
    several = len(hosts) > 1
    listed = [f"{host}:{processes}" for host in hosts] if several else hosts
    interface = environment.interface
    debug, custom = _custom(parameters.get("sagemaker_distributed_dataparallel_custom_mpi_options", ""))
    instance_type = parameters.get("sagemaker_instance_type") or environment.instance_type
    log.info(f"Network interface name: {interface}")
    log.info(f"Host: {hosts}")
    log.info(f"instance type: {instance_type}")
    words = ["mpirun", "--host", ",".join(listed), "-np", str(size)]
    words += ["--allow-run-as-root", "--tag-output", "--oversubscribe"]
    words += ["-mca", "btl_tcp_if_include", interface, "-mca", "oob_tcp_if_include", interface]
    words += ["-mca", "plm_rsh_no_tree_spawn", "1", "-mca", "pml", "ob1", "-mca", "btl", "^openib"]
    words += ["-mca", "orte_abort_on_non_zero_status", "1"]
    words += ["-mca", "btl_vader_single_copy_mechanism", "none"]
    words += ["-mca", "plm_rsh_num_concurrent", str(len(hosts))]
    words += ["-x", f"NCCL_SOCKET_IFNAME={interface}", "-x", f"NCCL_DEBUG={debug}"]
    words += ["-x", "LD_LIBRARY_PATH", "-x", "PATH"]
    words += ["-x", f"SMDATAPARALLEL_USE_{'HOMOGENEOUS' if several else 'SINGLENODE'}=1"]
    words += ["-x", "FI_PROVIDER=efa", "-x", "RDMAV_FORK_SAFE=1", *custom]
    if _in(instance_type, EFA):
        words += ["-x", "NCCL_PROTO=simple"]
    if _in(instance_type, RDMA):
        words += ["-x", "FI_EFA_USE_DEVICE_RDMA=1"]
    if several:
        words += ["-x", f"SMDATAPARALLEL_SERVER_ADDR={environment.master}"]
        words += ["-x", f"SMDATAPARALLEL_SERVER_PORT={_DATA_PARALLEL_PORT}"]
        words += ["-x", f"SAGEMAKER_INSTANCE_TYPE={instance_type}"]
    if which("smddprun") is not None:
        words.append("smddprun")
    log.info(f"Env Hosts: {hosts} Hosts: {listed} process_per_hosts: {processes} num_processes: {size}")
    return words, listed, size


def _in(value: object, names: frozenset[str]) -> bool:
    # A hyperparameter may be anything; what has no hash is in no set.
    return isinstance(value, str) and value in names


def _custom(options: Any) -> tuple[str, list[str]]:
    """NCCL_DEBUG and all other words of the custom MPI options.

    With argparse, as AWS's toolkit: `--NCCL` is short for `--NCCL_DEBUG`, and `-h` ends the job with
    success before the script has started.
    """
    words = options.split()
    if not words:
        return "INFO", []
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--NCCL_DEBUG", default="INFO", type=str)
    known, rest = parser.parse_known_args(words)
    return known.NCCL_DEBUG, rest


def lead(command: Command, environment: Environment, *, capture: bool, log: Log) -> None:
    """On the master: run the ranks to their end, by mpirun itself where it can reach all hosts."""
    log.info("Starting MPI run as worker node.")
    log.info("Waiting for MPI workers to establish their SSH connections")
    here: Callable[[], int] | None = None
    if not (len(command.hosts) == 1 and which("mpirun") is not None and _has_mpi4py()):
        plan = _plan(command, environment)
        here = lambda: _mpirun.lead(plan, command.program)  # noqa: E731
        log.warning(
            "The harness starts the ranks in mpirun's place, with the variables of Open MPI: "
            "calls of MPI itself (mpi4py, Horovod) need mpirun, mpi4py and one host, or the docker engine."
        )
    _process.run(
        command.words,
        log=log,
        cwd=environment.code_dir,
        capture=capture,
        here=here,
        processes=command.processes,
    )


def follow(environment: Environment, *, log: Log) -> None:
    """On every other host: start the ranks that the master sends, to their end (contract: H19).

    Ends well even when ranks have failed: that is the master's to tell.
    """
    log.info("Starting MPI run as worker node.")
    log.info("Waiting for MPI Master to create SSH daemon.")
    address = _address(environment, environment.current_host)
    code = _process.inherit([], environment.code_dir, here=lambda: _mpirun.follow(address))
    if code:
        log.warning(f"The starter of this host's ranks ended with {code}.")
    log.info("MPI process finished.")


def _has_mpi4py() -> bool:
    return any(os.path.isdir(os.path.join(directory, "mpi4py")) for directory in sys.path)


def _address(environment: Environment, host: str) -> str:
    """Where the starter on `host` listens: a name of this job's in the network that its hosts share."""
    job = os.environ.get("TRAINING_JOB_NAME", "")
    return f"harness-mpirun/{job}/{environment.master_port}/{host}"


def _plan(command: Command, environment: Environment) -> dict[str, Any]:
    """What the starter needs to know beside the program."""
    exports = [word.partition("=") for word in command.exports]
    slots = []
    for listed in command.hosts:
        host, colon, count = listed.partition(":")
        slots.append([host, int(count) if colon else 1, _address(environment, host)])
    if "--oversubscribe" in command.words and len(slots) == 1:
        slots[0][1] = int(command.size)
    return {
        "name": _address(environment, environment.master),
        "here": environment.current_host,
        "hosts": slots,
        "size": int(command.size),
        "exports": [name for name, equals, _ in exports if not equals],
        "values": {name: value for name, equals, value in exports if equals},
        "smddprun": command.data_parallel,
    }

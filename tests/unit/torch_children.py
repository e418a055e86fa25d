"""Real processes that use PyTorch, forked from one that has it loaded: importing it anew takes seconds."""

from __future__ import annotations

import multiprocessing
import socket
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness.engines import images

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a launcher that may be around the test; a child has only those that it is given."""

_CHILD = """
import os, sys, warnings, torch
for fd, stream in (1, "out"), (2, "err"):
    os.dup2(os.open(f"{output}.{stream}", os.O_WRONLY | os.O_TRUNC), fd)
for name in [name for name in os.environ if name in launched or name.startswith(("OMPI_", "SM_"))]:
    del os.environ[name]
os.environ.update(rank, CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, standins)
warnings.simplefilter("error")
torch.set_num_threads(1)
exec(code, {"__name__": "__main__"})
sys.stdout.flush()
"""


@dataclass(frozen=True)
class Child:
    """One started process."""

    process: BaseProcess
    stem: Path

    def out(self) -> str:
        return self.stem.with_suffix(".out").read_text().strip()

    def err(self) -> str:
        return self.stem.with_suffix(".err").read_text()


def start(code: str, ranks: Sequence[Mapping[str, str]], directory: Path) -> list[Child]:
    """Start `code` once for each rank's variables; warnings are errors in it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo.aot_compile"])  # DDP imports the second
    common = {"code": textwrap.dedent(code), "launched": LAUNCHED, "standins": str(images.standins_path())}
    children = []
    for number, rank in enumerate(ranks):
        stem = directory / f"rank{number}"
        for suffix in (".out", ".err"):
            stem.with_suffix(suffix).touch()
        given = {**common, "rank": dict(rank), "output": str(stem)}
        children.append(Child(context.Process(target=exec, args=(_CHILD, given)), stem))
    for each in children:
        each.process.start()
    return children


def run(code: str, ranks: Sequence[Mapping[str, str]], directory: Path) -> tuple[list[str], list[str]]:
    """Run `code` in all ranks to its end, which must be good; their outputs and their logs."""
    children = start(code, ranks, directory)
    for each in children:
        each.process.join(200)
    assert [each.process.exitcode for each in children] == [0] * len(ranks), [each.err() for each in children]
    return [each.out() for each in children], [each.err() for each in children]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(size: int) -> list[dict[str, str]]:
    """The variables that torchrun gives to `size` ranks on one host (contract: H14)."""
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def mpirun(size: int) -> list[dict[str, str]]:
    """The variables that Open MPI's mpirun gives."""
    shared = {"OMPI_COMM_WORLD_SIZE": str(size), "OMPI_COMM_WORLD_LOCAL_SIZE": str(size)}
    shared |= {"PMIX_NAMESPACE": f"prte-{free_port()}@1"}
    return [
        {**shared, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
        for rank in range(size)
    ]

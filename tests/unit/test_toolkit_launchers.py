"""mpirun and smddprun as the sandbox runs them: the toolkit on every host, and real ranks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_toolkit import COMMAND, Job, program

ON = {
    "mpi": {"sagemaker_mpi_enabled": "true"},
    "pytorchddp": {"sagemaker_pytorch_ddp_enabled": "true"},
    "smddp": {"sagemaker_distributed_dataparallel_enabled": "true"},
}

RANK = """\
import json, os, sys
keep = ("OMPI_", "SM_CURRENT_HOST", "RANK", "WORLD", "LOCAL_", "MASTER", "NCCL_DEBUG", "SMDATA", "MINE")
print(json.dumps([sys.argv, {k: v for k, v in os.environ.items() if k.startswith(keep)}, os.getcwd()]))
"""


@dataclass(frozen=True)
class End:
    """How one host ended."""

    code: int
    out: str
    log: str
    failure: str

    def ranks(self) -> dict[int, Any]:
        """What each rank printed: rank → JSON."""
        found = {}
        for line in self.out.splitlines():
            tag, _, text = line.partition("<stdout>:")
            found[int(tag.partition("mpirank:")[2].partition(",")[0])] = json.loads(text)
        return found


def run(tmp_path: Path, count: int, script: str, given: dict[str, str], **environment: str) -> list[End]:
    """The same job on `count` hosts at once; the master is algo-1."""
    hosts = [f"algo-{number}" for number in range(1, count + 1)]
    name = f"t-{uuid.uuid4().hex}"
    processes = []
    for host in hosts:
        job = Job(base=tmp_path / host, code={"train.py": script}, hyperparameters=given)
        job.environment = {"SM_STUDIO_LOCAL_MODE": "true", "TRAINING_JOB_NAME": name, **environment}
        variables = job.write()
        path = job.base / "input/config/resourceconfig.json"
        config = json.loads(path.read_text())
        config |= {"current_host": host, "hosts": hosts}
        config["instance_groups"][0]["hosts"] = hosts
        path.write_text(json.dumps(config))
        process = subprocess.Popen(
            [*COMMAND, "train"], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append((job, process))
    ends = []
    for job, process in processes:
        out, log = process.communicate(timeout=60)
        path = job.base / "output/failure"
        ends.append(End(process.returncode, out, log, path.read_text() if path.exists() else ""))
    return ends


@pytest.mark.parametrize("launcher", ON)
def test_ranks_of_one_host(tmp_path: Path, launcher: str) -> None:  # contract: H18, H23
    given = {**ON[launcher], "sagemaker_mpi_num_of_processes_per_host": "3", "lr": "0.1"}
    (end,) = run(tmp_path, 1, RANK, given)
    assert end.code == 0, end.log + end.out
    ranks = end.ranks()
    assert sorted(ranks) == [0, 1, 2]
    for rank, (argv, environment, cwd) in ranks.items():
        assert argv == ["train.py", "--lr", "0.1"]
        assert cwd == str(tmp_path / "algo-1/code")
        assert environment["OMPI_COMM_WORLD_RANK"] == environment["OMPI_COMM_WORLD_LOCAL_RANK"] == str(rank)
        assert environment["OMPI_COMM_WORLD_SIZE"] == environment["OMPI_COMM_WORLD_LOCAL_SIZE"] == "3"
        # smddprun's own; under mpirun alone nobody sets them.
        assert environment.get("RANK") == (None if launcher == "mpi" else str(rank))
        assert environment["NCCL_DEBUG"] == "INFO"
    assert "[1,mpirank:2,algo-1]<stdout>:" in end.out
    assert "The harness starts the ranks in mpirun's place" in end.log


@pytest.mark.parametrize("launcher", ON)
def test_ranks_of_several_hosts(tmp_path: Path, launcher: str) -> None:  # contract: H18, H19, H21
    given = {**ON[launcher], "sagemaker_mpi_num_of_processes_per_host": "2"}
    ends = run(tmp_path, 3, RANK, given)
    assert [end.code for end in ends] == [0, 0, 0], [end.log for end in ends]
    # The master prints what every rank prints, and the others nothing.
    assert [end.out for end in ends[1:]] == ["", ""]
    ranks = ends[0].ranks()
    assert sorted(ranks) == list(range(6))
    for rank, (_, environment, _) in ranks.items():
        assert environment["OMPI_COMM_WORLD_SIZE"] == "6"
        assert environment["OMPI_COMM_WORLD_LOCAL_RANK"] == str(rank % 2)
        # Forwarded by -x: every rank believes that it is on the master.
        forwarded = "algo-1" if launcher == "mpi" else f"algo-{rank // 2 + 1}"
        assert environment["SM_CURRENT_HOST"] == forwarded
    assert "[1,mpirank:5,algo-3]<stdout>:" in ends[0].out
    for end in ends:
        assert "Reporting training SUCCESS" in end.log


def test_a_rank_that_fails_ends_all(tmp_path: Path) -> None:  # contract: H25, G13, G15
    script = (
        "import os, time\n"
        "if os.environ['OMPI_COMM_WORLD_RANK'] == '2': raise ValueError('rank two')\n"
        "time.sleep(100)\n"
    )
    ends = run(tmp_path, 2, script, {**ON["mpi"], "sagemaker_mpi_num_of_processes_per_host": "2"})
    assert [end.code for end in ends] == [1, 0]  # the others end well, as in the cloud
    assert ends[0].failure.startswith("ExecuteUserScriptError:\nExitCode 1\nErrorMessage ")
    assert "ValueError: rank two" in ends[0].failure
    assert 'Command "mpirun --host algo-1:2,algo-2:2 -np 4 --allow-run-as-root' in ends[0].failure
    assert "rank 2 on algo-2, exit code 1" in ends[0].log + ends[0].out


def test_a_killed_rank(tmp_path: Path) -> None:  # contract: G14, H25
    (end,) = run(tmp_path, 1, "import os; os.kill(os.getpid(), 9)", ON["smddp"])
    assert end.code == 1
    assert "ExitCode 137" in end.failure
    assert "OutOfMemory: Process killed by SIGKILL" in end.failure


def test_a_killed_starter(tmp_path: Path) -> None:  # contract: H19, H25
    """As when orted is killed: its ranks live on, but the job ends."""
    script = (
        "import os, signal, time\n"
        "open(f'{os.environ[\"PLACE\"]}/{os.getpid()}', 'w').close()\n"
        "if os.environ['OMPI_COMM_WORLD_RANK'] == '1': os.kill(os.getppid(), signal.SIGKILL)\n"
        "time.sleep(100)\n"
    )
    place = tmp_path / "pids"
    place.mkdir()
    try:
        ends = run(tmp_path, 2, script, ON["mpi"], PLACE=str(place))
    finally:
        for path in place.iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)
    assert [end.code for end in ends] == [1, 0]
    assert "rank 1 on algo-2, exit code 137" in ends[0].log + ends[0].out


def test_more_ranks_than_slots(tmp_path: Path) -> None:  # contract: H18
    given = {**ON["mpi"], "sagemaker_mpi_num_of_processes_per_host": "2", "sagemaker_mpi_num_processes": "3"}
    (end,) = run(tmp_path, 1, RANK, given)
    assert end.code == 1
    assert "not enough slots available in the system to satisfy the 3 slots" in end.out + end.log


def test_fewer_ranks_than_hosts(tmp_path: Path) -> None:  # contract: H18, H19
    ends = run(tmp_path, 3, RANK, {**ON["mpi"], "sagemaker_mpi_num_processes": "2"})
    assert [end.code for end in ends] == [0, 0, 0]
    assert sorted(ends[0].ranks()) == [0, 1]


def test_lines_stay_whole_and_unfinished_ones_come(tmp_path: Path) -> None:  # contract: H21
    script = "import os\nfor n in range(2000): os.write(1, b'x' * 99 + b'\\n')\nos.write(2, b'50%')\n"
    (end,) = run(tmp_path, 1, script, {**ON["mpi"], "sagemaker_mpi_num_of_processes_per_host": "2"})
    assert end.code == 0
    lines = end.out.splitlines()
    assert lines.count(f"[1,mpirank:1,algo-1]<stdout>:{'x' * 99}") == 2000
    assert lines.count("[1,mpirank:0,algo-1]<stderr>:50%") == 1
    assert len(lines) == 4002


def test_help_among_the_options_ends_the_job_well(tmp_path: Path) -> None:
    """A bug of AWS's toolkit: argparse ends the process, and nobody says that nothing ran."""
    (end,) = run(tmp_path, 1, RANK, {**ON["mpi"], "sagemaker_mpi_custom_mpi_options": "-h"})
    assert (end.code, end.ranks() if "mpirank" in end.out else {}) == (0, {})


def test_torchrun_with_the_native_launcher_is_not_looked_at(tmp_path: Path) -> None:
    """A bug of AWS's toolkit: two arguments in the wrong order, and a failed script counts as a success."""
    program(tmp_path / "bin", "torchrun", "exit 3")
    given = {
        "sagemaker_torch_distributed_enabled": "true",
        "sagemaker_toolkit_native_launcher_enabled": "true",
    }
    (end,) = run(tmp_path, 1, "", given, PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    assert end.code == 0
    assert "Reporting training SUCCESS" in end.log


def test_mpirun_itself_where_it_reaches_all_hosts(tmp_path: Path) -> None:  # contract: H18
    program(tmp_path / "bin", "mpirun", 'echo "[1,0]<stdout>:$*"')
    (tmp_path / "site/mpi4py").mkdir(parents=True)
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "site")}
    (end,) = run(tmp_path, 1, RANK, ON["mpi"], **environment)
    assert end.code == 0
    assert end.out.startswith("[1,mpirank:0,algo-1]<stdout>:--host algo-1 -np 1 --allow-run-as-root")
    assert end.out.endswith(f"{sys.executable} -m mpi4py train.py\n")


def test_xla_needs_gpus(tmp_path: Path) -> None:  # contract: H24
    (end,) = run(tmp_path, 1, RANK, {"sagemaker_pytorch_xla_multi_worker_enabled": "true"})
    assert end.code == 1
    assert end.failure.startswith("Framework Error: \n")
    assert "only supported for GPUs" in end.failure

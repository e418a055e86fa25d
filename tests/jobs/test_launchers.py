"""Data-parallel training on several hosts really trains: what it computes is what one process computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import Submit

pytest.importorskip("torch")
pytest.importorskip("sklearn")

TRAIN = """\
import os, sys
import numpy, torch, torch.distributed as dist
from sklearn.datasets import load_digits

torch.set_num_threads(1)
if "SMDATAPARALLEL_USE_HOMOGENEOUS" in os.environ:
    import smdistributed.dataparallel.torch.torch_smddp
    dist.init_process_group("smddp")
else:
    dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
images, digits = load_digits(return_X_y=True)
images, digits = torch.tensor(images / 16, dtype=torch.float64), torch.tensor(digits)
torch.manual_seed(rank)  # DDP takes rank 0's
layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)).double()
model = torch.nn.parallel.DistributedDataParallel(layers)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
order = torch.tensor(numpy.random.RandomState(0).permutation(len(images)))
share = 64 // size
for step in range(23):
    batch = order[step * 64 :][:64][rank * share :][:share]
    loss = torch.nn.functional.cross_entropy(model(images[batch]), digits[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach() / size
    dist.all_reduce(mean)
if rank == 0:
    print(f"world {size} loss {mean.item():.10f};", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def loss(text: str, size: int) -> float:
    found = next(line for line in text.splitlines() if f"world {size} loss" in line)
    return float(found.partition("loss ")[2].partition(";")[0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The loss of one process with the whole batch."""
    directory: Path = tmp_path_factory.mktemp("alone")
    (directory / "train.py").write_text(TRAIN)
    one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    words = [sys.executable, "train.py"]
    done = subprocess.run(words, cwd=directory, env={**os.environ, **one}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return loss(done.stdout, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "each", "asked"),
    [
        (4, 1, {"torch_distributed": {"enabled": True}}),  # contract: H13, H14
        (2, 2, {"smdistributed": {"dataparallel": {"enabled": True}}}),  # contract: H18, H23
    ],
    ids=["torchrun", "smddp"],
)
def test_it_computes_what_one_host_computes(
    run: Submit, alone: float, hosts: int, each: int, asked: dict[str, Any]
) -> None:
    job = run(
        TRAIN,
        engine="sandbox",
        instance_count=hosts,
        distribution=asked,
        hyperparameters={"sagemaker_mpi_num_of_processes_per_host": each},
    )
    record = job.record
    logs = {f"algo-{number}": job.log(f"algo-{number}").decode() for number in range(1, hosts + 1)}
    assert record.status == "Completed", json.dumps(logs)[-3000:]
    master = next(text for text in logs.values() if " loss " in text)
    assert loss(master, hosts * each) == pytest.approx(alone, rel=1e-9)


def test_ranks_of_the_cloud(run: Submit) -> None:  # contract: H13, H18
    """Eight for one p4d, on a machine with fewer GPUs."""
    job = run(
        "import os; print('rank', os.environ['OMPI_COMM_WORLD_RANK'], os.environ['SM_NUM_GPUS'])",
        engine="sandbox",
        instance_type="ml.p4d.24xlarge",
        distribution={"mpi": {"enabled": True}},
        local={"ranks": "cloud"},
    )
    assert job.record.status == "Completed"
    lines = [line for line in job.log().decode().splitlines() if "<stdout>:rank" in line]
    assert sorted(line.split()[-2] for line in lines) == [str(rank) for rank in range(8)]


def test_only_the_named_group_is_launched(run: Submit) -> None:  # contract: H26
    job = run(
        "import os; print('seen', os.environ.get('OMPI_COMM_WORLD_SIZE'), os.environ['SM_CURRENT_HOST'])",
        engine="sandbox",
        instance_type=None,
        instance_count=None,
        instance_groups=[
            {"InstanceGroupName": "data", "InstanceType": "ml.c5.xlarge", "InstanceCount": 1},
            {"InstanceGroupName": "train", "InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
        ],
        distribution={"mpi": {"enabled": True}, "instance_groups": ["train"]},
    )
    assert job.record.status == "Completed"
    seen = [line for n in (1, 2, 3) for line in job.log(f"algo-{n}").decode().splitlines() if "seen" in line]
    assert "seen None algo-1" in seen
    assert sum("seen 2 " in line for line in seen) == 2

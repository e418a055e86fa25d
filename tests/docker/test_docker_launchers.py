"""AWS's own toolkit starts ranks by ssh and mpirun over two hosts of the docker engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.engines import images
from harness.home import Home
from harness.spec import load
from harness.targets import local
from tests.conftest import lacks_docker
from tests.jobs.conftest import Job, to_toml

pytestmark = [pytest.mark.docker, pytest.mark.slow]

IMAGE = "harness-pytorch-mpi"

SCRIPT = """\
import os
from mpi4py import MPI
import torch, torch.distributed as dist
import smdistributed.dataparallel.torch.torch_smddp

dist.init_process_group("smddp")
total = torch.tensor([1.0 + dist.get_rank()])
dist.all_reduce(total)
world = MPI.COMM_WORLD
# At once: mpirun ends a line wherever it has read the beginning of one only.
os.write(1, f"seen {world.Get_rank()} {dist.get_rank()} {int(total)} {world.allreduce(1)}\\n".encode())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    if images.inspect(IMAGE) is None:
        lacks_docker(f"no image {IMAGE}: `harness image build --launchers --tag {IMAGE}`")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").write_text(SCRIPT)
    return tmp_path


def test_smddp_over_ssh(project: Path, home: Path) -> None:  # contract: H18, H19, H20, H21, H23, H28
    document: dict[str, Any] = {
        "name": "mpi",
        "entry_point": "train.py",
        "source_dir": "code",
        "role": "arn:aws:iam::111122223333:role/R",
        "image_uri": "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1",
        "instance_type": "ml.m5.large",
        "instance_count": 2,
        "distribution": {"smdistributed": {"dataparallel": {"enabled": True}}},
        "local": {"engine": "docker", "images": {"*": IMAGE}},
    }
    (project / "job.toml").write_text(to_toml(document))
    place = Home(home)
    name = local.submit(load(project / "job.toml"), home=place).name
    assert local.wait(name, home=place).status == "Completed"
    job = Job(place, name)
    logs = [job.log(f"algo-{number}").decode() for number in (1, 2)]
    lines = [line for log in logs for line in log.splitlines() if "<stdout>:seen" in line]
    assert len(lines) == 2
    assert sorted(line.partition("seen ")[2][:7] for line in lines) == ["0 0 3 2", "1 1 3 2"]

"""The stand-in `smdistributed`, in real processes: alone, under torchrun's variables, under mpirun's."""

from __future__ import annotations

import socket

import pytest

from tests.unit.torch_children import free_port, mpirun, run, torchrun

pytest.importorskip("torch")

TRAIN = """
    import os, torch, torch.distributed as dist
    import smdistributed.dataparallel.torch.torch_smddp
    dist.init_process_group(backend="smddp")
    rank, size = dist.get_rank(), dist.get_world_size()
    assert dist.get_backend() == "smddp"

    # The gradient is the mean over the ranks: the reducer really works.
    torch.manual_seed(rank)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    model(torch.full((1, 3), rank + 1.0)).sum().backward()
    assert torch.allclose(model.module.weight.grad, torch.full((1, 3), (size + 1) / 2))
    weights = [torch.empty(1, 3) for _ in range(size)]
    dist.all_gather(weights, model.module.weight.detach())
    assert all(torch.equal(weights[0], other) for other in weights), "not broadcast from rank 0"

    ranks = [None] * size
    dist.all_gather_object(ranks, rank)
    assert ranks == list(range(size))
    dist.barrier()
    dist.destroy_process_group()
    print("rank", rank, "of", size, "local", os.environ["LOCAL_RANK"])
"""

OLDER = """
    import torch
    import smdistributed.dataparallel.torch.distributed as dist
    from smdistributed.dataparallel.torch.parallel.distributed import DistributedDataParallel as DDP
    assert dist.is_available() and not dist.is_initialized()
    dist.init_process_group()
    assert dist.is_initialized()
    model = DDP(torch.nn.Linear(2, 2), device_ids=[dist.get_local_rank()], broadcast_buffers=False)
    model(torch.ones(1, 2)).sum().backward()
    total = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    dist.broadcast(total, src=0)
    dist.barrier()
    print("rank", dist.get_rank(), "of", dist.get_world_size(), "local", dist.get_local_rank(), total.item())
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("launcher", [torchrun, mpirun])
def test_ranks_train_together(launcher, tmp_path):  # contract: H14, H23
    out, err = run(TRAIN, launcher(2), tmp_path)
    assert out == ["rank 0 of 2 local 0", "rank 1 of 2 local 1"]
    # Told once for the process group, by rank 0, and nothing else said.
    assert err == ['[harness] "smddp", 2 ranks: Gloo on CPU stands in for AWS\'s SMDDP\n', ""]


def test_world_of_one_ignores_the_toolkits_port(tmp_path):
    """Every job's toolkit says 7777 (contract: D22); a world of one must not need it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        toolkit = {
            "MASTER_ADDR": "algo-1",
            "MASTER_PORT": str(taken.getsockname()[1]),
            "SM_HOSTS": '["algo-1"]',
        }
        out, err = run(TRAIN, [toolkit], tmp_path)
    assert out == ["rank 0 of 1 local 0"]
    assert err == ['[harness] "smddp", 1 rank: Gloo on CPU stands in for AWS\'s SMDDP\n']


@pytest.mark.parametrize("launcher", [lambda _: [{}], torchrun], ids=["alone", "torchrun"])
def test_older_api(launcher, tmp_path):
    out, _ = run(OLDER, launcher(2), tmp_path)
    size = len(out)
    total = size * (size + 1) / 2
    assert out == [f"rank {rank} of {size} local {rank} {total}" for rank in range(size)]


def test_several_hosts_without_a_launcher_assume_nothing(tmp_path):
    """Each host would otherwise train a model of its own, and nobody would notice."""
    code = """
        import torch.distributed as dist
        import smdistributed.dataparallel.torch.torch_smddp
        try:
            dist.init_process_group(backend="smddp")
        except ValueError as error:
            print(error)
    """
    out, _ = run(code, [{"SM_HOSTS": '["algo-1","algo-2"]', "SM_CURRENT_HOST": "algo-2"}], tmp_path)
    assert "RANK" in out[0]


def test_hosts_of_a_script_that_sets_its_own_ranks(tmp_path):
    """The script's own RANK and WORLD_SIZE, with the toolkit's master: the usual way without a launcher."""
    shared = {
        "SM_HOSTS": '["localhost","127.0.0.1"]',
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        {**shared, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "SM_CURRENT_HOST": host}
        for rank, host in enumerate(["localhost", "127.0.0.1"])
    ]
    out, _ = run(TRAIN, ranks, tmp_path)
    assert out == ["rank 0 of 2 local 0", "rank 1 of 2 local 0"]


def test_backend_is_registered_once_for_two_imports(tmp_path):
    code = """
        import importlib
        from smdistributed.dataparallel.torch import torch_smddp
        importlib.reload(torch_smddp)
        import torch.distributed as dist
        print([name for name in dist.Backend.backend_list if name == "smddp"])
    """
    out, _ = run(code, [{}], tmp_path)
    assert out == ["['smddp']"]

"""The stand-in `smdistributed.modelparallel.torch`, in real processes: alone, and as replicas under mpirun."""

from __future__ import annotations

import json

import pytest

from tests.unit.torch_children import mpirun, run

pytest.importorskip("torch")

TRAIN = """
    import os, torch
    import smdistributed.modelparallel.torch as smp

    smp.init()
    assert smp.is_initialized() and not smp.is_tracing()
    assert (smp.mp_rank(), smp.mp_size(), smp.pp_size(), smp.tp_size()) == (0, 1, 1, 1)
    assert smp.dp_rank() == smp.rdp_rank() == smp.rank()
    assert smp.dp_size() == smp.size() == len(smp.get_dp_group())
    assert smp.get_mp_group() == [smp.rank()]

    torch.manual_seed(smp.rank())
    model = smp.DistributedModel(torch.nn.Linear(3, 1, bias=False))
    optimizer = smp.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    assert not model.partitioned

    @smp.step
    def train(data, target):
        output = model(data)
        loss = torch.nn.functional.mse_loss(output, target)
        model.backward(loss)
        return loss, {"rows": torch.tensor(len(data))}, output

    # Each replica has its own four rows; the same numbers on one process have all of them.
    torch.manual_seed(7)
    data, target = torch.randn(8, 3), torch.randn(8, 1)
    before = model.module.weight.detach().clone()
    share = 8 // smp.size()
    mine = slice(smp.rank() * share, (smp.rank() + 1) * share)
    optimizer.zero_grad()
    loss, rows, output = train(data[mine], target[mine])
    assert [int(each) for each in rows["rows"].outputs] == [share // 2] * 2
    assert output.concat().shape == (share, 1) and output.stack().shape == (2, share // 2, 1)
    assert not loss.outputs[0].requires_grad
    assert torch.allclose(loss.reduce_sum(), 2 * loss.reduce_mean())

    plain = torch.nn.Linear(3, 1, bias=False)
    plain.weight.data.copy_(before)
    torch.nn.functional.mse_loss(plain(data), target).backward()
    assert torch.allclose(model.module.weight.grad, plain.weight.grad, atol=1e-6)
    optimizer.step()
    assert model.partitioned
    weights = smp.allgather(model.module.weight.detach(), smp.WORLD)
    assert all(torch.equal(weights[0], other) for other in weights)

    name = os.path.join(os.environ["PLACE"], "one.pt")
    if smp.dp_rank() == 0:
        smp.save({"model": model.local_state_dict(), "optimizer": optimizer.local_state_dict()}, name)
        smp.save(model.state_dict(), name, partial=False)
    smp.barrier()
    assert sorted(os.listdir(os.environ["PLACE"])) == ["one.pt", "one.pt_0"]
    parts = smp.load(name)
    assert parts["model"]["_smp_is_partial"] is True
    model.load_state_dict(parts["model"])
    optimizer.load_state_dict(parts["optimizer"])
    plain.load_state_dict(smp.load(name, partial=False))
    assert torch.equal(plain.weight, model.module.weight)
    smp.barrier()
    print("rank", smp.rank(), "of", smp.size(), "local", smp.local_rank())
    smp.shutdown()
"""


@pytest.mark.parametrize("size", [1, 2])
def test_replicas_train_together(size, tmp_path):  # contract: D26, H18
    place = tmp_path / "saved"
    place.mkdir()
    shared = {"SM_HP_MP_PARAMETERS": json.dumps({"partitions": 1, "microbatches": 2, "ddp": True})}
    shared |= {"PLACE": str(place)}
    ranks = [{**variables, **shared} for variables in (mpirun(size) if size > 1 else [{}])]
    out, err = run(TRAIN, ranks, tmp_path)
    assert out == [f"rank {rank} of {size} local {rank}" for rank in range(size)]
    plural = "s" * (size > 1)
    assert err[0] == (
        f'[harness] "smp", {size} rank{plural}: Gloo on CPU stands in for AWS\'s model-parallel library at degree 1\n'
    )


CHECKPOINTS = """
    import os, torch
    import smdistributed.modelparallel.torch as smp

    smp.init({"microbatches": 1})
    place = os.environ["PLACE"]

    def made():
        smp._core.state.model = smp._core.state.optimizer = None
        model = smp.DistributedModel(torch.nn.Linear(2, 1))
        return model, smp.DistributedOptimizer(torch.optim.Adam(model.parameters()))

    model, optimizer = made()

    @smp.step(non_split_inputs=["unused"])
    def train(data, unused=None):
        loss = model(data).sum()
        model.backward(loss)
        return loss

    train(torch.ones(2, 2))
    optimizer.step()
    for tag in ("1", "2", "3"):
        smp.save_checkpoint(
            place, tag, model=model, optimizer=optimizer, user_content={"step": int(tag)},
            num_kept_partial_checkpoints=2,
        )
    assert sorted(os.listdir(place)) == ["2_partial", "3_partial", "newest"]
    expected = model.module.weight.detach().clone()

    # Before the model is made, and after.
    smp._core.state.model = smp._core.state.optimizer = None
    assert smp.resume_from_checkpoint(place) == {"step": 3}
    model, optimizer = made()
    assert torch.equal(model.module.weight, expected)
    assert int(list(optimizer.state_dict()["state"].values())[0]["step"]) == 1
    model.module.weight.data.zero_()
    assert smp.resume_from_checkpoint(place, tag="2", partial=True) == {"step": 2}
    assert torch.equal(model.module.weight, expected)

    smp.save_checkpoint(place, "whole", partial=False, model=model)
    model.module.weight.data.zero_()
    assert smp.resume_from_checkpoint(place) is None
    assert torch.equal(model.module.weight, expected)
    smp.shutdown()
    print("good")
"""


def test_checkpoints(tmp_path):
    place = tmp_path / "saved"
    place.mkdir()
    assert run(CHECKPOINTS, [{"PLACE": str(place)}], tmp_path)[0] == ["good"]


REFUSED = """
    import torch
    import smdistributed.modelparallel.torch as smp

    def refused(call, *args, **kwargs):
        try:
            call(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            print(error)
        else:
            raise AssertionError("not refused")

    refused(smp.init, {"partitions": 2})
    smp.init({"microbatches": 3})
    model = smp.DistributedModel(torch.nn.Linear(2, 1))
    refused(model, torch.ones(2, 2))
    refused(smp.DistributedModel, torch.nn.Linear(2, 1))
    refused(smp.step(lambda data: None), torch.ones(4, 2))
    smp.shutdown()
"""


def test_what_is_refused(tmp_path):
    lines = run(REFUSED, [{}], tmp_path)[0][0].splitlines()
    assert "partitions is 2, and the stand-in keeps the model in one piece" in lines[0]
    assert lines[1:] == [
        "a smp.DistributedModel may be called only inside a @smp.step function",
        "a script may have one smp.DistributedModel",
        "a batch of 4 can't be cut into 3 microbatches: their sizes must be equal",
    ]

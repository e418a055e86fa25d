"""From request and machine to a plan: which engine and image, how many hosts, GPUs and ranks, and what it says."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import contract, plan
from harness.errors import DiskError, EngineError, GpuError, MachineError, SpecError, UsageError
from harness.home import Home
from harness.machine import Docker, Machine, Python, Sandbox
from harness.model import FieldTreatment, Gpu, LocalOptions, Plan, Spec, Treatment
from harness.plan import _sizes
from tests.unit.machine_daemon import daemon, image

GIB = 1024**3
ASKED = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:1.10-gpu-py38"
DOC = Path(__file__).parents[2] / "docs" / "plan-json.md"


def spec(local: dict[str, Any] | None = None, **changes: Any) -> Spec:
    """The seed's estimator as a request; `hyper`, `resources` and `algorithm` change parts of it."""
    hyper = {"sagemaker_program": '"train.py"', "lr": "0.0001", **changes.pop("hyper", {})}
    resources = {
        "InstanceType": "ml.p4d.24xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30, **changes.pop("resources", {}),
    }  # fmt: skip
    algorithm = {"TrainingImage": ASKED, "TrainingInputMode": "File", **changes.pop("algorithm", {})}
    request = {
        "TrainingJobName": "mnist",
        "HyperParameters": {name: value for name, value in hyper.items() if value is not None},
        "AlgorithmSpecification": {name: value for name, value in algorithm.items() if value is not None},
        "RoleArn": "arn:aws:iam::111122223333:role/R",
        "OutputDataConfig": {"S3OutputPath": "s3://b/out/"},
        "ResourceConfig": {name: value for name, value in resources.items() if value is not None},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **changes,
    }
    return Spec(request=request, local=LocalOptions(**(local or {})), origin="job.toml")


def gpus(number: int) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA T4", memory_bytes=16 * GIB) for i in range(number)
    )


OURS = Python(
    executable="/usr/bin/python3", version="3.11.2", torch="2.6.0+cpu", cuda=None, torchvision="0.21.0"
)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """A machine with the parts that a test names; `images` puts a daemon on it."""
    daemons = []

    def make(
        images: dict[str, Any] | None = None,
        number: int = 0,
        sandbox: str = "",
        python: Python = OURS,
        **changes: Any,
    ) -> Machine:
        docker = Docker(version=None, reason="there is no socket at unix:///x: start Docker")
        if images is not None:
            serving = daemon(tmp_path, images)
            docker = Docker(version="24.0.7", address=serving.__enter__())
            daemons.append(serving)
        machine = Machine(
            home=Home(tmp_path),
            cpus=4,
            memory_bytes=32 * GIB,
            gpus=gpus(number),
            gpu_reason="" if number else "there is no NVIDIA driver on this machine",
            docker=docker,
            sandbox=Sandbox(ok=not sandbox, reason=sandbox),
            interface="wlan0",
            _pythons={None: python},
        )
        return dataclasses.replace(machine, **changes)

    yield make
    for serving in daemons:
        serving.__exit__(None, None, None)


Box = Callable[..., Machine]
PYTORCH = {"harness-pytorch": image(**{"harness.image": "pytorch"})}


# --------------------------------------------------------------------------------------------------- engine


def test_auto_takes_docker_when_engine_and_image_are_here(box: Box) -> None:
    made = plan.make(spec(), box(images=PYTORCH))
    assert (made.engine, made.image, made.python) == ("docker", "harness-pytorch", None)
    assert made.engine_reason == "Docker Engine 24.0.7 answers and the image harness-pytorch is here"


def test_auto_takes_the_sandbox_otherwise_and_says_why(box: Box) -> None:
    made = plan.make(spec(), box())
    assert (made.engine, made.image, made.python) == ("sandbox", None, "/usr/bin/python3")
    assert "there is no socket at unix:///x" in made.engine_reason
    made = plan.make(spec(), box(images={}))
    assert made.engine == "sandbox"
    assert "`harness image build`" in made.engine_reason


@pytest.mark.parametrize("wanted", ["docker", "sandbox"])
def test_the_engine_that_is_asked_for(box: Box, wanted: str) -> None:
    machine = box(images=PYTORCH)
    assert plan.make(spec(), machine, engine=wanted).engine == wanted
    assert plan.make(spec(local={"engine": wanted}), machine).engine == wanted


def test_docker_that_cannot_says_why_and_what_else(box: Box) -> None:
    with pytest.raises(EngineError, match=r"no socket at unix:///x: start Docker\. Or use --engine sandbox$"):
        plan.make(spec(), box(), engine="docker")


@pytest.mark.parametrize(
    ("local", "algorithm", "words"),
    [
        ({}, {}, "harness-pytorch isn't here: make it with `harness image build`"),
        ({}, {"TrainingImage": "me/mine:1"}, "me/mine:1 isn't here: pull or build it"),
        ({"images": {"*": "gone"}}, {}, "gone (by [local.images] for 7631"),
    ],
)
def test_docker_without_the_image(
    box: Box, local: dict[str, Any], algorithm: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=re.escape(words)):
        plan.make(spec(local=local, algorithm=algorithm), box(images={}), engine="docker")


def test_the_sandbox_needs_a_script(box: Box) -> None:
    own = spec(hyper={"sagemaker_program": None})
    with pytest.raises(EngineError, match=r"only docker can run$"):
        plan.make(own, box(), engine="sandbox")
    with pytest.raises(
        EngineError, match=r"no engine can run this job here\. docker: .*\. sandbox: it has no image"
    ):
        plan.make(own, box())
    assert plan.make(own, box(images=PYTORCH)).engine == "docker"


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": {"ContainerEntrypoint": ["/bin/bash"]}},  # contract: A4
        {"Environment": {"SAGEMAKER_PROGRAM": "t.py"}},  # contract: A22
    ],
)
def test_the_sandbox_runs_what_says_what_to_start(box: Box, changes: dict[str, Any]) -> None:
    assert plan.make(spec(hyper={"sagemaker_program": None}, **changes), box()).engine == "sandbox"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": {"TrainingImage": None, "AlgorithmName": "a"}}, "AlgorithmName is a: An algorithm"),
        ({"ServerlessJobConfig": {"JobType": "FineTuning"}}, "ServerlessJobConfig.JobType is FineTuning"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "docker", "sandbox"])
def test_what_no_engine_can_run(box: Box, changes: dict[str, Any], words: str, engine: str) -> None:
    with pytest.raises(MachineError, match=words) as caught:
        plan.make(spec(**changes), box(images=PYTORCH), engine=engine)
    assert "--engine" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_engine_that_nobody_has(box: Box) -> None:
    with pytest.raises(UsageError, match="there is no engine 'podman': use auto, docker, sandbox"):
        plan.make(spec(), box(), engine="podman")


def test_without_namespaces_paths_are_rewritten_and_said_so(box: Box) -> None:
    machine = box(sandbox="user.max_user_namespaces is 0")
    made = plan.make(spec(), machine)  # contract: B21
    assert made.notes[0].startswith("Hard-coded /opt/ml paths don't work")
    assert (made.treatments[0].path, made.treatments[0].visible) == ("/opt/ml", True)
    for changes in ({"EnableNetworkIsolation": True}, {"resources": {"InstanceCount": 2}}):
        with pytest.raises(EngineError, match=r"needs namespaces, and user\.max_user_namespaces is 0"):
            plan.make(spec(**changes), machine)


def test_a_file_system_needs_a_directory(box: Box, tmp_path: Path) -> None:
    source = {"FileSystemId": "fs-01234567", "FileSystemType": "EFS", "DirectoryPath": "/d"}
    inputs = [{"ChannelName": "training", "DataSource": {"FileSystemDataSource": source}}]
    with pytest.raises(MachineError, match=r'\[local\.file_systems\] "fs-01234567" ='):
        plan.make(spec(InputDataConfig=inputs), box())
    gone = {"file_systems": {"fs-01234567": str(tmp_path / "gone")}}
    with pytest.raises(MachineError, match="is no directory"):
        plan.make(spec(local=gone, InputDataConfig=inputs), box())
    here = {"file_systems": {"fs-01234567": str(tmp_path)}}
    assert plan.make(spec(local=here, InputDataConfig=inputs), box()).engine == "sandbox"


# ---------------------------------------------------------------------------------------------------- image


def test_image_mapping_patterns_come_first_then_the_image_itself(box: Box) -> None:
    machine = box(images={**PYTORCH, "mine": image(torch=None), ASKED: image(torch=None)})
    made = plan.make(spec(), machine)
    assert (made.image, made.image_note) == (ASKED, "")
    made = plan.make(spec(local={"images": {"*.dkr.ecr.*/pytorch-training:*": "mine"}}), machine)
    assert made.image == "mine"
    assert made.image_note == (
        f"mine stands in for {ASKED}: PyTorch here is not known, 1.10 asked for; Python here is not known, 3.8 asked for"
    )


@pytest.mark.parametrize(
    ("torch", "python", "note", "told"),
    [
        (
            "1.10.2+cpu",
            "3.8.13",
            "PyTorch 1.10.2+cpu here, as asked for; Python 3.8.13 here, as asked for",
            False,
        ),
        (
            "1.13.0a0",
            "3.8.13",
            "PyTorch 1.13.0a0 here, 1.10 asked for; Python 3.8.13 here, as asked for",
            True,
        ),
        ("1.1.0", "3.11.2", "PyTorch 1.1.0 here, 1.10 asked for; Python 3.11.2 here, 3.8 asked for", True),
    ],
)
def test_the_image_note_tells_versions(box: Box, torch: str, python: str, note: str, told: bool) -> None:
    made = plan.make(spec(), box(images={"harness-pytorch": image(torch=torch, python=python)}))
    assert made.image_note == f"harness-pytorch stands in for {ASKED}: {note}"
    assert (f"{made.image_note}." in made.notes) == told


@pytest.mark.parametrize(
    ("asked", "note"),
    [
        ("1.dkr.ecr.eu-west-1.amazonaws.com/huggingface-pytorch-training:1.13.1-transformers4.26.0-gpu-py39-cu117",
         "PyTorch 2.6.0+cpu here, 1.13.1 asked for; Python 3.11.2 here, 3.9 asked for"),
        ("1.dkr.ecr.eu-west-1.amazonaws.com/pytorch-training:2.6.0-cpu-py311-ubuntu22.04-sagemaker",
         "PyTorch 2.6.0+cpu here, as asked for; Python 3.11.2 here, as asked for"),
        ("me/mine:1.10", "PyTorch 2.6.0+cpu here; Python 3.11.2 here"),
    ],
)  # fmt: skip
def test_the_sandbox_compares_its_interpreter(box: Box, asked: str, note: str) -> None:
    made = plan.make(spec(algorithm={"TrainingImage": asked}), box())
    assert made.image_note == f"/usr/bin/python3 stands in for {asked}: {note}"


def test_an_interpreter_without_pytorch(box: Box) -> None:
    made = plan.make(spec(), box(python=dataclasses.replace(OURS, torch=None)))
    assert made.notes[0].startswith("/usr/bin/python3 has no PyTorch")


def test_an_image_that_is_not_roots(box: Box) -> None:  # contract: A19
    made = plan.make(spec(), box(images={"harness-pytorch": image(user="app")}))
    assert made.notes[0].startswith("The image runs as app, not root")


# ------------------------------------------------------------------------------------------- hosts and GPUs


@pytest.mark.parametrize(
    ("resources", "number", "local", "given"),
    [
        ({}, 0, {}, [0]),
        ({}, 2, {}, [2]),
        ({}, 16, {}, [8]),
        ({}, 4, {"gpus": 1}, [1]),
        ({}, 4, {"gpus": "none"}, [0]),
        ({}, 4, {"gpus": "1,3"}, [2]),
        ({"InstanceCount": 2}, 5, {}, [2, 2]),
        ({"InstanceCount": 2}, 1, {}, [0, 0]),
        ({"InstanceType": "ml.c5.xlarge"}, 4, {}, [0]),
        ({"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 3}, 8, {}, [1, 1, 1]),
    ],
)
def test_gpus_are_shared_evenly(
    box: Box, resources: dict[str, Any], number: int, local: dict[str, Any], given: list[int]
) -> None:
    made = plan.make(spec(local=local, resources=resources), box(number=number))
    assert [host.gpus for host in made.hosts] == given
    assert made.gpus == sum(given)


@pytest.mark.parametrize("wanted", [3, "3", "0,7", "2"])
def test_gpus_that_are_not_here(box: Box, wanted: Any) -> None:
    machine = box(number=1)
    with pytest.raises(GpuError, match=r"this machine has 1 \(index 0\)"):
        plan.make(spec(local={"gpus": wanted}), machine)
    with pytest.raises(GpuError, match=r"this machine has none \(there is no NVIDIA driver"):
        plan.make(spec(local={"gpus": wanted}), box())


def test_the_gpus_that_a_job_may_use(box: Box) -> None:
    machine = box(number=4)
    assert [gpu.index for gpu in plan.allowed_gpus(machine, "3,1")] == [3, 1]
    assert [gpu.index for gpu in plan.allowed_gpus(machine, 2)] == [0, 1]


@pytest.mark.parametrize("count", [1, 2, 12])
def test_hosts_are_those_of_the_contract(box: Box, count: int) -> None:  # contract: C10, H1
    made = plan.make(spec(resources={"InstanceCount": count}), box())
    assert tuple(host.name for host in made.hosts) == contract.host_names(count)
    assert {host.instance_group for host in made.hosts} == {"homogeneousCluster"}  # contract: C12


def test_heterogeneous_groups_are_those_of_the_contract(box: Box) -> None:  # contract: C12, H26
    groups = [
        {"InstanceGroupName": "cpu", "InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
        {"InstanceGroupName": "gpu", "InstanceType": "ml.g4dn.12xlarge", "InstanceCount": 1},
    ]
    hetero = spec(resources={"InstanceType": None, "InstanceCount": None, "InstanceGroups": groups})
    made = plan.make(hetero, box(number=2))
    assert [(h.name, h.instance_group, h.cloud_gpus, h.gpus) for h in made.hosts] == [
        ("algo-1", "cpu", 0, 0),
        ("algo-2", "cpu", 0, 0),
        ("algo-3", "gpu", 4, 2),
    ]
    for group in contract.groups(hetero.request, seed="mnist"):
        assert {h.name for h in made.hosts if h.instance_group == group.name} == set(group.hosts)


def test_the_first_preference_is_taken(box: Box) -> None:
    preferences = [{"InstanceType": "ml.g5.xlarge", "InstanceCount": 2}, {"InstanceType": "ml.p3.2xlarge"}]
    made = plan.make(
        spec(resources={"InstanceType": None, "InstanceCount": None, "InstancePreferences": preferences}),
        box(),
    )
    assert [host.instance_type for host in made.hosts] == ["ml.g5.xlarge"] * 2


def test_an_unknown_instance_type(box: Box) -> None:
    with pytest.raises(SpecError, match=r"did you mean ml\.p4d\.24xlarge"):
        plan.make(spec(resources={"InstanceType": "ml.p4d.24xlrge"}), box())


# ---------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("hyper", "hosts", "number", "here", "there"),
    [
        ({}, 2, 2, 2, 2),  # contract: H9
        ({"sagemaker_torch_distributed_enabled": "true"}, 1, 2, 2, 8),  # contract: H13
        ({"sagemaker_torch_distributed_enabled": "true"}, 2, 0, 2, 16),
        ({"sagemaker_torch_distributed_enabled": "false"}, 2, 2, 2, 2),
        (
            {"sagemaker_torch_distributed_enabled": "true", "sagemaker_mpi_num_of_processes_per_host": "3"},
            2, 0, 6, 6,
        ),
        ({"sagemaker_distributed_dataparallel_enabled": "true"}, 1, 4, 4, 8),
        ({"sagemaker_mpi_enabled": "true", "sagemaker_torch_distributed_enabled": "true"}, 1, 4, 4, 8),  # contract: H11
    ],
)  # fmt: skip
def test_ranks_here_and_there_in_the_sandbox(
    box: Box, hyper: dict[str, str], hosts: int, number: int, here: int, there: int
) -> None:
    made = plan.make(spec(hyper=hyper, resources={"InstanceCount": hosts}), box(number=number))
    assert (made.world_size, made.cloud_world_size) == (here, there)


def test_docker_runs_the_launcher_of_an_image_that_has_one(box: Box) -> None:
    hyper = {"sagemaker_distributed_dataparallel_enabled": "true"}
    machine = box(images={ASKED: image()}, number=4)
    made = plan.make(spec(hyper=hyper), machine)
    assert (made.engine, made.world_size, made.cloud_world_size) == ("docker", 4, 8)


def test_our_own_image_has_no_mpi_and_is_not_sent_into_it(box: Box) -> None:
    hyper = {"sagemaker_distributed_dataparallel_enabled": "true"}
    machine = box(images=PYTORCH)
    made = plan.make(spec(hyper=hyper), machine)
    assert made.engine == "sandbox"
    assert (
        "smddprun, which needs sshd and Open MPI, and the image harness-pytorch lacks them"
        in made.engine_reason
    )
    with pytest.raises(EngineError, match="Or use --engine sandbox"):
        plan.make(spec(hyper=hyper), machine, engine="docker")


@pytest.mark.parametrize("number", [0, 1, 8])
@pytest.mark.parametrize("launcher", ["torch_distributed", "mpi", "distributed_dataparallel", "pytorch_ddp"])
def test_ranks_of_the_cloud(box: Box, launcher: str, number: int) -> None:  # contract: H13, H18, H23
    asked = spec(hyper={f"sagemaker_{launcher}_enabled": "true"}, local={"ranks": "cloud"})
    made = plan.make(asked, box(number=number))
    assert (made.world_size, made.cloud_world_size) == (8, 8)
    # A launcher that finds as many by itself isn't told: the script sees what it sees in the cloud.
    assert made.hosts[0].processes == (None if number == 8 else 8)
    assert said(made, "processes on each host, which share") == (number < 8)


def test_ranks_of_the_cloud_change_nothing_without_a_launcher(box: Box) -> None:  # contract: H9
    made = plan.make(spec(local={"ranks": "cloud"}), box())
    assert (made.world_size, made.hosts[0].processes) == (1, None)


def test_only_the_named_groups_are_launched(box: Box) -> None:  # contract: H26
    groups = [
        {"InstanceGroupName": "data", "InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
        {"InstanceGroupName": "dnn", "InstanceType": "ml.g4dn.12xlarge", "InstanceCount": 1},
    ]
    hyper = {
        "sagemaker_torch_distributed_enabled": "true",
        "sagemaker_distribution_instance_groups": '["dnn"]',
    }
    hetero = spec(
        hyper=hyper, resources={"InstanceType": None, "InstanceCount": None, "InstanceGroups": groups}
    )
    made = plan.make(hetero, box(number=2))
    assert (made.world_size, made.cloud_world_size) == (2, 4)


# --------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("text", "size"),
    [("64m", 64 * 1024**2), ("1048576", 1024**2), ("1.5g", 3 * GIB // 2), ("2GiB", 2 * GIB), ("1K", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert _sizes.parse(text, "it") == size


@pytest.mark.parametrize("text", ["", "0", "big", "-1", "1x", "64 m b"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SpecError, match="shm"):
        _sizes.parse(text, "shm")


def test_shm_is_half_of_the_memory_among_the_hosts(box: Box) -> None:  # contract: B14
    assert plan.make(spec(), box()).shm_bytes == 16 * GIB
    assert plan.make(spec(resources={"InstanceCount": 4}), box()).shm_bytes == 4 * GIB
    strict = plan.make(spec(local={"shm_size": "64m", "memory": "2g"}), box())
    assert (strict.shm_bytes, strict.memory_bytes) == (64 * 1024**2, 2 * GIB)


@pytest.mark.parametrize(
    ("engine", "isolated", "interface"),
    [("docker", False, "eth0"), ("sandbox", False, "wlan0"), ("sandbox", True, "eth0")],
)
def test_network_interface(box: Box, engine: str, isolated: bool, interface: str) -> None:  # contract: C14
    made = plan.make(spec(EnableNetworkIsolation=isolated), box(images=PYTORCH), engine=engine)
    assert made.network_interface == interface


class Full(Machine):
    def disk_free(self, path: Path) -> int:
        return {"tmp": 0}.get(path.name, 20 * 1024**2)


def test_a_full_disk_is_told_before_the_job(box: Box) -> None:
    machine = box()
    full = Full(**{f.name: getattr(machine, f.name) for f in dataclasses.fields(machine)})
    with pytest.raises(DiskError, match=r"only 20 MiB are free at .*HARNESS_HOME"):
        plan.make(spec(), full)


def test_a_volume_that_is_larger_than_what_is_free(box: Box) -> None:
    made = plan.make(spec(resources={"VolumeSizeInGB": 900_000}), box())
    assert any("less than the 900000 GB volume" in note for note in made.notes)


# ---------------------------------------------------------------------------------------------------- notes


def said(made: Plan, *words: str) -> bool:
    """Each of `words` begins or is in a note, and they come in this order."""
    places = [next((n for n, note in enumerate(made.notes) if word in note), -1) for word in words]
    return -1 not in places and places == sorted(places)


def test_notes_of_the_seeds_estimator(box: Box) -> None:
    made = plan.make(spec(EnableManagedSpotTraining=True), box())
    assert said(
        made,
        "No launcher is asked for (distribution): in the cloud too the script starts once on each host, and 7 of its 8",
        "ml.p4d.24xlarge has 8 GPUs; here each host gets none, because there is no NVIDIA driver on this machine",
        "PyTorch 2.6.0+cpu here, 1.10 asked for",
        "Not tested here, of ml.p4d.24xlarge: its GPUs (A100) and their memory, EFA, the links between its 8 GPUs",
        "No spot interruption happens here by itself.",
    ), made.notes


def test_notes_with_a_launcher(box: Box) -> None:
    made = plan.make(spec(hyper={"sagemaker_torch_distributed_enabled": "true"}), box(number=2))
    assert said(
        made,
        "/usr/bin/python3 has a CPU build of PyTorch",
        "torchrun starts 2 processes here and 8 processes in the cloud.",
        "the global batch is 4 times as large in the cloud",
        "here each host gets 2",
        "40 GiB on each GPU (16 GiB on NVIDIA T4 here)",
    ), made.notes
    assert not said(made, "No launcher")
    made = plan.make(spec(hyper={"sagemaker_distributed_dataparallel_enabled": "true"}), box())
    assert said(made, "smddprun starts 1 process here and 8 processes in the cloud"), made.notes


@pytest.mark.parametrize(
    ("resources", "number", "local", "words"),
    [
        ({"InstanceCount": 3}, 2, {}, "because 3 hosts can't share 2"),
        ({}, 2, {"gpus": "none"}, "as [local] gpus says"),
        ({"InstanceType": "ml.c5.xlarge"}, 1, {}, "ml.c5.xlarge has no GPU, so the job gets none"),
        ({"InstanceType": "ml.trn1.32xlarge"}, 0, {}, "Neuron cores, which this machine can't stand in for"),
    ],
)
def test_notes_on_gpus(
    box: Box, resources: dict[str, Any], number: int, local: dict[str, Any], words: str
) -> None:
    made = plan.make(spec(local=local, resources=resources), box(number=number))
    assert said(made, words), made.notes


def test_a_small_job_on_its_own_kind_of_machine_has_nothing_to_say(box: Box) -> None:
    small = spec(
        algorithm={"TrainingImage": "me/mine:1"},
        resources={"InstanceType": "ml.m5.large", "VolumeSizeInGB": 1},
    )
    assert plan.make(small, box()).notes == ()


# --------------------------------------------------------------------------------------------------- output


def rendered(made: Plan, of: Spec, width: int = 80, colour: bool = False) -> str:
    out = io.StringIO()
    plan.render(made, of, Console(file=out, width=width, force_terminal=colour, legacy_windows=False))
    return out.getvalue()


def test_rendered_in_80_columns_without_colour(box: Box) -> None:
    seed = spec(EnableManagedSpotTraining=True, Tags=[{"Key": "team", "Value": "x" * 200}])
    text = rendered(plan.make(seed, box()), seed)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    order = ["mnist  (job.toml)", "sandbox engine:", "To know", "In the cloud, and here", "Cloud only", "Mapped",
             "Emulated", "Honoured", "--strict would run this job"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "1 × ml.p4d.24xlarge" in text
    assert "8 × A100, 40 GiB" in text


def test_rendered_with_colour_on_a_terminal(box: Box) -> None:
    assert "\x1b[" in rendered(plan.make(spec(), box()), spec(), colour=True)


def test_rendered_names_every_field_and_what_strict_refuses(box: Box) -> None:
    keep = spec(resources={"KeepAlivePeriodInSeconds": 600}, Environment={"PASSWORD": "s3cr3t"})
    made = plan.make(keep, box())
    text = rendered(made, keep, width=200)
    for item in made.treatments:
        assert item.path in text
    assert "--strict would refuse this job for ResourceConfig.KeepAlivePeriodInSeconds." in text
    assert "s3cr3t" not in text


def test_warnings_of_the_spec_are_among_what_to_know(box: Box) -> None:
    warned = dataclasses.replace(spec(), warnings=("spot training without checkpoint_s3_uri",))
    assert "• spot training without checkpoint_s3_uri" in rendered(plan.make(warned, box()), warned)


def test_json_is_plain_and_stable(box: Box) -> None:
    made = plan.make(spec(), box(number=1))
    found = json.loads(json.dumps(plan.to_json(made)))
    assert found["version"] == 1
    assert list(found) == [
        "version", "engine", "image", "hosts", "gpus", "world_size", "cloud_world_size", "limits",
        "network_interface", "notes", "fields",
    ]  # fmt: skip
    assert found["engine"] == {
        "name": "sandbox", "reason": made.engine_reason, "python": "/usr/bin/python3",
    }  # fmt: skip
    assert found["hosts"] == [
        {
            "name": "algo-1",
            "instance_type": "ml.p4d.24xlarge",
            "instance_group": "homogeneousCluster",
            "gpus": 1,
            "cloud_gpus": 8,
            "processes": None,
        }
    ]
    assert found["fields"][0] == {
        "path": "TrainingJobName",
        "value": "mnist",
        "treatment": "honoured",
        "reason": made.treatments[0].reason,
        "visible": False,
    }


def keys(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}.{name}" if path else name
            yield here
            if not here.endswith("[].value"):  # a value of the request's own
                yield from keys(inner, here)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, f"{path}[]")


def test_the_document_names_every_key_and_no_other(box: Box) -> None:
    documented = set(re.findall(r"^\| `([^`]+)` \|", DOC.read_text(encoding="utf-8"), re.MULTILINE))
    assert documented == set(keys(plan.to_json(plan.make(spec(), box()))))


def test_the_document_names_every_treatment_and_engine() -> None:
    text = DOC.read_text(encoding="utf-8")
    for word in (*(treatment.value for treatment in Treatment), "docker", "sandbox"):
        assert f"`{word}`" in text


def test_every_part_of_the_plan_is_in_the_json(box: Box) -> None:
    """A field that somebody adds to the plan is not forgotten here."""
    told = {key.split(".")[-1] for key in keys(plan.to_json(plan.make(spec(), box())))}
    renamed = {
        "engine_reason": "reason", "image_asked": "asked", "image_note": "note", "treatments": "fields",
    }  # fmt: skip
    for field in (*dataclasses.fields(Plan), *dataclasses.fields(FieldTreatment)):
        assert renamed.get(field.name, field.name) in told, field.name


@pytest.mark.parametrize(
    ("local", "words"),
    [
        ({}, []),
        (
            {"s3_latency_ms": 20.0, "s3_throughput_mbps": 800.0},
            [
                "Channels in File and Pipe mode come at the pace that [local] gives: 20 ms for each object and 800 Mbit/s to each host.",
                "FastFile is not slowed down: fast is read at this machine's own speed.",
            ],
        ),
    ],
)
def test_notes_on_the_pace_of_s3(box: Box, local: dict[str, Any], words: list[str]) -> None:
    def channel(name: str, **more: Any) -> dict[str, Any]:
        source = {"S3DataType": "S3Prefix", "S3Uri": "s3://b/x/"}
        return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **more}

    inputs = [channel("a"), channel("b", InputMode="Pipe"), channel("fast", InputMode="FastFile")]
    made = plan.make(spec(local, InputDataConfig=inputs), box())
    assert [note for note in made.notes if "pace" in note or "FastFile" in note] == words

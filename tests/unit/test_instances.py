"""The catalogue against botocore's and the SDK's own data."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from harness import awsapi, instances
from harness.errors import SpecError

pytestmark = pytest.mark.usefixtures("home")


def test_every_training_instance_type_of_botocore_is_known() -> None:
    asked = set(awsapi.allowed_values("CreateTrainingJob", "TrainingInstanceType"))
    if awsapi.botocore_version() == "1.44.5":
        assert asked <= set(instances.names())
    assert len(asked & set(instances.names())) >= 225


def test_gpus_are_those_of_the_sdks_table() -> None:
    spec = importlib.util.find_spec("sagemaker")
    if spec is None or spec.origin is None:
        pytest.skip("the SageMaker SDK is not installed")
    tables = json.loads((Path(spec.origin).parent / "image_uri_config/instance_gpu_info.json").read_text())
    compared = 0
    for region in tables.values():
        for name, info in region.items():
            if name in instances.names():
                instance = instances.lookup(name)
                assert instance.gpus == info["Count"], name
                assert instance.gpu_memory_bytes is not None
                if not name.startswith(("ml.g5.", "ml.g6")):  # EC2 counts usable memory there, the SDK all
                    total = instance.gpu_memory_bytes * instance.gpus / 1024**2
                    assert total == pytest.approx(info["TotalGpuMemoryInMiB"], rel=0.02), name
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_gib", "gpus", "gpu_gib", "nvme_gb"),
    [
        ("ml.p4d.24xlarge", 96, 1152, 8, 40, 8000),
        ("ml.p3.16xlarge", 64, 488, 8, 16, 0),
        ("ml.p3dn.24xlarge", 96, 768, 8, 32, 1800),
        ("ml.g4dn.12xlarge", 48, 192, 4, 16, 900),
        ("ml.p5.48xlarge", 192, 2048, 8, 80, 30400),
        ("ml.m5.xlarge", 4, 16, 0, None, 0),
        ("ml.c5.18xlarge", 72, 144, 0, None, 0),
        ("ml.trn1.32xlarge", 128, 512, 0, None, 7600),
    ],
)
def test_well_known_types(
    name: str, vcpus: int, memory_gib: int, gpus: int, gpu_gib: int | None, nvme_gb: int
) -> None:
    instance = instances.lookup(name)
    assert (instance.vcpus, instance.memory_bytes, instance.gpus) == (vcpus, memory_gib * 1024**3, gpus)
    assert instance.gpu_memory_bytes == (None if gpu_gib is None else gpu_gib * 1024**3)
    assert instance.nvme == nvme_gb * 1000**3


def test_what_no_source_gives_is_none() -> None:
    instance = instances.lookup("ml.p6e-gb200.36xlarge")
    assert instance.gpus == 4
    assert instance.gpu_memory_bytes is None
    assert instance.nvme is None
    assert instance.efa_interfaces is None


def test_efa_and_rdma_are_the_toolkits_lists() -> None:
    """contract: H15"""
    assert len(instances.EFA_TYPES) == 9
    assert instances.RDMA_TYPES < instances.EFA_TYPES
    assert set(instances.names()) > instances.EFA_TYPES
    assert instances.lookup("ml.p4d.24xlarge").rdma
    assert instances.lookup("ml.p5.48xlarge").efa
    assert not instances.lookup("ml.p5.48xlarge").rdma


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ml.p4d.24xlarg", "did you mean ml.p4d.24xlarge?"),
        ("p4d.24xlarge", "did you mean ml.p4d.24xlarge?"),
        ("ml_g5_xlarge", "did you mean ml.g5.xlarge?"),
        ("ML.M5.LARGE", "did you mean ml.m5.large?"),
        ("local_gpu", "runs on this machine all the same"),
        ("nonsense", "look like ml.p4d.24xlarge"),
    ],
)
def test_a_typo_says_what_was_meant(name: str, words: str) -> None:
    with pytest.raises(SpecError) as raised:
        instances.lookup(name)
    assert words in str(raised.value)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    ("resources", "stopping", "words"),
    [
        # contract: B11
        ({"InstanceType": "ml.g5.xlarge", "VolumeSizeInGB": 30, "VolumeKmsKeyId": "k"}, {}, "VolumeKmsKeyId"),
        ({"InstanceType": "ml.g4dn.xlarge", "VolumeSizeInGB": 500}, {}, "(125 GB)"),
        ({"InstanceType": "ml.m5.xlarge"}, {}, "VolumeSizeInGB must be given for ml.m5.xlarge"),
        (
            {
                "InstanceGroups": [{"InstanceType": "ml.g5.xlarge"}],
                "VolumeSizeInGB": 1,
                "VolumeKmsKeyId": "k",
            },
            {},
            "ml.g5.xlarge",
        ),
        (
            {"InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 1},
            {"MaxPendingTimeInSeconds": 7200},
            "MaxPendingTimeInSeconds works only for accelerated",
        ),
        ({"InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 1, "VolumeKmsKeyId": "k"}, {}, None),
        ({"InstanceType": "ml.p4d.24xlarge"}, {"MaxPendingTimeInSeconds": 7200}, None),
        ({"InstanceType": "ml.of-tomorrow.large", "VolumeKmsKeyId": "k"}, {}, None),
    ],
)
def test_rules_of_the_instance_type(
    resources: dict[str, object], stopping: dict[str, object], words: str | None
) -> None:
    """contract: K13, G8"""
    broken = instances.rules({"ResourceConfig": resources, "StoppingCondition": stopping})
    assert len(broken) == (1 if words else 0)
    if words:
        assert words in broken[0]


def test_lints_of_the_instance_type() -> None:
    """contract: K18, K20"""
    smddp = {"sagemaker_distributed_dataparallel_enabled": "true"}
    assert (
        "ml.g5.xlarge"
        in instances.warnings({"ResourceConfig": {"InstanceType": "ml.g5.xlarge"}, "HyperParameters": smddp})[
            0
        ]
    )
    assert not instances.warnings(
        {"ResourceConfig": {"InstanceType": "ml.p4d.24xlarge"}, "HyperParameters": smddp}
    )
    assert (
        "no GPU"
        in instances.warnings(
            {
                "ResourceConfig": {"InstanceType": "ml.m5.xlarge"},
                "HyperParameters": {"sagemaker_torch_distributed_enabled": "true"},
            }
        )[0]
    )

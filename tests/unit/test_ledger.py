"""The ledger accounts for every field, truthfully and completely."""

from __future__ import annotations

from typing import Any

import pytest

from harness import ledger
from harness.awsapi import botocore_version, nodes
from harness.ledger import Given
from harness.model import Spec, Treatment, Upload

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:1.10-gpu-py38"


def request(**changes: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": "job",
        "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::111122223333:role/R",
        "OutputDataConfig": {"S3OutputPath": "s3://b/out"},
        "ResourceConfig": {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **changes,
    }


def treatments(given: dict[str, Any], engine: str = "sandbox") -> dict[str, Any]:
    return {item.path: item for item in ledger.treat(Spec(request=given), engine)}


def test_every_node_of_the_installed_botocore_has_an_entry() -> None:
    missing = sorted(set(nodes("CreateTrainingJob")) - set(ledger.ENTRIES))
    assert not missing, f"botocore {botocore_version()} has fields that the ledger doesn't account for"


def test_awsapi_and_botocore_agree_on_the_nodes() -> None:
    """The test above leans on our own walk of the model; here botocore's."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker", api_version=None)

    def walk(shape: Any, path: str) -> Any:
        for name, member in shape.members.items():
            here = f"{path}.{name}" if path else name
            yield here
            while member.type_name in ("list", "map"):
                here += "[]" if member.type_name == "list" else "{}"
                member = member.member if member.type_name == "list" else member.value
            if member.type_name == "structure":
                yield from walk(member, here)

    found = list(walk(model.operation_model("CreateTrainingJob").input_shape, ""))
    assert len(found) >= 146
    assert set(found) <= set(ledger.ENTRIES)


def test_no_entry_is_for_a_field_that_never_was() -> None:
    assert set(ledger.ENTRIES) <= set(nodes("CreateTrainingJob"))


def all_verdicts() -> list[Any]:
    entries = {**ledger.ENTRIES, **ledger.HYPERPARAMETERS}
    return [
        pytest.param(verdict, id=f"{path}-{number}")
        for path, entry in entries.items()
        for number, verdict in enumerate(entry.verdicts)
    ]


@pytest.mark.parametrize("verdict", all_verdicts())
def test_every_reason_is_one_sentence(verdict: Any) -> None:
    assert verdict.reason.endswith(".")
    assert verdict.reason[0].isupper() or verdict.reason.split()[0] in (
        "mpirun", "smddprun", "torchrun", "model.tar.gz",
    )  # fmt: skip
    assert ". " not in verdict.reason
    assert len(verdict.reason) <= 140
    assert verdict.treatment is not Treatment.UNCLASSIFIED
    assert not verdict.visible or verdict.treatment is Treatment.CLOUD_ONLY
    assert not verdict.impossible or verdict.visible


def test_a_field_newer_than_the_harness_is_reported_not_dropped() -> None:
    given = request(
        Quantum={"Qubits": 3},
        InputDataConfig=[{"ChannelName": "a", "Teleport": True}],
        NewList=[{"x": 1}, {"x": 2}],
    )
    given["ResourceConfig"]["Cooling"] = "liquid"
    found = treatments(given)
    for path, value in {
        "Quantum": {"Qubits": 3},
        "InputDataConfig[].Teleport": True,
        "NewList": [{"x": 1}, {"x": 2}],
        "ResourceConfig.Cooling": "liquid",
    }.items():
        assert found[path].treatment is Treatment.UNCLASSIFIED
        assert found[path].value == value


def test_leaves_in_the_requests_order_one_line_for_each_item() -> None:
    given = {
        "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}],
        "HyperParameters": {"lr": "0.1", "sagemaker_submit_directory": '"s3://b/x"'},
        "VpcConfig": {"Subnets": ["s-1", "s-2"], "SecurityGroupIds": ["g"]},
        "DebugHookConfig": {"S3OutputPath": "s3://b", "HookParameters": {"a.b": "c"}},
        "TrainingJobName": "job",
    }
    found = [(item.path, item.value) for item in ledger.treat(Spec(request=given), "docker")]
    assert found == [
        ("Tags[].Key", "a"),
        ("Tags[].Value", "1"),
        ("Tags[].Key", "b"),
        ("Tags[].Value", "2"),
        ("HyperParameters", given["HyperParameters"]),
        ("HyperParameters.sagemaker_submit_directory", '"s3://b/x"'),
        ("VpcConfig.Subnets", ["s-1", "s-2"]),
        ("VpcConfig.SecurityGroupIds", ["g"]),
        ("DebugHookConfig.S3OutputPath", "s3://b"),
        ("DebugHookConfig.HookParameters", {"a.b": "c"}),
        ("TrainingJobName", "job"),
    ]


def test_every_field_that_is_given_has_a_line() -> None:
    """Nothing is dropped: each leaf's value is found in some line."""
    given = request(
        HyperParameters={"a": "1"},
        Environment={"B": "2"},
        ModelPackageConfig={"ModelPackageGroupArn": "arn:3"},
        ServerlessJobConfig={"JobType": "4"},
        RemoteDebugConfig={},
    )
    lines = ledger.treat(Spec(request=given), "docker")
    assert {line.path.split(".")[0].split("[")[0] for line in lines} == set(given)


S3 = "InputDataConfig[].DataSource.S3DataSource"
H, E, M, C = Treatment.HONOURED, Treatment.EMULATED, Treatment.MAPPED, Treatment.CLOUD_ONLY


@pytest.mark.parametrize(
    ("path", "value", "treatment", "visible"),
    [
        ("AlgorithmSpecification.TrainingInputMode", "File", H, False),  # contract: E3
        ("AlgorithmSpecification.TrainingInputMode", "FastFile", E, False),  # contract: E8, B16
        ("AlgorithmSpecification.TrainingInputMode", "Pipe", H, False),  # contract: E11
        ("InputDataConfig[].InputMode", "Pipe", H, False),
        ("InputDataConfig[].CompressionType", "None", H, False),
        ("InputDataConfig[].CompressionType", "Gzip", H, False),  # contract: E17
        ("InputDataConfig[].RecordWrapperType", "None", H, False),
        ("InputDataConfig[].RecordWrapperType", "RecordIO", H, False),  # contract: E15
        (f"{S3}.S3DataType", "S3Prefix", H, False),
        (f"{S3}.S3DataType", "ManifestFile", H, False),  # contract: E18
        (f"{S3}.S3DataType", "AugmentedManifestFile", H, False),  # contract: E20
        (f"{S3}.S3DataType", "Converse", C, True),  # contract: E28
        (f"{S3}.S3DataDistributionType", "FullyReplicated", H, False),  # contract: E22
        (f"{S3}.S3DataDistributionType", "ShardedByS3Key", E, False),  # contract: E23
        (f"{S3}.S3Uri", "s3://b/elsewhere/", M, False),
        ("ResourceConfig.InstanceType", "ml.p4d.24xlarge", M, False),
        ("ResourceConfig.VolumeSizeInGB", 30, M, False),
        ("ResourceConfig.KeepAlivePeriodInSeconds", 600, C, True),  # contract: B22
        ("ResourceConfig.KeepAlivePeriodInSeconds", 0, H, False),
        ("OutputDataConfig.KmsKeyId", "alias/k", C, False),  # contract: F10
        ("OutputDataConfig.S3OutputPath", "s3://b/", M, False),
        ("RoleArn", "arn:aws:iam::111122223333:role/R", C, False),
        ("VpcConfig.Subnets", ["s"], C, False),
        ("EnableManagedSpotTraining", True, C, False),
        ("EnableManagedSpotTraining", False, H, False),
        ("EnableNetworkIsolation", True, H, False),  # contract: D11
        ("StoppingCondition.MaxRuntimeInSeconds", 60, H, False),  # contract: G7
        ("StoppingCondition.MaxWaitTimeInSeconds", 60, H, False),  # contract: G8
        ("StoppingCondition.MaxPendingTimeInSeconds", 1800, C, False),
        ("MlflowConfig.MlflowResourceArn", "arn", C, True),
        ("ServerlessJobConfig.JobType", "FineTuning", C, True),
    ],
)
def test_what_happens_depends_on_the_value(
    path: str, value: Any, treatment: Treatment, visible: bool
) -> None:
    verdict = ledger.ENTRIES[path].decide(Given(value=value, engine="sandbox", request=request()))
    assert (verdict.treatment, verdict.visible) == (treatment, visible)


@pytest.mark.parametrize(
    ("name", "engine", "hosts", "treatment", "visible", "impossible"),
    [
        ("sagemaker_torch_distributed_enabled", "sandbox", 2, H, False, False),
        ("sagemaker_torch_distributed_enabled", "docker", 2, H, False, False),
        ("sagemaker_distributed_dataparallel_enabled", "sandbox", 1, E, False, False),
        ("sagemaker_distributed_dataparallel_enabled", "sandbox", 2, E, False, False),
        ("sagemaker_distributed_dataparallel_enabled", "docker", 2, H, False, False),
        ("sagemaker_mpi_enabled", "sandbox", 1, E, False, False),
        ("sagemaker_mpi_enabled", "sandbox", 2, E, False, False),
        ("sagemaker_pytorch_ddp_enabled", "sandbox", 1, E, False, False),
        ("sagemaker_pytorch_xla_multi_worker_enabled", "sandbox", 1, H, False, False),
    ],
)
def test_launchers(  # contract: H10
    name: str, engine: str, hosts: int, treatment: Treatment, visible: bool, impossible: bool
) -> None:
    given = request(HyperParameters={name: "true"})
    given["ResourceConfig"]["InstanceCount"] = hosts
    line = treatments(given, engine)[f"HyperParameters.{name}"]
    assert (line.treatment, line.visible) == (treatment, visible)
    blocked = [item.path for item in ledger.blockers(Spec(request=given), engine)]
    assert blocked == ([f"HyperParameters.{name}"] if impossible else [])
    off = treatments(request(HyperParameters={name: "false"}), engine)[f"HyperParameters.{name}"]
    assert off.treatment is H


def test_the_sandbox_and_docker_differ_in_the_image() -> None:
    path = "AlgorithmSpecification.TrainingImage"
    assert "not used" in treatments(request(), "sandbox")[path].reason
    assert "local image" in treatments(request(), "docker")[path].reason


def test_a_local_path_is_told_from_a_place_in_s3(tmp_path: Any) -> None:
    uri = "s3://b/input/training"
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}
    given = request(InputDataConfig=[{"ChannelName": "training", "DataSource": source}])
    upload = Upload(path=tmp_path, uri=uri, kind="channel", channel="training")
    with_path = {i.path: i for i in ledger.treat(Spec(request=given, uploads=(upload,)), "sandbox")}
    assert "local path" in with_path[f"{S3}.S3Uri"].reason
    assert "local object store" in treatments(given)[f"{S3}.S3Uri"].reason


def test_strict_lets_an_everyday_request_pass() -> None:
    """What every request has is never visible, or nobody could use --strict."""
    given = request(
        HyperParameters={"sagemaker_program": '"t.py"', "lr": "0.1"},
        CheckpointConfig={"S3Uri": "s3://b/c/"},
        EnableManagedSpotTraining=True,
        DebugHookConfig={"S3OutputPath": "s3://b"},
        ProfilerConfig={"S3OutputPath": "s3://b"},
        Tags=[{"Key": "a", "Value": "b"}],
        VpcConfig={"Subnets": ["s"], "SecurityGroupIds": ["g"]},
    )
    assert not [path for path, item in treatments(given).items() if item.visible]

"""Requests against AWS's model and rules: what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import awsapi
from harness.awsapi import _model
from harness.errors import SpecError, ValidationError

pytestmark = pytest.mark.usefixtures("home")

Change = Callable[[dict[str, Any]], Any]

NOT_NULL = "Member must not be null"
FAILED = "failed to satisfy constraint"


def request() -> dict[str, Any]:
    """A request that keeps every rule."""
    return {
        "TrainingJobName": "mnist-1",
        "RoleArn": "arn:aws:iam::111122223333:role/SageMakerRole",
        "AlgorithmSpecification": {
            "TrainingImage": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:1.10-gpu-py38",
            "TrainingInputMode": "File",
        },
        "HyperParameters": {"lr": "0.1"},
        "InputDataConfig": [channel("training"), channel("validation")],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/"},
        "ResourceConfig": {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }


def channel(name: str, **source: Any) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/data/", **source}},
    }


FILE_SYSTEM = {
    "ChannelName": "efs",
    "DataSource": {
        "FileSystemDataSource": {
            "FileSystemId": "fs-0123456789abcdef0",
            "FileSystemType": "EFS",
            "FileSystemAccessMode": "ro",
            "DirectoryPath": "/data",
        }
    },
}
VPC = {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
GROUP = {"InstanceGroupName": "g", "InstanceType": "ml.m5.large", "InstanceCount": 1}


def changed(change: Change) -> dict[str, Any]:
    made = copy.deepcopy(request())
    change(made)
    return made


def set_(path: str, value: Any) -> Change:
    """A change of the member at a dotted path; list items by number."""

    def change(made: dict[str, Any]) -> None:
        place: Any = made
        *above, last = path.split(".")
        for part in above:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value

    return change


def without(member: str) -> Change:
    return lambda made: made.pop(member)


def test_every_node_of_create_training_job() -> None:
    nodes = awsapi.nodes("CreateTrainingJob")
    if awsapi.botocore_version() == "1.44.5":
        assert len(nodes) == 146
    assert len(nodes) == len(set(nodes)) >= 146
    assert {
        "TrainingJobName",
        "HyperParameters",
        "InputDataConfig",
        "InputDataConfig[].ChannelName",
        "InputDataConfig[].DataSource.S3DataSource.S3Uri",
        "ResourceConfig.InstancePreferences[].TrainingPlanArns",
        "DebugHookConfig.CollectionConfigurations[].CollectionParameters",
    } <= set(nodes)
    assert not any(node.endswith(("[]", "{}")) for node in nodes)


def test_nodes_are_those_that_botocore_itself_sees() -> None:
    import botocore.session

    shape = (
        botocore.session.get_session()
        .get_service_model("sagemaker")
        .operation_model("CreateTrainingJob")
        .input_shape
    )

    def walk(shape: Any, path: str) -> list[str]:
        found = []
        for name, member in shape.members.items():
            here = f"{path}{name}"
            found.append(here)
            while member.type_name in ("list", "map"):
                here += "[]" if member.type_name == "list" else "{}"
                member = member.member if member.type_name == "list" else member.value
            if member.type_name == "structure":
                found += walk(member, here + ".")
        return found

    assert awsapi.nodes("CreateTrainingJob") == walk(shape, "")


def test_a_good_request_passes() -> None:
    awsapi.validate("CreateTrainingJob", request())
    awsapi.check_training(request())
    assert awsapi.warnings(request(), region="us-east-1") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (  # contract: K1
            set_("TrainingJobName", "my_job"),
            (
                f"1 validation error detected: Value 'my_job' at 'trainingJobName' {FAILED}: Member must satisfy "
                "regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
            ),
        ),
        (  # contract: K1
            set_("TrainingJobName", "a" * 64),
            "Member must have length less than or equal to 63",
        ),
        (  # contract: K3
            set_("RoleArn", "SageMakerRole"),
            f"Value 'SageMakerRole' at 'roleArn' {FAILED}: Member must have length greater than or equal to 20",
        ),
        (
            without("OutputDataConfig"),
            f"Value null at 'outputDataConfig' {FAILED}: {NOT_NULL}",
        ),  # contract: K2
        (
            set_("OutputDataConfig", {}),
            f"Value null at 'outputDataConfig.s3OutputPath' {FAILED}: {NOT_NULL}",
        ),
        (
            set_("ResourceConfig.InstanceType", "ml.t9.medium"),
            f"Value 'ml.t9.medium' at 'resourceConfig.instanceType' {FAILED}: Member must satisfy enum value set: [",
        ),
        (  # contract: B13
            set_("ResourceConfig.VolumeSizeInGB", -1),
            (
                f"Value '-1' at 'resourceConfig.volumeSizeInGB' {FAILED}: Member must have value greater than or "
                "equal to 0"
            ),
        ),
        (  # contract: K4, C3
            set_("HyperParameters.classes", "x" * 3000),
            (
                f"at 'hyperParameters' {FAILED}: Map value must satisfy constraint: [Member must have length less than "
                "or equal to 2500, Member must have length greater than or equal to 0, Member must satisfy regular "
                "expression pattern: .*] (value of 'classes': 3000 characters)"
            ),
        ),
        (  # contract: K4
            set_("HyperParameters", {f"h{n}": "1" for n in range(101)}),
            f"at 'hyperParameters' {FAILED}: Member must have length less than or equal to 100",
        ),
        (set_("HyperParameters.text", "a\nb"), "value of 'text'"),  # contract: C4
        (
            set_("HyperParameters.lr", 0.1),
            f"Value '0.1' at 'hyperParameters.lr' {FAILED}: Member must be a string",
        ),
        (  # contract: K5, D4
            set_("Environment", {"1BAD": "x"}),
            f"Value '{{1BAD=x}}' at 'environment' {FAILED}: Map keys must satisfy constraint: [",
        ),
        (set_("Environment", {"A": "x" * 513}), "Member must have length less than or equal to 512"),
        (  # contract: K6
            set_("InputDataConfig.1.ChannelName", "my channel"),
            (
                f"Value 'my channel' at 'inputDataConfig.2.member.channelName' {FAILED}: Member must satisfy regular "
                "expression pattern: [A-Za-z0-9\\.\\-_]+"
            ),
        ),
        (  # contract: E2
            set_("InputDataConfig", [channel(f"c{n}") for n in range(21)]),
            f"at 'inputDataConfig' {FAILED}: Member must have length less than or equal to 20",
        ),
        (  # contract: E30
            set_("InputDataConfig.0.DataSource.S3DataSource.S3Uri", "/data"),
            f"Value '/data' at 'inputDataConfig.1.member.dataSource.s3DataSource.s3Uri' {FAILED}",
        ),
        (  # contract: E26
            set_(
                "InputDataConfig",
                [{"ChannelName": "e", "DataSource": {"FileSystemDataSource": {"FileSystemId": "fs-1"}}}],
            ),
            "Value 'fs-1' at 'inputDataConfig.1.member.dataSource.fileSystemDataSource.fileSystemId'",
        ),
        (  # contract: K7
            set_("Tags", [{"Key": "a!", "Value": "b"}]),
            (
                f"Value 'a!' at 'tags.1.member.key' {FAILED}: Member must satisfy regular expression pattern: "
                "([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)"
            ),
        ),
        (set_("Tags", [{"Key": f"k{n}", "Value": ""} for n in range(51)]), "less than or equal to 50"),
        (  # contract: K8
            set_("VpcConfig", {"Subnets": ["a_b"], "SecurityGroupIds": []}),
            (
                f"2 validation errors detected: Value '[]' at 'vpcConfig.securityGroupIds' {FAILED}: Member must have "
                f"length greater than or equal to 1; Value '[a_b]' at 'vpcConfig.subnets' {FAILED}: Member must satisfy "
                "constraint: [Member must have length less than or equal to 32, Member must have length greater than or "
                "equal to 0, Member must satisfy regular expression pattern: [-0-9a-zA-Z]+] (item 1)"
            ),
        ),
        (  # contract: K16, I6
            set_("AlgorithmSpecification.MetricDefinitions", [{"Name": "m", "Regex": "x" * 501}]),
            "'algorithmSpecification.metricDefinitions.1.member.regex'",
        ),
        (  # contract: A7, K22
            set_("AlgorithmSpecification.ContainerArguments", ["-c", "x" * 257]),
            "Member must have length less than or equal to 256",
        ),
        (
            set_("AlgorithmSpecification.ContainerEntrypoint", []),
            "greater than or equal to 1",
        ),  # contract: A7
        (set_("AlgorithmSpecification.TrainingImage", "r/" + "x" * 254), "or equal to 255"),  # contract: A15
        (set_("AlgorithmSpecification.TrainingImageConfig", {}), NOT_NULL),  # contract: A16
        (set_("RetryStrategy.MaximumRetryAttempts", 31), "less than or equal to 30"),  # contract: K17
        (set_("StoppingCondition.MaxRuntimeInSeconds", 0), "greater than or equal to 1"),  # contract: K17
        (set_("StoppingCondition.MaxPendingTimeInSeconds", 60), "or equal to 1800"),  # contract: K17, G8
        (set_("ExperimentConfig.ExperimentName", "x" * 121), "less than or equal to 120"),  # contract: K25
        (
            set_("ResourceConfig.InstanceTyp", "ml.m5.large"),
            f"at 'resourceConfig.instanceTyp' {FAILED}: Member is unknown (did you mean 'InstanceType'?)",
        ),
        (set_("EnableManagedSpotTraining", "yes"), "Member must be a boolean"),
        (set_("ResourceConfig.InstanceCount", True), "Member must be an integer"),
        (set_("ResourceConfig.InstanceCount", "1"), "Member must be an integer"),
        (set_("Tags", {"a": "b"}), "Member must be a list"),
        (set_("VpcConfig", None), f"Value null at 'vpcConfig' {FAILED}: {NOT_NULL}"),
    ],
)
def test_the_model_is_kept(change: Change, words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        awsapi.validate("CreateTrainingJob", changed(change))
    assert words in str(raised.value)


def test_all_violations_come_in_one_text() -> None:
    bad = changed(set_("TrainingJobName", "a_b"))
    bad["HyperParameters"]["x"] = "y" * 2501
    del bad["RoleArn"]
    with pytest.raises(
        ValidationError, match=r"^3 validation errors detected: Value .*; Value .*; Value "
    ) as raised:
        awsapi.check_training(bad)
    assert str(raised.value).count(FAILED) == 3


def test_a_long_value_is_cut_where_aws_would_echo_it_whole() -> None:
    with pytest.raises(ValidationError) as raised:
        awsapi.validate("CreateTrainingJob", changed(set_("HyperParameters.a", "x" * 100_000)))
    assert len(str(raised.value)) < 1200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("ResourceConfig"), f"Value null at 'resourceConfig' {FAILED}: {NOT_NULL}"),  # contract: K2
        (without("StoppingCondition"), "'stoppingCondition'"),  # contract: K2
        (without("AlgorithmSpecification"), "'algorithmSpecification'"),  # contract: K2
        (
            set_("AlgorithmSpecification.AlgorithmName", "blazing"),
            "exactly one of TrainingImage",
        ),  # contract: A15
        (
            set_("AlgorithmSpecification.TrainingImage", "my image:1"),
            "registry/repository[:tag]",
        ),  # contract: A15
        (  # contract: A16
            set_("AlgorithmSpecification.TrainingImageConfig", {"TrainingRepositoryAccessMode": "Vpc"}),
            "needs VpcConfig",
        ),
        (  # contract: K16, I10
            set_("AlgorithmSpecification.MetricDefinitions", [{"Name": "loss", "Regex": "loss=(.*"}]),
            (
                "The regular expression of metric definition 'loss' does not compile: missing ), unterminated "
                "subpattern at position 5"
            ),
        ),
        (
            set_("AlgorithmSpecification.MetricDefinitions", [{"Name": "a", "Regex": "(b)"}] * 2),
            "Metric definition 'a' is given more than once",
        ),
        (set_("ResourceConfig.InstanceGroups", [GROUP]), "can't have both InstanceGroups"),  # contract: K11
        (  # contract: K11
            set_("ResourceConfig.InstancePreferences", [{"InstanceType": "ml.m5.large", "InstanceCount": 1}]),
            "can't have both InstancePreferences and InstanceType",
        ),
        (  # contract: G27
            lambda made: made.update(
                EnableManagedSpotTraining=True,
                StoppingCondition={"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1},
                ResourceConfig={"InstancePreferences": [{"InstanceType": "ml.m5.large", "InstanceCount": 1}]},
            ),
            "InstancePreferences can't be used with EnableManagedSpotTraining",
        ),
        (set_("ResourceConfig", {"InstanceCount": 1}), "'resourceConfig.instanceType'"),
        (set_("ResourceConfig.InstanceCount", 0), "greater than or equal to 1"),  # contract: K28
        (  # contract: K12, G27
            lambda made: (
                made.update(EnableManagedSpotTraining=True),
                made["StoppingCondition"].update(MaxWaitTimeInSeconds=3600),
                made["ResourceConfig"].update(KeepAlivePeriodInSeconds=60),
            ),
            "KeepAlivePeriodInSeconds can't be used with EnableManagedSpotTraining",
        ),
        (  # contract: K12
            set_("ResourceConfig", {"InstanceGroups": [GROUP], "KeepAlivePeriodInSeconds": 60}),
            "KeepAlivePeriodInSeconds can't be used with InstanceGroups",
        ),
        (set_("StoppingCondition.MaxWaitTimeInSeconds", 7200), "only when EnableManagedSpotTraining"),  # K9
        (
            set_("EnableManagedSpotTraining", True),
            "Invalid MaxWaitTimeInSeconds. It must be present",
        ),  # contract: G8
        (  # contract: K9, the seed's own numbers
            lambda made: made.update(
                EnableManagedSpotTraining=True,
                StoppingCondition={"MaxRuntimeInSeconds": 432000, "MaxWaitTimeInSeconds": 10800},
            ),
            (
                "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds "
                "(it is 10800, MaxRuntimeInSeconds is 432000)"
            ),
        ),
        (set_("StoppingCondition.MaxRuntimeInSeconds", 2419201), "28 days"),  # contract: K17
        (set_("InputDataConfig.1.ChannelName", "training"), "Channel 'training' is given more than once"),
        (set_("InputDataConfig.0.DataSource", {}), "exactly one member (it has none)"),
        (  # contract: K14, E20
            set_("InputDataConfig", [channel("c", S3DataType="AugmentedManifestFile", AttributeNames=["a"])]),
            "AugmentedManifestFile can be used only with input mode Pipe, not File",
        ),
        (  # contract: E21
            set_(
                "InputDataConfig", [channel("c", S3DataType="AugmentedManifestFile") | {"InputMode": "Pipe"}]
            ),
            "needs AttributeNames",
        ),
        (set_("InputDataConfig", [channel("c", AttributeNames=["a"])]), "only with S3DataType Augmented"),
        (  # contract: K14, E8
            set_("InputDataConfig", [channel("c", S3DataType="ManifestFile") | {"InputMode": "FastFile"}]),
            "FastFile needs S3DataType S3Prefix, not ManifestFile",
        ),
        (  # contract: K14, E17
            set_("InputDataConfig.0.CompressionType", "Gzip"),
            "Channel 'training': CompressionType Gzip can be used only with input mode Pipe",
        ),
        (
            set_("InputDataConfig.0.RecordWrapperType", "RecordIO"),
            "only with input mode Pipe",
        ),  # contract: K14
        (set_("InputDataConfig", [FILE_SYSTEM]), "needs VpcConfig"),  # contract: E26, K8
        (  # contract: K14
            lambda made: made.update(InputDataConfig=[FILE_SYSTEM | {"InputMode": "Pipe"}], VpcConfig=VPC),
            "only with input mode File",
        ),
        (  # contract: E25
            set_("InputDataConfig", [channel("c", InstanceGroupNames=["gpu"])]),
            "InstanceGroupNames has gpu",
        ),
        (  # contract: K15, A8
            lambda made: (
                made["AlgorithmSpecification"].update(
                    ContainerEntrypoint=["/opt/ml/input/data/training/run.sh"]
                ),
                made["InputDataConfig"][0].update(InputMode="FastFile"),
            ),
            "Channel 'training' holds the container's entry point",
        ),
        (set_("Tags", [{"Key": "a", "Value": "1"}] * 2), "Duplicate tag keys found: 'a'"),
        (set_("Tags", [{"Key": "aws:x", "Value": "1"}]), "reserved for AWS"),  # contract: K7
    ],
)
def test_the_rules_between_fields_are_kept(change: Change, words: str) -> None:
    bad = changed(change)
    with pytest.raises(ValidationError) as raised:
        awsapi.check_training(bad)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        set_("ResourceConfig", {"InstanceGroups": [GROUP], "VolumeSizeInGB": 30}),
        lambda made: made.update(InputDataConfig=[FILE_SYSTEM], VpcConfig=VPC),
        lambda made: made.update(
            EnableManagedSpotTraining=True,
            StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
            CheckpointConfig={"S3Uri": "s3://bucket/c/"},
        ),
        set_("AlgorithmSpecification.TrainingImage", "registry:5000/team/image@sha256:" + "0" * 64),
        set_("AlgorithmSpecification.TrainingImage", "image"),
        set_("Tags", [{"Key": "Größe 한국", "Value": "a=b@c"}]),
        set_("Environment", {"A": "two\nlines"}),
        without("InputDataConfig"),
        lambda made: (
            made["AlgorithmSpecification"].pop("TrainingImage"),
            made["AlgorithmSpecification"].update(AlgorithmName="my-algorithm"),
        ),
    ],
)
def test_what_aws_allows_passes(change: Change) -> None:
    awsapi.check_training(changed(change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_("EnableManagedSpotTraining", True), "spot training without checkpoint_s3_uri"),  # contract: K10
        (set_("CheckpointConfig.S3Uri", "s3://b/ckpt"), "write s3://b/ckpt/"),  # contract: F17
        (  # contract: I9
            set_("AlgorithmSpecification.MetricDefinitions", [{"Name": "m", "Regex": "(a)(b)"}]),
            "2 groups; the first is taken",
        ),
        (  # contract: E9
            set_("InputDataConfig", [channel("c", S3Uri="s3://b/data") | {"InputMode": "FastFile"}]),
            "FastFile needs a whole folder",
        ),
        (set_("InputDataConfig", [channel("my-val.x")]), "SM_CHANNEL_MY-VAL.X"),  # contract: D36, D15
        (set_("InputDataConfig", [channel("c", S3DataDistributionType="ShardedByS3Key")]), "one host"),
        (set_("HyperParameters", {"api_token": "0123456789"}), "looks like a credential"),  # contract: C5
        (set_("Environment", {"X": "AKIAIOSFODNN7EXAMPLE"}), "looks like a credential"),
        (set_("ResourceConfig.KeepAlivePeriodInSeconds", 7200), "at most 3600"),  # contract: K12
        (set_("AlgorithmSpecification.TrainingImage", "harness-pytorch:latest"), "private Docker registry"),
        (
            set_("AlgorithmSpecification.TrainingImage", "763104351884.dkr.ecr.eu-west-1.amazonaws.com/a:1"),
            "the job's region is us-east-1",
        ),
    ],
)
def test_lints(change: Change, words: str) -> None:
    found = awsapi.warnings(changed(change), region="us-east-1")
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("text", '"a b"', "a shell acts on"),
        ("text", '"a;echo X"', "a shell acts on"),
        ("none", "null", "is empty"),
        ("empty", '""', "is empty"),
        ("glob", '"*.py"', "a shell acts on"),
        ("dot.key", "1", "no shell name"),
        ("fine-key", "1", None),
        ("path", '"/opt/ml/x_1.txt"', None),
        ("small", "1e-05", None),
    ],
)
def test_argument_safety(name: str, value: str, words: str | None) -> None:
    """contract: K27, D29, D36"""
    made = changed(set_("HyperParameters", {name: value, "sagemaker_program": '"train.py"'}))
    found = awsapi.warnings(made)
    assert [words in each for each in found if words] == ([True] if words else [])
    assert bool(found) == bool(words)


def test_the_native_launcher_passes_arguments_unchanged() -> None:
    """contract: D30"""
    made = request()
    made["HyperParameters"] = {
        "text": '"a b"',
        "sagemaker_program": '"train.py"',
        "sagemaker_toolkit_native_launcher_enabled": "true",
    }
    assert awsapi.warnings(made) == []


def test_what_botocore_refuses_we_refuse() -> None:
    """Botocore's own validator, for the constraints that it does check."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = (
        botocore.session.get_session()
        .get_service_model("sagemaker")
        .operation_model("CreateTrainingJob")
        .input_shape
    )
    for change in (
        set_("TrainingJobName", 1),
        set_("TrainingJobName", ""),
        set_("HyperParameters", {1: "a"}),
        set_("InputDataConfig", [{"ChannelName": "a"}]),
        set_("CheckpointConfig", {}),
        set_("Tags", [{"Key": "a"}]),
        set_("ResourceConfig.KeepAlivePeriodInSeconds", -1),
        set_("Nonsense", 1),
        set_("InputDataConfig", None),
    ):
        bad = changed(change)
        assert ParamValidator().validate(bad, shape).has_errors()
        assert awsapi.violations("CreateTrainingJob", bad)


def test_every_operation_with_input_can_be_checked() -> None:
    with pytest.raises(ValidationError, match="'trainingJobName'"):
        awsapi.validate("StopTrainingJob", {"TrainingJobName": "a_b"})
    assert awsapi.nodes("DescribeTrainingJob") == ["TrainingJobName"]
    with pytest.raises(SpecError, match="no operation 'MakeTea'"):
        awsapi.validate("MakeTea", {})


def test_describe_defaults() -> None:
    made = request() | {"Tags": [{"Key": "a", "Value": "b"}], "CheckpointConfig": {"S3Uri": "s3://b/c/"}}
    before = copy.deepcopy(made)
    shown = awsapi.describe_defaults(made)
    assert made == before
    assert "Tags" not in shown
    assert shown["EnableManagedSpotTraining"] is False
    assert shown["AlgorithmSpecification"]["EnableSageMakerMetricsTimeSeries"] is True  # contract: I12
    assert shown["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints/"  # contract: F11
    assert shown["OutputDataConfig"] == {
        "S3OutputPath": "s3://bucket/",
        "KmsKeyId": "",
        "CompressionType": "GZIP",
    }
    assert shown["InputDataConfig"][0]["CompressionType"] == "None"
    source = shown["InputDataConfig"][0]["DataSource"]["S3DataSource"]
    assert source["S3DataDistributionType"] == "FullyReplicated"  # contract: E22


def test_what_is_described_is_in_describes_shape() -> None:
    import botocore.session

    output = (
        botocore.session.get_session()
        .get_service_model("sagemaker")
        .operation_model("DescribeTrainingJob")
        .output_shape
    )
    assert set(awsapi.describe_defaults(request())) <= set(output.members)


def test_the_model_is_kept_in_the_cache_and_a_damaged_one_made_again(home: Path) -> None:
    _model.load.cache_clear()
    root, shapes = _model.load("CreateTrainingJob")
    (cache,) = (home / "cache").iterdir()
    assert awsapi.botocore_version() in cache.name
    cache.write_text("{")
    _model.load.cache_clear()
    assert _model.load("CreateTrainingJob") == (root, shapes)
    assert json.loads(cache.read_text())["input"] == root
    _model.load.cache_clear()


def test_a_place_that_cannot_be_written_is_no_error(home: Path) -> None:
    (home / "cache").write_text("a file where the directory should be")
    _model.load.cache_clear()
    assert len(awsapi.nodes()) >= 146
    _model.load.cache_clear()


def test_a_warm_validate_never_imports_botocore(home: Path) -> None:
    awsapi_then = (
        "import sys; from harness import awsapi; awsapi.violations('CreateTrainingJob', {}); "
        "print(*sorted({'botocore', 'boto3', 'regex', 'gzip', 'tempfile'} & set(sys.modules)))"
    )
    for expected in ("gzip tempfile", ""):  # the first fills the cache
        ran = subprocess.run(
            [sys.executable, "-c", awsapi_then],
            env={
                "HARNESS_HOME": str(home),
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == expected

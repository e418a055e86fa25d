"""The golden shapes of /opt/ml, the platform's environment, commands and failure reasons."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from harness import contract
from harness.errors import ClientError
from harness.model import ExitStatus

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:1.10.0-gpu-py38-cu113-ubuntu20.04-sagemaker"


def request(**fields: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": "the-job",
        "AlgorithmSpecification": {"TrainingImage": "my-image:1", "TrainingInputMode": "File"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.12xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30},
        **fields,
    }


def tree(
    tmp_path: Path,
    job: dict[str, Any],
    *channels: contract.ChannelView,
    host: str = "algo-1",
    clutter: bool = False,
) -> Path:
    ml = tmp_path / "ml"
    ml.mkdir(exist_ok=True)
    view = contract.host_view(job, host, seed="the-job")
    contract.write_tree(ml, request=job, job_name="the-job", host=view, channels=channels, clutter=clutter)
    contract.relax_tree(ml)
    return ml


def config(ml: Path, name: str) -> str:
    return (ml / "input/config" / name).read_text()


# ------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (1, ("algo-1",)),
        (2, ("algo-1", "algo-2")),
        (
            11,
            ("algo-1", "algo-10", "algo-11", *(f"algo-{n}" for n in range(2, 10))),
        ),
    ],
)
def test_host_names_are_sorted_as_strings(count: int, names: tuple[str, ...]) -> None:  # contract: C10, H1
    assert contract.host_names(count) == names


def test_a_homogeneous_job_has_one_group_of_that_name() -> None:  # contract: C12
    (group,) = contract.groups(request(), "seed")
    assert (group.name, group.instance_type) == ("homogeneousCluster", "ml.g4dn.12xlarge")
    assert sorted(group.hosts) == ["algo-1", "algo-2"]


def test_group_hosts_are_shuffled_once_per_job() -> None:  # contract: C11, H12
    job = request(ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 16})
    views = [contract.host_view(job, host, seed="the-job") for host in contract.host_names(16)]
    assert len({view.groups for view in views}) == 1
    (group,) = views[0].groups
    assert group.hosts != tuple(sorted(group.hosts))
    assert group.hosts != contract.groups(job, "another-job")[0].hosts
    assert {view.hosts for view in views} == {contract.host_names(16)}


def test_instance_groups_share_the_hosts_out() -> None:  # contract: C12
    job = request(
        ResourceConfig={
            "InstanceGroups": [
                {"InstanceGroupName": "data", "InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
                {"InstanceGroupName": "gpu", "InstanceType": "ml.p3.2xlarge", "InstanceCount": 1},
            ]
        }
    )
    data, gpu = contract.groups(job, 1)
    assert (sorted(data.hosts), gpu.hosts) == (["algo-1", "algo-2"], ("algo-3",))
    view = contract.host_view(job, "algo-3", seed=1)
    assert (view.group, view.instance_type) == ("gpu", "ml.p3.2xlarge")
    assert view.hosts == ("algo-1", "algo-2", "algo-3")


def test_instance_preferences_give_the_first() -> None:
    job = request(
        ResourceConfig={"InstancePreferences": [{"InstanceType": "ml.p5.48xlarge", "InstanceCount": 3}]}
    )
    (group,) = contract.groups(job, 1)
    assert (group.instance_type, len(group.hosts)) == ("ml.p5.48xlarge", 3)


def test_hostnames_look_like_ec2_and_differ() -> None:  # contract: A20, D9
    names = [contract.ec2_hostname("the-job", host, "eu-west-1") for host in contract.host_names(100)]
    assert len(set(names)) == 100
    assert names == [contract.ec2_hostname("the-job", host, "eu-west-1") for host in contract.host_names(100)]
    assert names[0] != contract.ec2_hostname("another-job", "algo-1", "eu-west-1")
    for name in names:
        match = re.fullmatch(r"ip-10-0-(\d+)-(\d+)\.eu-west-1\.compute\.internal", name)
        assert match is not None
        assert all(1 <= int(number) <= 254 for number in match.groups())


# -------------------------------------------------------------------------------- tree


def test_the_tree_of_a_plain_job(tmp_path: Path) -> None:
    # contract: B1, B2, B3, B5, B6, B23, B25, C2, C21, C28
    ml = tmp_path / "ml"
    ml.mkdir()
    old = os.umask(0o077)
    try:
        contract.write_tree(
            ml,
            request=request(),
            job_name="the-job",
            host=contract.host_view(request(), "algo-1", seed=1),
            channels=[],
        )
    finally:
        os.umask(old)
    directory = ml / "input/config"
    assert stat.filemode(directory.stat().st_mode) == "drw-r--r--"
    contract.relax_tree(ml)
    found = {str(path.relative_to(ml)): stat.S_IMODE(path.stat().st_mode) for path in sorted(ml.rglob("*"))}
    assert found == {
        "input": 0o755,
        "input/config": 0o755,
        "input/config/hyperparameters.json": 0o644,
        "input/config/inputdataconfig.json": 0o644,
        "input/config/metric-definition-regex.json": 0o644,
        "input/config/resourceconfig.json": 0o644,
        "input/data": 0o755,
        "model": 0o755,
        "output": 0o755,
        "output/data": 0o755,
    }
    for name in ("hyperparameters.json", "inputdataconfig.json", "metric-definition-regex.json"):
        assert config(ml, name) == "{}"


def test_resourceconfig(tmp_path: Path) -> None:  # contract: C8, C13, C14, C31
    job = request()
    ml = tree(tmp_path, job, host="algo-2")
    (group,) = contract.groups(job, "the-job")
    assert config(ml, "resourceconfig.json") == (
        '{"current_host":"algo-2","current_instance_type":"ml.g4dn.12xlarge",'
        '"current_group_name":"homogeneousCluster","hosts":["algo-1","algo-2"],'
        '"instance_groups":[{"instance_group_name":"homogeneousCluster",'
        f'"instance_type":"ml.g4dn.12xlarge","hosts":["{group.hosts[0]}","{group.hosts[1]}"]}}],'
        '"network_interface_name":"eth0"}'
    )


def test_inputdataconfig(tmp_path: Path) -> None:  # contract: B7, B8, C17, C18, C19, C20, C22
    ml = tree(
        tmp_path,
        request(),
        contract.ChannelView(name="training", mode="File", manifest=b"[]"),
        contract.ChannelView(
            name="My-val.x",
            mode="FastFile",
            content_type="text/csv",
            record_wrapper="RecordIO",
            distribution="ShardedByS3Key",
        ),
        contract.ChannelView(name="stream", mode="Pipe"),
    )
    assert json.loads(config(ml, "inputdataconfig.json")) == {
        "training": {
            "TrainingInputMode": "File",
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "None",
        },
        "My-val.x": {
            "TrainingInputMode": "FastFile",
            "S3DistributionType": "ShardedByS3Key",
            "RecordWrapperType": "RecordIO",
            "ContentType": "text/csv",
        },
        "stream": {
            "TrainingInputMode": "Pipe",
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "None",
        },
    }
    data = ml / "input/data"
    assert sorted(path.name for path in data.iterdir()) == ["My-val.x", "training", "training-manifest"]
    assert (data / "training-manifest").read_bytes() == b"[]"


def test_a_manifest_never_hides_a_channel(tmp_path: Path) -> None:
    ml = tree(
        tmp_path,
        request(),
        contract.ChannelView(name="a", mode="File", manifest=b"[]"),
        contract.ChannelView(name="a-manifest", mode="File"),
    )
    assert (ml / "input/data/a-manifest").is_dir()


@pytest.mark.parametrize("name", [".", ".."])
def test_a_channel_must_be_a_directory_of_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClientError, match="ChannelName"):
        tree(tmp_path, request(), contract.ChannelView(name=name, mode="File"))


@pytest.mark.parametrize(
    "given",
    # contract: C6, A22. SDK v2's framework estimators write JSON, its generic Estimator text.
    ['"s3://b/k/sourcedir.tar.gz"', "s3://b/k/sourcedir.tar.gz"],
)
def test_hyperparameters(tmp_path: Path, given: str) -> None:  # contract: C1
    job = request(HyperParameters={"lr": "1e-05", "adam": '"é"', "sagemaker_submit_directory": given})
    ml = tree(tmp_path, job)
    assert config(ml, "hyperparameters.json") == (
        '{"lr":"1e-05","adam":"\\"é\\"","sagemaker_submit_directory":' + json.dumps(given) + "}"
    )
    assert contract.submit_directory(job) == "s3://b/k/sourcedir.tar.gz"
    assert (ml / "code").is_dir()


def test_code_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "ml/code").mkdir(parents=True)
    (tmp_path / "ml/code/train.py").write_text("x")
    ml = tree(tmp_path, request(HyperParameters={"sagemaker_program": "train.py"}))
    assert (ml / "code/train.py").read_text() == "x"


@pytest.mark.parametrize(
    ("field", "value", "file", "content", "directory"),
    [
        (  # contract: C23, F11
            "CheckpointConfig",
            {"S3Uri": "s3://b/c/"},
            "checkpointconfig.json",
            '{"LocalPath":"/opt/ml/checkpoints"}',
            "checkpoints",
        ),
        (
            "CheckpointConfig",
            {"S3Uri": "s3://b/c/", "LocalPath": "/opt/ml/my/checkpoints/"},
            "checkpointconfig.json",
            '{"LocalPath":"/opt/ml/my/checkpoints"}',
            "my/checkpoints",
        ),
        (  # contract: B18, C24
            "DebugHookConfig",
            {"S3OutputPath": "s3://b/d", "CollectionConfigurations": []},
            "debughookconfig.json",
            (
                '{"LocalPath":"/opt/ml/output/tensors","S3OutputPath":"s3://b/d","HookParameters":null,'
                '"CollectionConfigurations":[]}'
            ),
            "output/tensors",
        ),
        (
            "DebugHookConfig",
            {
                "S3OutputPath": "s3://b/d",
                "LocalPath": "/opt/ml/output/mine",
                "HookParameters": {"save_interval": "1"},
                "CollectionConfigurations": [
                    {"CollectionName": "losses", "CollectionParameters": {"save_interval": "5"}},
                    {"CollectionName": "weights"},
                ],
            },
            "debughookconfig.json",
            (
                '{"LocalPath":"/opt/ml/output/mine","S3OutputPath":"s3://b/d",'
                '"HookParameters":{"save_interval":"1"},"CollectionConfigurations":['
                '{"CollectionName":"losses","CollectionParameters":{"save_interval":"5"}},'
                '{"CollectionName":"weights","CollectionParameters":{}}]}'
            ),
            "output/mine",
        ),
        (  # contract: C25
            "TensorBoardOutputConfig",
            {"S3OutputPath": "s3://b/t"},
            "tensorboardoutputconfig.json",
            '{"LocalPath":"/opt/ml/output/tensorboard","S3OutputPath":"s3://b/t"}',
            "output/tensorboard",
        ),
        (  # contract: B19, C26, C30
            "ProfilerConfig",
            {"S3OutputPath": "s3://b/p", "ProfilingParameters": {"DataloaderProfilingConfig": "{}"}},
            "profilerconfig.json",
            (
                '{"ProfilingIntervalInMilliseconds":500,"ProfilingParameters":{"DataloaderProfilingConfig":"{}"},'
                '"DisableProfiler":false,"S3OutputPath":"s3://b/p"}'
            ),
            "output/profiler",
        ),
    ],
)
def test_conditional_files(
    tmp_path: Path, field: str, value: object, file: str, content: str, directory: str
) -> None:
    ml = tree(tmp_path, request(**{field: value}))
    assert config(ml, file) == content
    assert (ml / directory).is_dir()


def test_a_disabled_profiler_has_its_file_and_no_directory(tmp_path: Path) -> None:  # contract: C26
    ml = tree(tmp_path, request(ProfilerConfig={"DisableProfiler": True}))
    assert json.loads(config(ml, "profilerconfig.json"))["DisableProfiler"] is True
    assert not (ml / "output/profiler").exists()


def test_clutter_is_asked_for(tmp_path: Path) -> None:  # contract: B4, C29
    ml = tree(tmp_path, request(), clutter=True)
    for name in ("init-config.json", "trainingjobconfig.json", "upstreamoutputdataconfig.json"):
        assert config(ml, name) == "{}"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (None, "/opt/ml/checkpoints"),
        ("/opt/ml/checkpoints/", "/opt/ml/checkpoints"),
        ("//opt/ml//checkpoints", "/opt/ml/checkpoints"),
        ("/root/ckpt/../x", "/root/x"),
    ],
)
def test_checkpoint_path(given: str | None, path: str) -> None:  # contract: F11
    where = {"S3Uri": "s3://b/c/"} | ({} if given is None else {"LocalPath": given})
    assert contract.checkpoint_path(request(CheckpointConfig=where)) == PurePosixPath(path)
    assert contract.checkpoint_path(request()) is None


@pytest.mark.parametrize("given", ["checkpoints", "/", "/opt", "/opt/ml", "/opt/ml/model/..", "//"])
def test_checkpoints_can_not_be_everywhere(given: str) -> None:
    with pytest.raises(ClientError, match="LocalPath"):
        contract.checkpoint_path(request(CheckpointConfig={"S3Uri": "s3://b/c/", "LocalPath": given}))


def test_checkpoints_elsewhere_make_nothing_here(tmp_path: Path) -> None:
    ml = tree(tmp_path, request(CheckpointConfig={"S3Uri": "s3://b/c/", "LocalPath": "/root/x"}))
    assert not (ml / "checkpoints").exists()
    assert not (tmp_path / "root").exists()


# ------------------------------------------------------------------------- environment


def environment(job: dict[str, Any], gpus: int = 0) -> dict[str, str]:
    return contract.platform_environment(
        job, job_arn="arn:aws:x", region="eu-west-1", hostname="ip-10-0-1-2", gpus=gpus
    )


def test_platform_environment() -> None:  # contract: D1, D2, D3, D5, D6, D8, D9, D12, A14
    assert environment(request(Environment={"A": "x\ny", "AWS_DEFAULT_REGION": "mine"})) == {
        "A": "x\ny",
        "AWS_DEFAULT_REGION": "mine",
        "TRAINING_JOB_NAME": "the-job",
        "TRAINING_JOB_ARN": "arn:aws:x",
        "AWS_REGION": "eu-west-1",
        "AWS_EXECUTION_ENV": "AWS_ECS_EC2",
        "HOSTNAME": "ip-10-0-1-2",
        "NVIDIA_VISIBLE_DEVICES": "void",
    }


def test_gpu_hosts_are_not_told_void() -> None:  # contract: A14
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(request(), gpus=1)


@pytest.mark.parametrize("name", ["TRAINING_JOB_NAME", "TRAINING_JOB_ARN", "AWS_REGION", "HOSTNAME"])
def test_platform_variables_are_the_platforms(name: str) -> None:  # contract: D13
    with pytest.raises(ClientError, match=f"^Environment sets {name} to 'mine'"):
        environment(request(Environment={name: "mine"}))


def test_the_same_value_is_no_conflict() -> None:
    assert environment(request(Environment={"AWS_REGION": "eu-west-1"}))["AWS_REGION"] == "eu-west-1"


@pytest.mark.parametrize(
    ("algorithm", "given"),
    [
        ({"TrainingImage": IMAGE}, True),
        ({"TrainingImage": IMAGE.replace("1.10.0", "1.2.0")}, False),
        ({"TrainingImage": IMAGE.replace("pytorch-training:1.10", "tensorflow-training:1.15")}, True),
        ({"TrainingImage": IMAGE.replace("pytorch-training:1.10", "tensorflow-training:1.14")}, False),
        ({"TrainingImage": "mine"}, False),
        ({"TrainingImage": "mine", "MetricDefinitions": [{"Name": "a", "Regex": "(.)"}]}, True),
        ({"TrainingImage": "mine", "EnableSageMakerMetricsTimeSeries": True}, True),
        ({"TrainingImage": IMAGE, "EnableSageMakerMetricsTimeSeries": False}, False),
        ({"AlgorithmName": "arn:aws:sagemaker:x"}, False),
    ],
)
def test_metrics_directory(
    tmp_path: Path, algorithm: dict[str, Any], given: bool
) -> None:  # contract: D10, I12
    job = request(AlgorithmSpecification=algorithm)
    where = environment(job).get("SAGEMAKER_METRICS_DIRECTORY")
    assert where == ("/opt/ml/output/metrics/sagemaker" if given else None)
    assert (tree(tmp_path, job) / "output/metrics/sagemaker").is_dir() is given


# ----------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("entrypoint", "arguments", "expected"),
    [
        (None, None, (None, ("train",))),  # contract: A1
        (["/bin/sh", "-c", "x"], None, (("/bin/sh", "-c", "x"), ())),  # contract: A4
        (None, ["a", "b"], (None, ("a", "b"))),  # contract: A5
        (["python3"], ["a"], (("python3",), ("a",))),  # contract: A6
    ],
)
def test_command(entrypoint: list[str] | None, arguments: list[str] | None, expected: object) -> None:
    algorithm: dict[str, Any] = {"TrainingImage": "mine"}
    if entrypoint is not None:
        algorithm["ContainerEntrypoint"] = entrypoint
    if arguments is not None:
        algorithm["ContainerArguments"] = arguments
    job = request(AlgorithmSpecification=algorithm)
    assert contract.command(job) == expected
    own = contract.command(job, ("python3", "toolkit"))
    assert own[0] == (tuple(entrypoint) if entrypoint else ("python3", "toolkit"))
    assert own[1] == expected[1]  # type: ignore[index]


# ---------------------------------------------------------------------- failure reason


@pytest.mark.parametrize(
    ("status", "file", "reason"),
    [
        # contract: G17, G18
        (ExitStatus(code=1), b"it broke", "AlgorithmError: it broke, exit code: 1"),
        (ExitStatus(code=1), None, "AlgorithmError: , exit code: 1"),
        (ExitStatus(code=139), b"", "AlgorithmError: , exit code: 139"),
        # contract: F21
        (ExitStatus(code=1), b"caf\xc3\xa9 \xff", "AlgorithmError: café \ufffd, exit code: 1"),
        # contract: A2, A3
        (
            ExitStatus(code=127, error='exec: "train": executable file not found in $PATH'),
            None,
            'AlgorithmError: exec: "train": executable file not found in $PATH, exit code: 127',
        ),
        (
            ExitStatus(code=126, error="exec: train: permission denied"),
            None,
            "AlgorithmError: exec: train: permission denied, exit code: 126",
        ),
        (
            ExitStatus(code=137, oom_killed=True),
            None,
            (
                "AlgorithmError: , exit code: 137 (the kernel killed a process of this host: it needed more memory "
                "than the host has)"
            ),
        ),
        # contract: G20
        (
            ExitStatus(code=137, vanished=True),
            b"x",
            "InternalServerError: a host was gone without an exit status",
        ),
    ],
)
def test_failure_reason(status: ExitStatus, file: bytes | None, reason: str) -> None:
    assert contract.failure_reason(status, file) == reason


@pytest.mark.parametrize("file", [b"x" * 5000, "é".encode() * 5000])
def test_failure_reason_is_cut(file: bytes) -> None:  # contract: F21, G19
    reason = contract.failure_reason(ExitStatus(code=1), file)
    assert len(reason) == 1024
    assert reason.startswith("AlgorithmError: " + file.decode()[:1000])


@pytest.mark.parametrize("length", [900, 994])
def test_the_exit_code_stays_while_it_fits(length: int) -> None:  # contract: G18
    reason = contract.failure_reason(ExitStatus(code=3), b"x" * length)
    assert re.search(r"exit code: (\d+)", reason)


def test_messages() -> None:  # contract: G4
    assert contract.messages.PENDING == "Training job waiting for capacity"
    assert contract.messages.DOWNLOADING == "Downloading input data"
    assert contract.messages.TRAINING == "Training image download completed. Training in progress."
    assert contract.messages.UPLOADING == "Uploading generated training model"
    assert contract.messages.COMPLETED == "Training job completed"

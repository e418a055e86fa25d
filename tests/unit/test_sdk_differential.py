"""Our request against the one that the official SDK sends for the same words.

The SDK's real code runs, down to the signed HTTP request: only the sending is answered here. A field that
differs is a field where the job would differ.
"""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.spec import TrainingSpec

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("sagemaker") is None,
        reason="the SageMaker SDK is not installed: pip install 'sagemaker-harness[sagemaker]'",
    ),
    pytest.mark.filterwarnings("ignore"),
]

ROLE = "arn:aws:iam::111122223333:role/SageMakerRole"
JOB = "mnist-differential"
SEED = {
    "entry_point": "train_pytorch_smdataparallel_mnist.py",
    "role": ROLE,
    "framework_version": "1.10",
    "py_version": "py38",
    "instance_count": 1,
    "instance_type": "ml.p4d.24xlarge",
    "hyperparameters": {"batch_size": 32, "lr": 1e-4, "image_size": 128},
}
DATA = "s3://my-bucket/my_training_data/"
SPOT = {
    "max_run": 5 * 24 * 60 * 60,
    "use_spot_instances": True,
    "max_wait": 5 * 24 * 60 * 60,
    "checkpoint_s3_uri": "s3://my-bucket/checkpoints/",
}
VPC = {"subnets": ["subnet-0a1b2c3d"], "security_group_ids": ["sg-0a1b2c3d", "sg-11111111"]}
TORCHRUN = {"framework_version": "2.0.1", "py_version": "py310", "instance_type": "ml.g5.12xlarge"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Words that both sides get, and those that each side has its own form for."""

    both: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    sdk: Callable[[], dict[str, Any]] = dict
    """Late, because it makes SDK objects."""
    inputs: Any = field(default_factory=lambda: {"training": DATA})
    sdk_inputs: Callable[[], Any] | None = None
    experiment: dict[str, str] | None = None


def training_input(**words: Any) -> Any:
    from sagemaker.inputs import ShuffleConfig, TrainingInput

    if "shuffle_config" in words:
        words["shuffle_config"] = ShuffleConfig(words["shuffle_config"])
    return TrainingInput(**words)


def file_system(**words: Any) -> Any:
    from sagemaker.inputs import FileSystemInput

    return FileSystemInput(**words)


def debugger(cls: str, **words: Any) -> Any:
    import sagemaker.debugger

    return getattr(sagemaker.debugger, cls)(**words)


def groups() -> list[Any]:
    from sagemaker.instance_group import InstanceGroup

    return [InstanceGroup("cpu", "ml.m5.xlarge", 2), InstanceGroup("gpu", "ml.p4d.24xlarge", 1)]


RICH = {
    "s3_data": "s3://my-bucket/sharded/",
    "distribution": "ShardedByS3Key",
    "content_type": "text/csv",
    "compression": "Gzip",
    "record_wrapping": "RecordIO",
    "input_mode": "Pipe",
    "shuffle_config": 7,
}
AUGMENTED = {
    "s3_data": "s3://my-bucket/lines.manifest",
    "s3_data_type": "AugmentedManifestFile",
    "attribute_names": ["image-ref", "label"],
    "input_mode": "Pipe",
}
EFS = {"file_system_id": "fs-0123456789abcdef0", "file_system_type": "EFS", "directory_path": "/dataset"}
LUSTRE = {
    "file_system_id": "fs-0123456789abcdef1",
    "file_system_type": "FSxLustre",
    "directory_path": "/abcde/dataset",
    "file_system_access_mode": "rw",
    "content_type": "image/png",
}
ODD_VALUES = {
    "text": "adam",
    "yes": True,
    "none": None,
    "layers": [1, 2, "a"],
    "nested": {"a": 1.5},
    "small": 1e-05,
    "quote": 'say "hi"',
    "umlaut": "größe",
}

CASES = {
    "seed": Case(),
    "one input": Case(inputs=DATA),
    "no input": Case(inputs=None),
    "spot": Case(both=SPOT),
    "checkpoint path": Case(both={**SPOT, "checkpoint_local_path": "/opt/ml/ckpt"}),
    "metric definitions": Case(
        both={"metric_definitions": [{"Name": "train:Loss", "Regex": "Train_Loss = (.*?) :"}]}
    ),
    "hyperparameter values": Case(both={"hyperparameters": ODD_VALUES}),
    "environment": Case(both={"environment": {"NCCL_DEBUG": "INFO", "LANG": "ko_KR.UTF-8"}}),
    "tags": Case(both={"tags": [{"Key": "team", "Value": "vision"}]}),
    "tags as a table": Case(both={"tags": {"team": "vision", "cost centre": "17"}}),
    "vpc": Case(both={**VPC, "encrypt_inter_container_traffic": True}),
    "kms": Case(
        both={
            "instance_type": "ml.m5.xlarge",
            "volume_kms_key": "alias/volume",
            "output_kms_key": "alias/output",
            "volume_size": 100,
        }
    ),
    "output path": Case(both={"output_path": "s3://elsewhere/results", "disable_output_compression": True}),
    "code location": Case(both={"code_location": "s3://code-bucket/some/prefix"}),
    "channels": Case(
        both={"input_mode": "FastFile"},
        inputs={"plain": DATA, "rich": RICH, "augmented": AUGMENTED},
        sdk_inputs=lambda: {
            "plain": DATA,
            "rich": training_input(**RICH),
            "augmented": training_input(**AUGMENTED),
        },
    ),
    "file systems": Case(
        both=VPC,
        inputs={"efs": EFS, "lustre": LUSTRE},
        sdk_inputs=lambda: {"efs": file_system(**EFS), "lustre": file_system(**LUSTRE)},
    ),
    "sdk objects as inputs": Case(
        inputs="sdk",
        sdk_inputs=lambda: {"training": training_input(s3_data=DATA, input_mode="FastFile")},
    ),
    "model channel": Case(both={"model_uri": "s3://my-bucket/model.tar.gz", "model_channel_name": "start"}),
    "smdistributed": Case(both={"distribution": {"smdistributed": {"dataparallel": {"enabled": True}}}}),
    "smdistributed options": Case(
        both={
            "distribution": {
                "smdistributed": {"dataparallel": {"enabled": True, "custom_mpi_options": "-verbose"}}
            }
        }
    ),
    "pytorchddp": Case(both={"distribution": {"pytorchddp": {"enabled": True}}}),
    "mpi": Case(
        both={
            "instance_count": 2,
            "distribution": {
                "mpi": {"enabled": True, "processes_per_host": 8, "custom_mpi_options": "-verbose"}
            },
        }
    ),
    "torch_distributed": Case(both={**TORCHRUN, "distribution": {"torch_distributed": {"enabled": True}}}),
    "torch_distributed off": Case(
        both={**TORCHRUN, "distribution": {"torch_distributed": {"enabled": False}}}
    ),
    "both launchers": Case(
        both={
            **TORCHRUN,
            "instance_type": "ml.p4d.24xlarge",
            "distribution": {
                "torch_distributed": {"enabled": True},
                "smdistributed": {"dataparallel": {"enabled": True}},
            },
        }
    ),
    "instance groups": Case(
        both={
            "instance_type": None,
            "instance_count": None,
            "framework_version": "1.12",
        },
        ours={
            "instance_groups": [
                {"name": "cpu", "instance_type": "ml.m5.xlarge", "instance_count": 2},
                {"InstanceGroupName": "gpu", "InstanceType": "ml.p4d.24xlarge", "InstanceCount": 1},
            ],
            "distribution": {"mpi": {"enabled": True}, "instance_groups": ["gpu"]},
        },
        sdk=lambda: (
            lambda made: {
                "instance_groups": made,
                "distribution": {"mpi": {"enabled": True}, "instance_groups": [made[1]]},
            }
        )(groups()),
    ),
    "debugger off": Case(both={"debugger_hook_config": False, "disable_profiler": True}),
    "debugger": Case(
        ours={
            "debugger_hook_config": {
                "s3_output_path": "s3://my-bucket/tensors",
                "hook_parameters": {"save_interval": "100"},
                "collection_configs": [{"name": "weights"}, {"name": "losses", "parameters": {"a": "1"}}],
            }
        },
        sdk=lambda: {
            "debugger_hook_config": debugger(
                "DebuggerHookConfig",
                s3_output_path="s3://my-bucket/tensors",
                hook_parameters={"save_interval": "100"},
                collection_configs=[
                    debugger("CollectionConfig", name="weights"),
                    debugger("CollectionConfig", name="losses", parameters={"a": "1"}),
                ],
            )
        },
    ),
    "profiler": Case(
        ours={"profiler_config": {"system_monitor_interval_millis": 500}},
        sdk=lambda: {"profiler_config": debugger("ProfilerConfig", system_monitor_interval_millis=500)},
    ),
    "profiler off by its config": Case(
        ours={"profiler_config": {"disable_profiler": True}},
        sdk=lambda: {"profiler_config": debugger("ProfilerConfig", disable_profiler=True)},
    ),
    "tensorboard": Case(
        ours={
            "tensorboard_output_config": {
                "s3_output_path": "s3://my-bucket/tb",
                "container_local_output_path": "/opt/ml/output/tb",
            }
        },
        sdk=lambda: {
            "tensorboard_output_config": debugger(
                "TensorBoardOutputConfig",
                s3_output_path="s3://my-bucket/tb",
                container_local_output_path="/opt/ml/output/tb",
            )
        },
    ),
    "experiment": Case(experiment={"ExperimentName": "mnist", "TrialName": "one", "RunName": "run-1"}),
    "warm pool": Case(both={"keep_alive_period_in_seconds": 600}),
    "retry": Case(both={"max_retry_attempts": 3}),
    "network isolation": Case(both={"enable_network_isolation": True}),
    "container command": Case(
        both={
            "container_entry_point": ["python3", "/opt/ml/code/x.py"],
            "container_arguments": ["--epochs", "3"],
        }
    ),
    "private registry": Case(
        both={
            **VPC,
            "image_uri": "registry.example.com/team/pytorch:1",
            "training_repository_access_mode": "Vpc",
            "training_repository_credentials_provider_arn": (
                "arn:aws:lambda:us-east-1:111122223333:function:credentials"
            ),
        }
    ),
    "own image": Case(
        both={
            "image_uri": "111122223333.dkr.ecr.us-east-1.amazonaws.com/own:1",
            "framework_version": None,
            "py_version": None,
        }
    ),
    "log level": Case(both={"container_log_level": 10, "enable_sagemaker_metrics": False}),
    "switches": Case(
        both={"enable_infra_check": True, "enable_remote_debug": True, "enable_session_tag_chaining": True}
    ),
}


@dataclass
class Cloud:
    """Answers what the SDK sends, and keeps the CreateTrainingJob requests."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    session: Any = None

    def answer(self, request: Any, event_name: str, **_: Any) -> Any:
        from botocore.awsrequest import AWSResponse

        body: Any = b""
        operation = event_name.rsplit(".", 1)[-1]
        if operation == "CreateTrainingJob":
            self.requests.append(json.loads(request.body))
            body = {"TrainingJobArn": f"arn:aws:sagemaker:us-east-1:111122223333:training-job/{JOB}"}
        elif operation == "GetCallerIdentity":
            body = (
                b"<GetCallerIdentityResponse><GetCallerIdentityResult><Account>111122223333</Account>"
                b"</GetCallerIdentityResult></GetCallerIdentityResponse>"
            )
        elif operation == "PutObject":
            self.uploads.append(request.url)
        elif operation == "ListBuckets":
            body = b"<ListAllMyBucketsResult><Buckets></Buckets></ListAllMyBucketsResult>"
        elif operation not in ("HeadBucket", "CreateBucket"):
            raise AssertionError(f"the SDK called {operation}")
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        return AWSResponse(request.url, 200, {}, _Raw(content))


class _Raw:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.content


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, Any]]:
    """The SDK's session, without this machine's AWS settings and without telemetry, and what it talks to.

    One for all tests: botocore needs seconds to make the clients.
    """
    place = tmp_path_factory.mktemp("sdk")
    config = place / "config.yaml"
    config.write_text("SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(place))  # where the SDK looks for its own settings
        patch.setenv("XDG_CONFIG_DIRS", str(place))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, str(place / "none"))
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import boto3
            import sagemaker
            import sagemaker.telemetry.telemetry_logging as telemetry

            patch.setattr(telemetry, "_send_telemetry_request", lambda *_, **__: None)
            session = boto3.Session(
                aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret", region_name="us-east-1"
            )
            cloud = Cloud()
            session.events.register("before-send", cloud.answer)
            yield cloud, sagemaker.Session(boto_session=session, sagemaker_config={})


@pytest.fixture
def cloud(connected: tuple[Cloud, Any], home: Path) -> Cloud:
    del home  # where the image cache goes
    cloud, session = connected
    cloud.requests.clear()
    cloud.uploads.clear()
    cloud.session = session
    return cloud


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train_pytorch_smdataparallel_mnist.py").write_text("print('hello')\n")
    return folder


def sdk_request(cloud: Cloud, words: dict[str, Any], inputs: Any, **fit: Any) -> dict[str, Any]:
    from sagemaker.pytorch import PyTorch

    PyTorch(sagemaker_session=cloud.session, **words).fit(inputs, wait=False, **fit)
    (request,) = cloud.requests
    return request


def without_order(request: dict[str, Any]) -> dict[str, Any]:
    """The SDK keeps collections in a set: their order says nothing."""
    hook = request.get("DebugHookConfig")
    if hook:
        hook["CollectionConfigurations"].sort(key=lambda each: each["CollectionName"])
    return request


@pytest.mark.parametrize("name", CASES)
def test_the_request_is_the_sdks(name: str, cloud: Cloud, code: Path, tmp_path: Path) -> None:
    """contract: C6, H10, and every field that the SDK fills in"""
    case = CASES[name]
    both = {**SEED, **case.both}
    inputs = case.sdk_inputs() if case.sdk_inputs else case.inputs
    fit = {"job_name": JOB, **({"experiment_config": case.experiment} if case.experiment else {})}
    sent = sdk_request(cloud, {**both, "source_dir": str(code), **case.sdk()}, inputs, **fit)

    ours = {**both, **case.ours, "source_dir": "code", "experiment_config": case.experiment}
    ours["inputs"] = inputs if case.inputs == "sdk" else case.inputs
    spec = TrainingSpec(**ours).compile(job_name=JOB, base=tmp_path)

    assert without_order(spec.request) == without_order(sent)
    (source,) = (upload for upload in spec.uploads if upload.kind == "source")
    bucket, key = source.uri.removeprefix("s3://").split("/", 1)
    (uploaded,) = cloud.uploads
    assert bucket in uploaded
    assert uploaded.split("?")[0].endswith(key)


def test_the_script_alone(cloud: Cloud, code: Path, tmp_path: Path) -> None:
    """Without source_dir the archive is the script, and the program its file name."""
    script = code / SEED["entry_point"]
    sent = sdk_request(cloud, {**SEED, "entry_point": str(script)}, DATA, job_name=JOB)
    spec = TrainingSpec(**{**SEED, "entry_point": f"code/{script.name}"}, inputs=DATA).compile(
        job_name=JOB, base=tmp_path
    )
    assert spec.request == sent


@pytest.mark.parametrize(
    "words", [{"base_job_name": "digits"}, {}, {"base_job_name": "d" * 70}], ids=["base", "image", "long"]
)
def test_names_are_made_as_the_sdk_makes_them(
    words: dict[str, str], cloud: Cloud, code: Path, tmp_path: Path
) -> None:
    """contract: K1"""
    stamp = re.compile(r"\d{4}(-\d\d){5}-\d{1,3}")
    sent = sdk_request(cloud, {**SEED, **words, "source_dir": str(code)}, DATA)
    spec = TrainingSpec(**SEED, **words, source_dir="code", inputs=DATA).compile(base=tmp_path)
    ours, theirs = (json.dumps(request, sort_keys=True) for request in (spec.request, sent))
    assert stamp.sub("<now>", ours) == stamp.sub("<now>", theirs)
    assert len(stamp.findall(ours)) == 3

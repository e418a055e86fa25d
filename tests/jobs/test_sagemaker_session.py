"""Unmodified SageMaker estimators, whose jobs really run here."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import socket
import tarfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.home import Home
from harness.objects import ObjectStore

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("sagemaker") is None,
        reason="the SageMaker SDK is not installed: pip install 'sagemaker-harness[sagemaker]'",
    ),
    pytest.mark.filterwarnings("ignore"),
]

SCRIPT = """
    import argparse, os, pathlib, sys, time
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--fail", type=int, default=0)
    arguments, _ = parser.parse_known_args()
    print(f'data: {sorted(os.listdir(os.environ["SM_CHANNEL_TRAINING"]))}', flush=True)  # one write is one line
    for epoch in range(arguments.epochs):
        print(f"loss={1 / (epoch + 1)};", flush=True)
        time.sleep(0.1)
    pathlib.Path(os.environ["SM_MODEL_DIR"], "weights").write_text("w")
    checkpoints = pathlib.Path("/opt/ml/checkpoints")
    if checkpoints.exists():
        (checkpoints / "last.pt").write_text("c")
    if arguments.fail:
        raise ValueError("the labels are wrong")
"""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever opens a connection to another machine fails, and is told on."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            tried.append(address)
            raise OSError(f"the network is off in this test: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
    assert not tried


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which AWS's own clients find no credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def session(home: Path, no_network: None, no_credentials: None) -> Any:
    del home, no_network, no_credentials
    return harness.sagemaker_session(engine="sandbox", stop_grace=1)


@pytest.fixture
def estimator(tmp_path: Path, session: Any) -> Callable[..., Any]:
    """Makes an estimator as a user of ml.p4d.24xlarge writes it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text(textwrap.dedent(SCRIPT))

    def make(**words: Any) -> Any:
        from sagemaker.pytorch import PyTorch

        given: dict[str, Any] = {
            "entry_point": "train.py",
            "source_dir": str(source),
            "role": "SageMakerRole",
            "instance_type": "ml.p4d.24xlarge",
            "instance_count": 1,
            "framework_version": "1.13",
            "py_version": "py39",
            "hyperparameters": {"epochs": 3},
            "metric_definitions": [{"Name": "loss", "Regex": "loss=(.*?);"}],
            "sagemaker_session": session,
        }
        return PyTorch(**{**given, **words})

    return make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    return folder


def test_fit(
    estimator: Callable[..., Any],
    tmp_path: Path,
    home: Path,
    engine_name: str,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """# contract: I1, I2, I11"""
    del tmp_path
    session = harness.sagemaker_session(engine=engine_name, images={"*": "harness-pytorch"})
    made = estimator(sagemaker_session=session)
    uploaded = session.upload_data(str(data), key_prefix="in/train")
    assert uploaded == "s3://sagemaker-us-east-1-111122223333/in/train"
    made.fit({"training": uploaded})

    told = capsys.readouterr().out
    order = ["Starting - ", "Training - ", "data: ['a.txt']", "loss=1.0;", "Uploading - ", "Completed - "]
    places = [told.index(each) for each in order]
    assert places == sorted(places), told
    assert "Training seconds: " in told

    described = made.latest_training_job.describe()
    assert described["TrainingJobStatus"] == "Completed"
    assert described["ResourceConfig"]["InstanceType"] == "ml.p4d.24xlarge"
    assert described["CreationTime"].tzinfo is not None
    assert made.model_data == described["ModelArtifacts"]["S3ModelArtifacts"]
    archive = ObjectStore(Home(home).s3).path(made.model_data)
    with tarfile.open(archive) as tar:
        assert "weights" in {name.removeprefix("./") for name in tar.getnames()}

    frame = made.training_job_analytics.dataframe()
    assert frame["metric_name"].unique().tolist() == ["loss"]
    assert frame["value"].mean() == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=0.5)
    assert harness.job(made.latest_training_job.name).status == "Completed"


def test_a_failed_job_raises_the_sdks_own_exception(
    estimator: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two hosts, spot, checkpoints, and data that lies on this machine.

    # contract: G22
    """
    from sagemaker.exceptions import UnexpectedStatusException
    from sagemaker.inputs import TrainingInput

    made = estimator(
        instance_count=2,
        hyperparameters={"epochs": 1, "fail": 1},
        use_spot_instances=True,
        max_run=600,
        max_wait=600,
        checkpoint_s3_uri="s3://my-bucket/checkpoints",
    )
    inputs = {"training": f"file://{data}", "one": TrainingInput(f"file://{data}/a.txt")}
    with pytest.raises(UnexpectedStatusException) as raised:
        made.fit(inputs)
    assert f"Error for Training job {made.latest_training_job.name}: Failed. Reason: AlgorithmError" in str(
        raised.value
    )
    assert "ValueError: the labels are wrong" in str(raised.value)
    assert raised.value.actual_status == "Failed"
    told = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    assert told.count("data: ['a.txt']") == 2
    described = made.latest_training_job.describe()
    assert described["EnableManagedSpotTraining"] is True
    assert described["CheckpointConfig"]["S3Uri"] == "s3://my-bucket/checkpoints"
    source = described["InputDataConfig"][0]["DataSource"]["S3DataSource"]
    assert source["S3Uri"].startswith("s3://sagemaker-us-east-1-111122223333/")
    listed = made.sagemaker_session.s3_client.list_objects_v2(Bucket="my-bucket", Prefix="checkpoints/")
    assert any(each["Key"].endswith("last.pt") for each in listed["Contents"])


def test_a_job_that_nobody_waits_for(
    estimator: Callable[..., Any], session: Any, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sagemaker.pytorch import PyTorch

    made = estimator(hyperparameters={"epochs": 600}, tags=[{"Key": "team", "Value": "vision"}])
    made.fit({"training": f"file://{data}"}, wait=False)
    job = made.latest_training_job
    assert job.describe()["TrainingJobStatus"] == "InProgress"
    listed = session.sagemaker_client.list_training_jobs(StatusEquals="InProgress")
    assert [each["TrainingJobName"] for each in listed["TrainingJobSummaries"]] == [job.name]
    deadline = time.monotonic() + 60
    while "loss=1.0;" not in harness.job(job.name).logs():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    assert f"the job {job.name} goes on, as it would in the cloud" in capsys.readouterr().err
    assert job.describe()["TrainingJobStatus"] == "InProgress"
    job.stop()
    job.wait()
    assert job.describe()["TrainingJobStatus"] == "Stopped"

    attached = PyTorch.attach(job.name, sagemaker_session=session)
    assert attached.hyperparameters()["epochs"] == "600"
    assert attached.instance_type == "ml.p4d.24xlarge"
    assert session.list_tags(job.describe()["TrainingJobArn"]) == [{"Key": "team", "Value": "vision"}]
    capsys.readouterr()
    attached.logs()
    assert "loss=1.0;" in capsys.readouterr().out


def test_what_is_not_answered_says_so(estimator: Callable[..., Any], session: Any, data: Path) -> None:
    import sagemaker
    from botocore.exceptions import ClientError, ParamValidationError

    assert sagemaker.get_execution_role(session) == "arn:aws:iam::111122223333:role/SageMakerRole"
    client = session.sagemaker_client
    with pytest.raises(
        ClientError, match=r"UnknownOperationException.*doesn't answer ListModels of sagemaker"
    ):
        client.list_models()
    with pytest.raises(ClientError, match=r"ValidationException.*Requested resource not found\."):
        client.describe_training_job(TrainingJobName="never-was")
    with pytest.raises(ParamValidationError):
        client.create_training_job(TrainingJobName=3)
    made = estimator(hyperparameters={"epochs": 0})
    made.fit({"training": f"file://{data}"}, wait=False)
    with pytest.raises(client.exceptions.ResourceInUse):  # contract: K23
        made.fit({"training": f"file://{data}"}, job_name=made.latest_training_job.name, wait=False)
    made.latest_training_job.wait(logs="None")
    with pytest.raises(ClientError, match="UnknownOperationException"):
        made.deploy(1, "ml.m5.large", entry_point="train.py")


def test_an_instance_type_that_does_not_exist_is_refused(estimator: Callable[..., Any], data: Path) -> None:
    from botocore.exceptions import ClientError

    made = estimator(
        instance_type="ml.p4d.24xlrge", image_uri="111122223333.dkr.ecr.us-east-1.amazonaws.com/i:1"
    )
    with pytest.raises(ClientError, match=r"ValidationException.*ml\.p4d\.24xlarge"):
        made.fit({"training": f"file://{data}"})


def test_objects_through_boto3(session: Any, tmp_path: Path) -> None:
    """Whole, in parts, by range; what would be lost without a word is refused."""
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import ClientError

    s3 = session.s3_client
    s3.create_bucket(Bucket="a-bucket")
    big = tmp_path / "big"
    content = os.urandom(6 << 20)
    big.write_bytes(content)
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    s3.upload_file(str(big), "a-bucket", "d/big", Config=parts)
    s3.download_file("a-bucket", "d/big", str(tmp_path / "again"), Config=parts)
    assert (tmp_path / "again").read_bytes() == content
    assert s3.get_object(Bucket="a-bucket", Key="d/big", Range="bytes=5-9")["Body"].read() == content[5:10]
    assert s3.get_object(Bucket="a-bucket", Key="d/big", Range="bytes=-3")["Body"].read() == content[-3:]

    for key in ("d/e/1", "d/e/2", "f"):
        s3.put_object(Bucket="a-bucket", Key=key, Body=io.BytesIO(b"x"))
    listed = s3.list_objects_v2(Bucket="a-bucket", Prefix="d/", Delimiter="/")
    assert [each["Key"] for each in listed["Contents"]] == ["d/big"]
    assert [each["Prefix"] for each in listed["CommonPrefixes"]] == ["d/e/"]
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="a-bucket", PaginationConfig={"PageSize": 1})
    assert [each["Key"] for page in pages for each in page["Contents"]] == ["d/big", "d/e/1", "d/e/2", "f"]
    assert [each.key for each in session.s3_resource.Bucket("a-bucket").objects.all()][-1] == "f"

    s3.copy_object(Bucket="a-bucket", Key="g", CopySource={"Bucket": "a-bucket", "Key": "f"})
    s3.delete_objects(Bucket="a-bucket", Delete={"Objects": [{"Key": "f"}, {"Key": "d/e/1"}]})
    with pytest.raises(ClientError, match="Not Found"):
        s3.head_object(Bucket="a-bucket", Key="f")
    with pytest.raises(s3.exceptions.NoSuchKey):
        s3.get_object(Bucket="a-bucket", Key="f")
    with pytest.raises(ClientError, match="Forbidden"):
        s3.head_bucket(Bucket="a-bucket", ExpectedBucketOwner="999999999999")
    with pytest.raises(ClientError, match=r"NotImplemented.*doesn't keep Metadata"):
        s3.put_object(Bucket="a-bucket", Key="m", Body=b"", Metadata={"a": "b"})


def test_the_log_through_boto3(estimator: Callable[..., Any], session: Any, data: Path) -> None:
    """# contract: I1, I2"""
    made = estimator(hyperparameters={"epochs": 2})
    made.fit({"training": f"file://{data}"}, logs="None")
    logs = session.boto_session.client("logs")
    group, name = "/aws/sagemaker/TrainingJobs", made.latest_training_job.name
    (stream,) = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{name}/")["logStreams"]
    assert re.fullmatch(rf"{name}/algo-1-\d+", stream["logStreamName"])
    which = {"logGroupName": group, "logStreamName": stream["logStreamName"]}
    everything = logs.get_log_events(**which, startFromHead=True)["events"]
    messages = [event["message"] for event in everything]
    assert [each for each in messages if each.startswith("loss")] == ["loss=1.0;", "loss=0.5;"]

    paged: list[str] = []
    token: dict[str, str] = {}
    while events := (answer := logs.get_log_events(**which, startFromHead=True, limit=7, **token))["events"]:
        paged += [event["message"] for event in events]
        token = {"nextToken": answer["nextForwardToken"]}
    assert paged == messages
    assert logs.get_log_events(**which, limit=3)["events"] == everything[-3:]
    late = everything[-1]["timestamp"]
    after = logs.get_log_events(**which, startTime=late, startFromHead=True)["events"]
    assert after == [event for event in everything if event["timestamp"] >= late]
    with pytest.raises(logs.exceptions.ResourceNotFoundException):
        logs.get_log_events(logGroupName=group, logStreamName="never/algo-1-1")

"""Clauses of the contract that are kept in passing, and have no better place to be tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import contract
from harness.engines.sandbox import _devices
from harness.errors import InternalServerError
from harness.lifecycle import _outcome, describe
from harness.spec import compile_table
from harness.store import JobRecord, StopRequest
from harness.telemetry import stream_name

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:{}-gpu-py38"


def enumeration(name: str) -> set[str]:
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    return set(model.shape_for(name).enum)


def test_every_state_of_a_job_is_one_of_aws() -> None:  # contract: G1, G2
    ends = [
        _outcome.COMPLETED,
        *_outcome.STOPPED.values(),
        _outcome.failed_by(InternalServerError("x")),
    ]
    assert {end.status for end in ends} == {"Completed", "Stopped", "Failed"}
    assert {end.status for end in ends} | {"InProgress", "Stopping"} <= enumeration("TrainingJobStatus")
    phases = {"Starting", "Pending", "Downloading", "Training", "Uploading", "Stopping"}
    assert {end.secondary for end in ends} | phases <= enumeration("SecondaryStatus")


def record(**fields: Any) -> JobRecord:
    request = {
        "TrainingJobName": "j",
        "RoleArn": "arn:aws:iam::111122223333:role/R",
        "AlgorithmSpecification": {"TrainingImage": "i", "TrainingInputMode": "File"},
        "OutputDataConfig": {"S3OutputPath": "s3://b/"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 1},
    }
    values: dict[str, Any] = {
        "name": "j",
        "arn": "arn:aws:sagemaker:us-east-1:111122223333:training-job/j",
        "status": "Failed",
        "secondary_status": "Failed",
        "failure_reason": "ClientError: no data",
        "created": 1.0,
        "modified": 2.0,
        "training_start": None,
        "training_end": None,
        "ended": 2.0,
        "attempt": 1,
        "stop_request": StopRequest.NONE,
        "engine": "sandbox",
        "instance_type": "ml.m5.large",
        "instance_count": 1,
        "request": request,
    }
    return JobRecord(**{**values, **fields})


def test_a_job_that_failed_before_training_has_no_times() -> None:  # contract: G23
    times = {"TrainingStartTime", "TrainingEndTime", "TrainingTimeInSeconds", "BillableTimeInSeconds"}

    assert not times & set(describe(record(), []))
    assert {"TrainingStartTime", "TrainingEndTime"} <= set(
        describe(record(training_start=1.0, training_end=2.0), [])
    )


def test_hosts_have_trees_of_their_own(tmp_path: Path) -> None:  # contract: B24
    request = record().request | {
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 2, "VolumeSizeInGB": 1}
    }
    for host in ("algo-1", "algo-2"):
        (tmp_path / host).mkdir()
        view = contract.host_view(request, host, seed="j")
        contract.write_tree(tmp_path / host, request=request, job_name="j", host=view, channels=())
    (tmp_path / "algo-1/model/weights").touch()

    assert not list((tmp_path / "algo-2/model").iterdir())
    contract.relax_tree(tmp_path / "algo-1")
    contract.relax_tree(tmp_path / "algo-2")


def test_the_metrics_directory_is_made(tmp_path: Path) -> None:  # contract: I18
    request = record().request
    request["AlgorithmSpecification"]["EnableSageMakerMetricsTimeSeries"] = True
    view = contract.host_view(request, "algo-1", seed="j")
    contract.write_tree(tmp_path, request=request, job_name="j", host=view, channels=())
    contract.relax_tree(tmp_path)

    assert (tmp_path / "output/metrics/sagemaker").is_dir()


def test_efa_devices_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # contract: B15
    (tmp_path / "infiniband").mkdir()
    (tmp_path / "null").touch()
    monkeypatch.setattr(_devices, "_DEV", tmp_path)

    assert _devices.nodes(()) == ["null", "infiniband"]


def test_streams_are_named_alike_for_every_kind_of_job() -> None:  # contract: I2
    assert stream_name("j", "algo-1", 12.9) == "j/algo-1-12"


@pytest.mark.parametrize(
    ("version", "more", "words"),
    [
        # contract: K19
        (
            "1.5",
            {
                "instance_type": "ml.p4d.24xlarge",
                "distribution": {"smdistributed": {"dataparallel": {"enabled": True}}},
            },
            "with PyTorch 1.6 to 2.2, not 1.5",
        ),
        # contract: K21
        (
            "1.9",
            {
                "instance_groups": [
                    {"instance_group_name": "a", "instance_type": "ml.m5.large", "instance_count": 1}
                ]
            },
            "heterogeneous clusters need PyTorch 1.10 or later, not 1.9",
        ),
    ],
    ids=["SMDDP", "heterogeneous"],
)
def test_versions_that_the_sdk_would_refuse(
    tmp_path: Path, version: str, more: dict[str, Any], words: str
) -> None:
    (tmp_path / "train.py").touch()
    spec = compile_table(
        {
            "name": "j",
            "role": "arn:aws:iam::111122223333:role/R",
            "image_uri": IMAGE.format(version),
            "entry_point": "train.py",
            "source_dir": str(tmp_path),
            **({"instance_count": 1} if "instance_type" in more else {}),
            **more,
        },
        origin="test",
        base=tmp_path,
    )
    assert any(words in warning for warning in spec.warnings), spec.warnings

"""DescribeTrainingJob's answer, from the record (BOTO:DescribeTrainingJobResponse)."""

from __future__ import annotations

from typing import Final

from harness.awsapi import describe_defaults
from harness.model import JsonObject, MetricPoint
from harness.store import JobRecord

__all__ = ["describe"]

_COPIED: Final = (
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "StoppingCondition",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "DebugHookConfig",
    "DebugRuleConfigurations",
    "ExperimentConfig",
    "TensorBoardOutputConfig",
    "ProfilerConfig",
    "ProfilerRuleConfigurations",
    "Environment",
    "RetryStrategy",
    "RemoteDebugConfig",
    "InfraCheckConfig",
    "HyperParameters",
)


def describe(record: JobRecord, metrics: list[MetricPoint]) -> JsonObject:
    """The job in DescribeTrainingJob's own shape; times are epoch seconds, as on the wire.

    `metrics` are the values of the job's metric definitions in order of arrival: the last of each name
    becomes FinalMetricDataList (contract: I11).
    """
    request = record.request
    members = describe_defaults(request)
    answer: JsonObject = {
        "TrainingJobName": record.name,
        "TrainingJobArn": record.arn,
        "TrainingJobStatus": record.status,
        "SecondaryStatus": record.secondary_status,
        "CreationTime": record.created,
        "LastModifiedTime": record.modified,
        "SecondaryStatusTransitions": [
            {
                "Status": item.status,
                "StartTime": item.start,
                **({} if item.end is None else {"EndTime": item.end}),
                "StatusMessage": item.message,
            }
            for item in record.transitions
        ],
    }
    answer |= {key: members[key] for key in _COPIED if key in members}
    # The service's model requires it of every answer, so it names the place from the start, and also when
    # there will be nothing in it (contract: F3, F5).
    output = request["OutputDataConfig"]
    tail = "model.tar.gz" if output.get("CompressionType", "GZIP") == "GZIP" else "model/"
    answer["ModelArtifacts"] = {
        "S3ModelArtifacts": f"{output['S3OutputPath'].rstrip('/')}/{record.name}/output/{tail}"
    }
    if record.failure_reason:
        answer["FailureReason"] = record.failure_reason
    if record.training_start is not None:
        answer["TrainingStartTime"] = record.training_start
        if record.training_end is not None:
            seconds = max(1, round(record.training_end - record.training_start))
            answer["TrainingEndTime"] = record.training_end
            answer["TrainingTimeInSeconds"] = seconds
            answer["BillableTimeInSeconds"] = seconds
    final: dict[str, MetricPoint] = {point.name: point for point in metrics}
    if final:
        answer["FinalMetricDataList"] = [
            {"MetricName": name, "Value": point.value, "Timestamp": point.timestamp_ms / 1000}
            for name, point in list(final.items())[:40]
        ]
    return {**members, **answer}

"""The variables that the platform sets, for any image (contract: D1–D14)."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

from harness.errors import ClientError
from harness.model import JsonObject

__all__ = ["metrics_directory", "platform_environment"]

_METRICS: Final = PurePosixPath("/opt/ml/output/metrics/sagemaker")

_TIME_SERIES_SINCE: Final = {"tensorflow": (1, 15), "mxnet": (1, 6), "pytorch": (1, 3)}
_AWS_IMAGE: Final = re.compile(
    r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(?:\.cn)?/"
    r"(?:huggingface-)?(?P<framework>tensorflow|mxnet|pytorch)-training[a-z-]*:(?P<major>\d+)\.(?P<minor>\d+)"
)


def platform_environment(
    request: JsonObject, *, job_arn: str, region: str, hostname: str, gpus: int
) -> dict[str, str]:
    """Environment of one host: the request's own entries, verbatim, and the platform's.

    There is no `SM_*` among them: those are the toolkit's (contract: D12). AWS_DEFAULT_REGION stays unset
    (contract: D6), so a script that gives boto3 no region fails here as it does there. `gpus` is how many
    GPUs the host has here. Raises ClientError when the request would change a variable of the platform
    (contract: D13).
    """
    platform = {
        "TRAINING_JOB_NAME": str(request["TrainingJobName"]),  # contract: D1
        "TRAINING_JOB_ARN": job_arn,  # contract: D2
        "AWS_REGION": region,  # contract: D5
        "AWS_EXECUTION_ENV": "AWS_ECS_EC2",  # contract: D8
        "HOSTNAME": hostname,  # contract: D9
    }
    if (metrics := metrics_directory(request)) is not None:
        platform["SAGEMAKER_METRICS_DIRECTORY"] = str(metrics)  # contract: D10
    if gpus == 0:
        platform["NVIDIA_VISIBLE_DEVICES"] = "void"  # contract: A14
    environment: dict[str, str] = dict(request.get("Environment") or {})  # contract: D3
    for name, value in platform.items():
        if environment.setdefault(name, value) != value:
            raise ClientError(
                f"Environment sets {name} to {environment[name]!r}, but the platform sets it to {value!r}: "
                "remove the entry from Environment"
            )
    return environment


def metrics_directory(request: JsonObject) -> PurePosixPath | None:
    """Where smexperiments writes, if the job has a metrics time series at all (contract: D10, I12).

    EnableSageMakerMetricsTimeSeries decides; without it, a metric definition or an AWS image of a version
    that has it.
    """
    algorithm = request["AlgorithmSpecification"]
    enabled = algorithm.get("EnableSageMakerMetricsTimeSeries")
    if enabled is None:
        enabled = bool(algorithm.get("MetricDefinitions"))
        image = _AWS_IMAGE.match(algorithm.get("TrainingImage") or "")
        if image is not None:
            version = (int(image["major"]), int(image["minor"]))
            enabled |= version >= _TIME_SERIES_SINCE[image["framework"]]
    return _METRICS if enabled else None

"""What DescribeTrainingJob shows of a request: its members, with the service's defaults filled in."""

from __future__ import annotations

import copy
import re

from harness.model import JsonObject

_NOT_DESCRIBED = ("Tags", "SessionChainingConfig")  # Describe's shape hasn't got them; tags: ListTags
_SWITCHES = ("EnableNetworkIsolation", "EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining")
_METRIC_IMAGES = re.compile(r"(?:tensorflow|mxnet|pytorch)-training:(\d+)\.(\d+)")
_FIRST_WITH_METRICS = {"tensorflow": (1, 15), "mxnet": (1, 6), "pytorch": (1, 3)}


def describe_defaults(request: JsonObject) -> JsonObject:
    """A copy of a valid CreateTrainingJob request as DescribeTrainingJob would show its members.

    Only what the request itself decides: names, times, statuses and artifacts are the store's.
    """
    shown: JsonObject = copy.deepcopy({k: v for k, v in request.items() if k not in _NOT_DESCRIBED})
    for switch in _SWITCHES:
        shown.setdefault(switch, False)
    shown.setdefault("StoppingCondition", {}).setdefault("MaxRuntimeInSeconds", 24 * 3600)  # contract: G6
    output = shown.setdefault("OutputDataConfig", {})
    output.setdefault("KmsKeyId", "")
    output.setdefault("CompressionType", "GZIP")  # contract: F8
    algorithm = shown.get("AlgorithmSpecification")
    if algorithm is not None:
        algorithm.setdefault("EnableSageMakerMetricsTimeSeries", _metrics_on(algorithm))
    for channel in shown.get("InputDataConfig") or []:
        channel.setdefault("CompressionType", "None")
        channel.setdefault("RecordWrapperType", "None")
        source = channel["DataSource"].get("S3DataSource")
        if source is not None:
            source.setdefault("S3DataDistributionType", "FullyReplicated")  # contract: E22
    if shown.get("CheckpointConfig"):
        shown["CheckpointConfig"].setdefault("LocalPath", "/opt/ml/checkpoints/")  # contract: F11
    return shown


def _metrics_on(algorithm: JsonObject) -> bool:
    """contract: I12"""
    if algorithm.get("MetricDefinitions"):
        return True
    image = _METRIC_IMAGES.search(algorithm.get("TrainingImage") or "")
    if not image:
        return False
    framework = image[0].split("-", 1)[0]
    return (int(image[1]), int(image[2])) >= _FIRST_WITH_METRICS[framework]

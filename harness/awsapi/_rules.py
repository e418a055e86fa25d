"""Rules of CreateTrainingJob that join several fields: contract group K and its neighbours.

The model can't say these. Where a public report shows the service's sentence it is used; the others say
the same in the style of the API reference. What depends on the instance type is in `instances`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.awsapi._validate import Violation, message, violations
from harness.errors import ValidationError
from harness.model import JsonObject

OPERATION = "CreateTrainingJob"
_MAX_RUNTIME = 28 * 24 * 3600  # contract: G6
_INPUT = "/opt/ml/input/data/"


def check_training(request: JsonObject) -> None:
    """Check a CreateTrainingJob request against the model and the cross-field rules.

    Raises:
        ValidationError: everything that is wrong, in one text.
    """
    against_model = [*violations(OPERATION, request), *_missing(request)]
    # The rules read members by type: they wait until the model is satisfied, except for what is missing
    # at the top.
    sound = all(each.value is None and "." not in each.path for each in against_model)
    broken = training_rules(request) if sound else []
    if against_model or broken:
        raise ValidationError("; ".join(([message(against_model)] if against_model else []) + broken))


def training_rules(request: JsonObject) -> list[str]:
    """The sentences of the cross-field rules that a request of the right shape breaks."""
    return [
        *_algorithm(request.get("AlgorithmSpecification") or {}, request),
        *_metrics(request.get("AlgorithmSpecification") or {}),
        *_cluster(request),
        *_stopping(request),
        *_channels(request),
        *_container_script(request),
        *_tags(request),
    ]


def _missing(request: JsonObject) -> Iterator[Violation]:
    """What the model doesn't require, because serverless jobs do without it (contract: K2)."""
    if request.get("ServerlessJobConfig"):
        return
    for name in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if name not in request:
            path = name[:1].lower() + name[1:]
            yield Violation(path=path, constraint="Member must not be null", value=None)


def _algorithm(algorithm: JsonObject, request: JsonObject) -> Iterator[str]:
    if algorithm and bool(algorithm.get("TrainingImage")) == bool(
        algorithm.get("AlgorithmName")
    ):  # contract: A15
        yield (
            "AlgorithmSpecification must have exactly one of TrainingImage and AlgorithmName"
            f" (it has {'both' if algorithm.get('TrainingImage') else 'neither'})"
        )
    image = algorithm.get("TrainingImage") or ""
    if image and not re.fullmatch(r"[^\s:@]+(:\d+/[^\s:@]+)?([:@][^\s]+)?", image):  # contract: A15
        yield f"TrainingImage '{image}' is not of the form registry/repository[:tag] or registry/repository[@digest]"
    access = (algorithm.get("TrainingImageConfig") or {}).get("TrainingRepositoryAccessMode")
    if access == "Vpc" and not request.get("VpcConfig"):  # contract: A16
        yield "TrainingRepositoryAccessMode Vpc needs VpcConfig in the request"


def _metrics(algorithm: JsonObject) -> Iterator[str]:
    definitions = algorithm.get("MetricDefinitions") or []
    for definition in definitions:  # contract: K16, I10
        name = definition["Name"]
        try:
            if not re.compile(definition["Regex"]).groups:
                yield (
                    f"The regular expression of metric definition '{name}' has no group: put parentheses around "
                    f"the number in '{definition['Regex']}'"
                )
        except re.error as error:
            yield (
                f"The regular expression of metric definition '{name}' does not compile: "
                f"{error.msg} at position {error.pos} of '{definition['Regex']}'"
            )
    for name in _doubled(definition["Name"] for definition in definitions):
        yield f"Metric definition '{name}' is given more than once"


def _cluster(request: JsonObject) -> Iterator[str]:
    resources = request.get("ResourceConfig") or {}
    spot = bool(request.get("EnableManagedSpotTraining"))
    groups, preferences = resources.get("InstanceGroups"), resources.get("InstancePreferences")
    single = [name for name in ("InstanceType", "InstanceCount") if resources.get(name) is not None]
    if groups and single:  # contract: K11
        yield f"ResourceConfig can't have both InstanceGroups and {' and '.join(single)}"
    if preferences:  # contract: K11, G27
        others = [
            n for n in ("InstanceType", "InstanceGroups", "InstancePlacementConfig") if resources.get(n)
        ]
        if others:
            yield f"ResourceConfig can't have both InstancePreferences and {' and '.join(others)}"
        if spot:
            yield "InstancePreferences can't be used with EnableManagedSpotTraining"
    elif resources and not groups and len(single) < 2:
        absent = "instanceCount" if "InstanceType" in single else "instanceType"
        yield (
            f"1 validation error detected: Value null at 'resourceConfig.{absent}' failed to satisfy "
            "constraint: Member must not be null"
        )
    counts = [resources.get("InstanceCount")] if single else [g.get("InstanceCount") for g in groups or []]
    if any(count is not None and count < 1 for count in counts):  # contract: K28; the model allows 0
        yield (
            "1 validation error detected: Value '0' at 'resourceConfig.instanceCount' failed to satisfy "
            "constraint: Member must have value greater than or equal to 1"
        )
    for name in _doubled(group.get("InstanceGroupName") for group in groups or []):
        yield f"Instance group '{name}' is given more than once"
    if resources.get("KeepAlivePeriodInSeconds"):  # contract: K12, G27
        if spot:
            yield "KeepAlivePeriodInSeconds can't be used with EnableManagedSpotTraining"
        if groups:
            yield "KeepAlivePeriodInSeconds can't be used with InstanceGroups"


def _stopping(request: JsonObject) -> Iterator[str]:
    stopping = request.get("StoppingCondition") or {}
    longest = stopping.get("MaxRuntimeInSeconds", 24 * 3600)
    wait = stopping.get("MaxWaitTimeInSeconds")
    if longest > _MAX_RUNTIME:  # contract: K17, G6
        yield f"MaxRuntimeInSeconds {longest} is longer than the maximum of 28 days ({_MAX_RUNTIME} seconds)"
    if request.get("EnableManagedSpotTraining"):
        if wait is None or wait < longest:  # contract: K9, G8
            given = "it is absent" if wait is None else f"it is {wait}"
            yield (
                "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to "
                f"MaxRuntimeInSeconds ({given}, MaxRuntimeInSeconds is {longest})"
            )
    elif wait is not None:  # contract: K9, G8
        yield "MaxWaitTimeInSeconds can be given only when EnableManagedSpotTraining is true"


def _channels(request: JsonObject) -> Iterator[str]:
    channels = request.get("InputDataConfig") or []
    default = (request.get("AlgorithmSpecification") or {}).get("TrainingInputMode")
    groups = (request.get("ResourceConfig") or {}).get("InstanceGroups") or []
    named = {group.get("InstanceGroupName") for group in groups}
    for name in _doubled(channel["ChannelName"] for channel in channels):
        yield f"Channel '{name}' is given more than once"
    for channel in channels:
        where = f"Channel '{channel['ChannelName']}'"
        sources = [name for name, source in channel["DataSource"].items() if source is not None]
        if len(sources) != 1:
            yield f"{where}: DataSource must have exactly one member (it has {', '.join(sources) or 'none'})"
            continue
        mode = channel.get("InputMode") or default or "File"
        if "FileSystemDataSource" in sources:
            if mode != "File":  # contract: K14
                yield f"{where}: a file system can be used only with input mode File, not {mode}"
            if not request.get("VpcConfig"):  # contract: E26, K8
                yield f"{where}: a file system data source needs VpcConfig in the request"
        elif "S3DataSource" in sources:
            yield from _s3_channel(where, channel, mode, named)


def _s3_channel(where: str, channel: JsonObject, mode: str, groups: set[Any]) -> Iterator[str]:
    source = channel["DataSource"]["S3DataSource"]
    kind = source.get("S3DataType")
    if kind == "AugmentedManifestFile":
        if mode != "Pipe":  # contract: K14, E20
            yield f"{where}: AugmentedManifestFile can be used only with input mode Pipe, not {mode}"
        if not source.get("AttributeNames"):  # contract: E21
            yield f"{where}: AugmentedManifestFile needs AttributeNames"
    elif source.get("AttributeNames"):
        yield f"{where}: AttributeNames can be given only with S3DataType AugmentedManifestFile"
    if mode == "FastFile" and kind != "S3Prefix":  # contract: K14, E8
        yield f"{where}: input mode FastFile needs S3DataType S3Prefix, not {kind}"
    if channel.get("CompressionType") == "Gzip" and mode != "Pipe":  # contract: K14, E17
        yield f"{where}: CompressionType Gzip can be used only with input mode Pipe, not {mode}"
    if channel.get("RecordWrapperType") == "RecordIO" and mode != "Pipe":  # contract: K14, E15
        yield f"{where}: RecordWrapperType RecordIO can be used only with input mode Pipe, not {mode}"
    unknown = [name for name in source.get("InstanceGroupNames") or () if name not in groups]
    if unknown:  # contract: E25
        yield f"{where}: InstanceGroupNames has {', '.join(unknown)}, which ResourceConfig.InstanceGroups has not"


def _container_script(request: JsonObject) -> Iterator[str]:
    """A script that the container is told to run from a channel must be on disk, on every host."""
    algorithm = request.get("AlgorithmSpecification") or {}
    words = " ".join(
        [*(algorithm.get("ContainerEntrypoint") or ()), *(algorithm.get("ContainerArguments") or ())]
    )
    used = set(re.findall(re.escape(_INPUT) + r"([A-Za-z0-9.\-_]+)/", words))
    for channel in request.get("InputDataConfig") or []:  # contract: K15, A8
        if channel["ChannelName"] not in used:
            continue
        mode = channel.get("InputMode") or algorithm.get("TrainingInputMode") or "File"
        source = channel["DataSource"].get("S3DataSource") or {}
        spread = source.get("S3DataDistributionType", "FullyReplicated")
        if mode != "File" or spread != "FullyReplicated":
            yield (
                f"Channel '{channel['ChannelName']}' holds the container's entry point: it needs input mode File "
                f"and S3DataDistributionType FullyReplicated, not {mode} and {spread}"
            )


def _tags(request: JsonObject) -> Iterator[str]:
    keys = [tag["Key"] for tag in request.get("Tags") or []]
    for key in _doubled(keys):
        yield f"Duplicate tag keys found: '{key}'"
    for key in keys:  # contract: K7
        if key.lower().startswith("aws:"):
            yield f"Tag key '{key}' begins with aws:, which is reserved for AWS"


def _doubled(names: Any) -> list[str]:
    return [str(name) for name, times in Counter(names).items() if times > 1]

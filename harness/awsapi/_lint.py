"""What AWS accepts and a person would regret: sentences for the summary, never errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from harness.model import JsonObject

_RESERVED = "sagemaker_"
_UNSAFE = re.compile(r"[\s\"'$*;&|<>()`\\?]")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"secret|password|passwd|token|api_?key|credential", re.IGNORECASE)
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_ECR = re.compile(r"\d{12}\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/")
_SHORT_WARM_POOL = 3600


def warnings(request: JsonObject, *, region: str | None = None) -> list[str]:
    """Lints of a valid CreateTrainingJob request, most important first; `region` is the job's.

    Each is one sentence that names the field and says what will happen in the cloud.
    """
    return [
        *_spot(request),
        *_checkpoint(request),
        *_metrics(request),
        *_image(request, region),
        *_arguments(request),
        *_channels(request),
        *_secrets(request),
        *_warm_pool(request),
    ]


def _spot(request: JsonObject) -> Iterator[str]:
    if not request.get("EnableManagedSpotTraining") or request.get("CheckpointConfig"):
        return
    yield (  # contract: K10, G26
        "spot training without checkpoint_s3_uri (CheckpointConfig): after an interruption the job starts from zero"
    )
    algorithm = request.get("AlgorithmSpecification") or {}
    wait = (request.get("StoppingCondition") or {}).get("MaxWaitTimeInSeconds") or 0
    if algorithm.get("AlgorithmName") and wait > 3600:  # contract: G26
        yield (
            f"MaxWaitTimeInSeconds is {wait}, but SageMaker allows at most 3600 for built-in and marketplace "
            "algorithms that do not checkpoint"
        )


def _checkpoint(request: JsonObject) -> Iterator[str]:
    uri = (request.get("CheckpointConfig") or {}).get("S3Uri")
    if uri and not uri.endswith("/"):  # contract: F17
        yield (
            f"checkpoint_s3_uri {uri} has no slash at its end: SageMaker also restores objects of sibling prefixes "
            f"that begin with the same letters; write {uri}/"
        )


def _metrics(request: JsonObject) -> Iterator[str]:
    for definition in (request.get("AlgorithmSpecification") or {}).get("MetricDefinitions") or []:
        groups = re.compile(definition["Regex"]).groups
        if groups > 1:  # contract: I9
            yield (
                f"metric definition '{definition['Name']}': its regular expression has {groups} groups; "
                "the first is taken"
            )


def _image(request: JsonObject, region: str | None) -> Iterator[str]:
    algorithm = request.get("AlgorithmSpecification") or {}
    image = algorithm.get("TrainingImage")
    if not image:
        return
    ecr = _ECR.match(image)
    access = (algorithm.get("TrainingImageConfig") or {}).get("TrainingRepositoryAccessMode")
    if not ecr and not image.startswith("public.ecr.aws/") and access != "Vpc":  # contract: A16
        yield (
            f"image {image} is not in Amazon ECR: SageMaker would answer 'TrainingImageConfig with "
            "TrainingRepositoryAccessMode set to VPC must be provided when using a training image from a private "
            "Docker registry'"
        )
    if ecr and region and ecr[1] != region:  # contract: K26
        yield f"image {image} is in {ecr[1]}, but the job's region is {region}: SageMaker pulls from its own region"


def _arguments(request: JsonObject) -> Iterator[str]:
    """contract: K27, D29, D36"""
    given = request.get("HyperParameters") or {}
    script_mode = _RESERVED + "program" in given
    shell = script_mode and given.get("sagemaker_toolkit_native_launcher_enabled") != "true"
    program = str(_decode(given.get(_RESERVED + "program", "")))
    for name, text in given.items():
        if name.startswith(_RESERVED) or name == "mp_parameters":
            continue
        value = _decode(text)
        word = "" if value is None else str(value)
        if shell and program.endswith(".py"):
            if word == "":
                yield (
                    f"hyperparameter '{name}' is empty: the PyTorch toolkit passes it through a shell without quotes, "
                    "so the next option takes its place"
                )
            elif _UNSAFE.search(word):
                yield (
                    f"hyperparameter '{name}' has characters that a shell acts on ({_shown(word)}): the PyTorch toolkit "
                    "passes arguments through a shell without quotes"
                )
        if script_mode and not _IDENTIFIER.fullmatch(name.replace("-", "_")):
            yield f"hyperparameter '{name}' is no shell name: SDK v3's driver can't export SM_HP_{name.upper()}"
        if script_mode and "'" in text and not (shell and program.endswith(".py")):
            yield f"hyperparameter '{name}' has an apostrophe: SDK v3's driver fails on it before your code starts"


def _channels(request: JsonObject) -> Iterator[str]:
    algorithm = request.get("AlgorithmSpecification") or {}
    for channel in request.get("InputDataConfig") or []:
        name = channel["ChannelName"]
        source = channel["DataSource"].get("S3DataSource") or {}
        uri = source.get("S3Uri", "")
        mode = channel.get("InputMode") or algorithm.get("TrainingInputMode") or "File"
        if mode == "FastFile" and not uri.endswith("/"):  # contract: E9
            yield (
                f"channel '{name}': input mode FastFile needs a whole folder; end {uri} with a slash, "
                "a part of a folder's name is refused"
            )
        if not _IDENTIFIER.fullmatch(name):  # contract: D15, D36, K6
            yield (
                f"channel '{name}': SM_CHANNEL_{name.upper()} is no name that a shell can use, and SDK v3's driver "
                "fails on it; use letters, digits and underscores"
            )
        if source.get("S3DataDistributionType") == "ShardedByS3Key" and _hosts(request) == 1:  # contract: E23
            yield f"channel '{name}' is sharded, but the job has one host, which gets everything"


def _secrets(request: JsonObject) -> Iterator[str]:
    """contract: C5"""
    for field in ("HyperParameters", "Environment"):
        for name, value in (request.get(field) or {}).items():
            if _ACCESS_KEY.search(value) or (_SECRET_NAME.search(name) and len(value) > 8):
                yield f"{field} '{name}' looks like a credential: everybody who may describe the job can read it"


def _warm_pool(request: JsonObject) -> Iterator[str]:
    keep = (request.get("ResourceConfig") or {}).get("KeepAlivePeriodInSeconds") or 0
    if keep > _SHORT_WARM_POOL:  # contract: K12
        yield f"KeepAlivePeriodInSeconds is {keep}: the guide allows at most 3600, though the API takes more"


def _hosts(request: JsonObject) -> int:
    resources = request.get("ResourceConfig") or {}
    groups = resources.get("InstanceGroups")
    if groups:
        return sum(group.get("InstanceCount", 0) for group in groups)
    return int(resources.get("InstanceCount") or 1)


def _decode(text: str) -> Any:
    """As the toolkit reads a hyperparameter. contract: D24"""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(word: str) -> str:
    return repr(word if len(word) <= 40 else word[:40] + "…")

"""Words → request, member by member as SDK v2's PyTorch estimator sends it.

`tests/unit/test_sdk_differential.py` runs the SDK beside this and compares.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, get_args, get_origin, get_type_hints

from harness import awsapi
from harness.model import JsonObject, Spec
from harness.spec import _debugging
from harness.spec._check import check
from harness.spec._distribution import encode, launcher, lint
from harness.spec._draft import DEFAULT, Draft, Words
from harness.spec._image import find_image
from harness.spec._inputs import code_channel, find_inputs
from harness.spec._local import local_options
from harness.spec._names import base_of_image, default_bucket, timestamped
from harness.spec._source import ARCHIVE, Source, find_source
from harness.spec._table import kind, spelled, unknown
from harness.spec._training import WORDS, TrainingSpec

_NOTHING: Mapping[str, Any] = {}
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::(\d{12}):role/")
_ISOLATED_CODE = f"/opt/ml/input/data/code/{ARCHIVE}"
_LOG_LEVEL = 20  # logging.INFO, the SDK's default
_SPECIAL = {"local": "the table of this machine", "MetricDefinitions": "AWS's spelling of metric_definitions"}


def compile_words(
    words: Words,
    *,
    local: Mapping[str, Any] = _NOTHING,
    job_name: str | None = None,
    now: datetime | None = None,
) -> Spec:
    """A spec in the SDK's words → its request, checked."""
    members = _members()
    _check_words(words, members)
    options = local_options(words, local)
    account, role = _role(words)
    region = words.get("region") or _region()
    draft = Draft()
    instance_type, groups = _cluster(words)
    algorithm = words.get("AlgorithmSpecification", {})
    image = None
    if not isinstance(algorithm, Mapping) or not {"AlgorithmName", "TrainingImage"} & set(algorithm):
        image = find_image(words, region=region, instance_type=instance_type)
    name = _job_name(words, job_name, now, image)
    bucket = default_bucket(region, account)
    output_path = words.get("output_path") or f"s3://{bucket}/"
    source = find_source(words, job_name=name, output_path=output_path)
    inputs = find_inputs(words, bucket=bucket, job_name=name)

    draft.put("TrainingJobName", name, _name_source(words, job_name))
    _algorithm(words, draft, image, source)
    draft.put("RoleArn", role, words.source("role"))
    _hyperparameters(words, draft, source, name, region, instance_type, groups)
    channels = inputs.channels
    if source and source.upload and words.get("enable_network_isolation"):
        channels = [*channels, code_channel(source.uri)]
    if channels:
        draft.put("InputDataConfig", channels, words.source("inputs"))
    _output(words, draft, output_path)
    _resources(words, draft)
    _stopping(words, draft)
    _network(words, draft)
    _checkpoint(words, draft)
    _debugging.debugging(words, draft, output_path=output_path, region=region, instance_type=instance_type)
    _plain(words, draft)
    lint(words, draft, image or "")
    for member in members:
        if member in words:
            draft.merge(member, words.get(member), words.source(member))
    draft.note_overrides(words)
    found = check(draft.request, region=region)
    return Spec(
        request=draft.request,
        local=options,
        uploads=(*((source.upload,) if source and source.upload else ()), *inputs.uploads),
        region=region,
        account=account,
        origin=words.origin,
        warnings=(*draft.warnings, *found),
        provenance=draft.provenance,
    )


def compile_request(
    words: Words,
    *,
    local: Mapping[str, Any] = _NOTHING,
    job_name: str | None = None,
    now: datetime | None = None,
) -> Spec:
    """A raw CreateTrainingJob request → the same request, checked. `now` is for symmetry only."""
    del now
    request: JsonObject = dict(words.given)
    members = (*_members(), "TrainingJobName", "RoleArn")
    if not set(request) & set(members):
        raise words.error(
            "this is no CreateTrainingJob request: it has neither TrainingJobName nor RoleArn nor any other member; "
            "a spec in the SDK's words is a .toml file"
        )
    if job_name is not None:
        request["TrainingJobName"] = job_name
    region = _region()
    found = check(request, region=region)
    account = _ROLE.match(request["RoleArn"])
    draft = Draft()
    for member, value in request.items():
        draft.merge(member, value, words.source(member))
    draft.note_overrides(words)
    if job_name is not None:
        draft.provenance["TrainingJobName"] = "--job-name"
    return Spec(
        request=request,
        local=local_options(Words(given={}, origin=words.origin, base=words.base), local),
        region=region,
        account=account[1] if account else Spec.account,
        origin=words.origin,
        warnings=found,
        provenance=draft.provenance,
    )


def is_word(word: str) -> bool:
    """Whether the top of a spec knows that word, in the SDK's spelling or AWS's."""
    return word in WORDS or word in _SPECIAL or word in ("TrainingJobName", "RoleArn") or word in _members()


def _members() -> tuple[str, ...]:
    """Top-level members of the request that a spec may give in AWS's spelling."""
    return tuple(n for n in awsapi.nodes() if "." not in n and n not in ("TrainingJobName", "RoleArn"))


def _check_words(words: Words, members: Sequence[str]) -> None:
    hints = get_type_hints(TrainingSpec)
    for word, value in words.given.items():
        if word in hints:
            _check_type(words, word, value, hints[word])
        elif word not in members and word not in _SPECIAL:
            parameters = words.given.get("hyperparameters")
            # `--set epchs=1` may mean one of these as well.
            also = tuple(parameters) if isinstance(parameters, Mapping) else ()
            known = (*WORDS, *members, *_SPECIAL, *also)
            raise words.error(unknown(word, "the spec", WORDS, known))
    if "metric_definitions" in words and "MetricDefinitions" in words:
        raise words.error("metric_definitions is given twice, the second time as MetricDefinitions")


def _check_type(words: Words, word: str, value: Any, hint: Any) -> None:
    wanted = [
        get_origin(option) or option for option in get_args(hint) or (hint,) if option is not type(None)
    ]
    fits = [
        isinstance(value, cls)
        and not (isinstance(value, bool) and bool not in wanted)
        and not (cls is Sequence and isinstance(value, str))
        for cls in wanted
    ]
    sdk_object = Mapping in wanted and (hasattr(value, "_to_request_dict") or hasattr(value, "config"))
    if not any(fits) and not sdk_object:
        names = {
            str: "a string",
            int: "an integer",
            bool: "true or false",
            Mapping: "a table",
            Sequence: "a list",
        }
        raise words.error(f"{word} must be {' or '.join(names[cls] for cls in wanted)}, not {kind(value)}")
    if isinstance(value, Sequence) and Sequence[str] in (hint, *get_args(hint)):
        odd = next((each for each in value if not isinstance(each, str)), None)
        if odd is not None or None in value:
            raise words.error(f"{word} must be a list of strings, and one of it is {kind(odd)}")


def _role(words: Words) -> tuple[str, str]:
    role = words.get("role")
    if role is None:
        raise words.error(
            "role is missing: give the ARN of the execution role, arn:aws:iam::<account>:role/<name>"
        )
    found = _ROLE.match(role)
    if not found:
        what = "is a role's short name" if re.fullmatch(r"[\w+=,.@-]+", role) else "is no role ARN"
        raise words.error(
            f"role {role!r} {what}; give its full ARN, arn:aws:iam::<account>:role/{role if 'short' in what else '<name>'}"
        )
    return found[1], role


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _job_name(words: Words, job_name: str | None, now: datetime | None, image: str | None) -> str:
    exact = words.get("job_name") if job_name is None else job_name
    if exact is not None:
        return str(exact)
    base = words.get("name") or words.get("base_job_name") or (base_of_image(image) if image else "training")
    return timestamped(base, now)


def _name_source(words: Words, job_name: str | None) -> str:
    if job_name is not None:
        return "--job-name"
    given = [word for word in ("job_name", "name", "base_job_name") if word in words]
    return words.source(given[0]) if given else DEFAULT


def _cluster(words: Words) -> tuple[str | None, list[str]]:
    """The instance type that decides over the image, and the names of the groups."""
    single = words.get("instance_type")
    if "instance_groups" not in words:
        return single, []
    groups = _groups(words)
    types = [str(group.get("InstanceType")) for group in groups]
    accelerated = [name for name in types if re.match(r"ml\.[gp]", name)]
    chosen = single or next(iter(accelerated or types), None)
    return chosen, [str(group.get("InstanceGroupName")) for group in groups]


def _groups(words: Words) -> list[JsonObject]:
    members = ("InstanceGroupName", "InstanceType", "InstanceCount")
    return [
        spelled(words, group, f"instance_groups[{n}]", members, {"name": "InstanceGroupName"})
        for n, group in enumerate(words.get("instance_groups"))
    ]


def _algorithm(words: Words, draft: Draft, image: str | None, source: Source | None) -> None:
    def put(member: str, value: Any, word: str) -> None:
        draft.put(f"AlgorithmSpecification.{member}", value, words.source(word))

    put("TrainingInputMode", words.get("input_mode", "File"), "input_mode")
    if image:
        put("TrainingImage", image, "image_uri" if "image_uri" in words else "framework_version")
    metrics = "MetricDefinitions" if "MetricDefinitions" in words else "metric_definitions"
    if metrics in words:
        if not isinstance(words.get(metrics), (list, tuple)):
            raise words.error(f"{metrics} must be a list, not {kind(words.get(metrics))}")
        definitions = [
            spelled(words, each, f"{metrics}[{n}]", ("Name", "Regex"))
            for n, each in enumerate(words.get(metrics))
        ]
        put("MetricDefinitions", definitions, metrics)
    if "enable_sagemaker_metrics" in words:
        put(
            "EnableSageMakerMetricsTimeSeries",
            words.get("enable_sagemaker_metrics"),
            "enable_sagemaker_metrics",
        )
    elif source and _has_metrics(words.get("framework_version")):
        put("EnableSageMakerMetricsTimeSeries", True, "enable_sagemaker_metrics")
    if "container_entry_point" in words:
        put("ContainerEntrypoint", list(words.get("container_entry_point")), "container_entry_point")
    if "container_arguments" in words:
        put("ContainerArguments", list(words.get("container_arguments")), "container_arguments")
    if "training_repository_access_mode" in words:
        config: JsonObject = {"TrainingRepositoryAccessMode": words.get("training_repository_access_mode")}
        provider = words.get("training_repository_credentials_provider_arn")
        if provider:
            config["TrainingRepositoryAuthConfig"] = {"TrainingRepositoryCredentialsProviderArn": provider}
        put("TrainingImageConfig", config, "training_repository_access_mode")


def _has_metrics(version: str | None) -> bool:
    """The SDK switches metrics on from PyTorch 1.3 on. contract: I12"""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return bool(found) and (int(found[1]), int(found[2])) >= (1, 3) if found else False


def _hyperparameters(
    words: Words,
    draft: Draft,
    source: Source | None,
    name: str,
    region: str,
    instance_type: str | None,
    groups: list[str],
) -> None:
    given = words.get("hyperparameters", {})
    for key in given:
        if str(key).startswith("sagemaker_") and source:  # contract: K4, D25
            draft.warnings.append(
                f"hyperparameter {key}: names that begin sagemaker_ never reach your script"
            )
    if source is None:
        if "distribution" in words:
            raise words.error("distribution needs entry_point: only AWS's toolkit reads it")
        for key, value in given.items():  # contract: C6, the generic Estimator
            draft.put_entry("HyperParameters", str(key), str(value), words.source(f"hyperparameters.{key}"))
        return
    for key, value in given.items():  # contract: C6, framework estimators
        draft.put_entry(
            "HyperParameters", str(key), encode(words, key, value), words.source(f"hyperparameters.{key}")
        )
    isolated = source.upload is not None and words.get("enable_network_isolation")
    added = {
        "sagemaker_submit_directory": _ISOLATED_CODE if isolated else source.uri,
        "sagemaker_program": source.program,
        "sagemaker_container_log_level": words.get("container_log_level", _LOG_LEVEL),
        "sagemaker_job_name": name,
        "sagemaker_region": region,
    }
    origin = {"sagemaker_submit_directory": "source_dir", "sagemaker_program": "entry_point"}
    for key, value in added.items():
        draft.put_entry("HyperParameters", key, encode(words, key, value), words.source(origin.get(key, key)))
    switches = launcher(words, words.get("instance_type") and instance_type, groups)
    for key, value in switches.items():
        draft.put_entry("HyperParameters", key, encode(words, key, value), words.source("distribution"))


def _output(words: Words, draft: Draft, output_path: str) -> None:
    draft.put("OutputDataConfig.S3OutputPath", output_path, words.source("output_path"))
    if "output_kms_key" in words:
        draft.put("OutputDataConfig.KmsKeyId", words.get("output_kms_key"), words.source("output_kms_key"))
    if words.get("disable_output_compression"):
        draft.put("OutputDataConfig.CompressionType", "NONE", words.source("disable_output_compression"))


def _resources(words: Words, draft: Draft) -> None:
    def put(member: str, word: str, value: Any = None) -> None:
        value = words.get(word, value)
        if value is not None:
            draft.put(f"ResourceConfig.{member}", value, words.source(word))

    put("VolumeSizeInGB", "volume_size", 30)
    put("VolumeKmsKeyId", "volume_kms_key")
    put("KeepAlivePeriodInSeconds", "keep_alive_period_in_seconds")
    if "instance_groups" in words:
        both = [word for word in ("instance_type", "instance_count") if word in words]
        if both:
            raise words.error(f"instance_groups and {' and '.join(both)} exclude each other")
        draft.put("ResourceConfig.InstanceGroups", _groups(words), words.source("instance_groups"))
    elif "ResourceConfig" not in words:
        if "instance_type" not in words:
            raise words.error(
                "instance_type is missing: the type that the job would get in the cloud, ml.g5.xlarge"
            )
        put("InstanceCount", "instance_count", 1)
        put("InstanceType", "instance_type")
    put("TrainingPlanArn", "training_plan")
    put("InstancePlacementConfig", "instance_placement_config")


def _stopping(words: Words, draft: Draft) -> None:
    draft.put("StoppingCondition.MaxRuntimeInSeconds", words.get("max_run", 86400), words.source("max_run"))
    if words.get("max_wait"):
        draft.put("StoppingCondition.MaxWaitTimeInSeconds", words.get("max_wait"), words.source("max_wait"))


def _network(words: Words, draft: Draft) -> None:
    subnets, security = words.get("subnets"), words.get("security_group_ids")
    if (subnets is None) != (security is None):
        missing = "security_group_ids" if security is None else "subnets"
        raise words.error(f"a VPC needs both subnets and security_group_ids; {missing} is missing")
    if subnets is not None:
        draft.put("VpcConfig.Subnets", list(subnets), words.source("subnets"))
        draft.put("VpcConfig.SecurityGroupIds", list(security), words.source("security_group_ids"))


def _checkpoint(words: Words, draft: Draft) -> None:
    uri, path = words.get("checkpoint_s3_uri"), words.get("checkpoint_local_path")
    if uri:
        draft.put("CheckpointConfig.S3Uri", uri, words.source("checkpoint_s3_uri"))
        if path:
            draft.put("CheckpointConfig.LocalPath", path, words.source("checkpoint_local_path"))
    elif path:
        raise words.error(
            "checkpoint_local_path is given without checkpoint_s3_uri, so nothing would be kept"
        )


def _plain(words: Words, draft: Draft) -> None:
    """Words that are one member each, present only when they say something."""
    switches = {
        "enable_network_isolation": "EnableNetworkIsolation",
        "encrypt_inter_container_traffic": "EnableInterContainerTrafficEncryption",
        "use_spot_instances": "EnableManagedSpotTraining",
    }
    for word, member in switches.items():
        if words.get(word):
            draft.put(member, True, words.source(word))
    nested = {
        "enable_infra_check": "InfraCheckConfig.EnableInfraCheck",
        "enable_remote_debug": "RemoteDebugConfig.EnableRemoteDebug",
        "enable_session_tag_chaining": "SessionChainingConfig.EnableSessionTagChaining",
        "max_retry_attempts": "RetryStrategy.MaximumRetryAttempts",
    }
    for word, path in nested.items():
        if word in words:
            draft.put(path, words.get(word), words.source(word))
    for key, value in words.get("environment", {}).items():
        draft.put_entry("Environment", key, value, words.source(f"environment.{key}"))
    if words.get("experiment_config"):
        members = ("ExperimentName", "TrialName", "TrialComponentDisplayName", "RunName")
        table = spelled(words, words.get("experiment_config"), "experiment_config", members)
        draft.put("ExperimentConfig", table, words.source("experiment_config"))
    tags = words.get("tags")
    if isinstance(tags, Mapping):
        draft.put("Tags", [{"Key": str(k), "Value": str(v)} for k, v in tags.items()], words.source("tags"))
    elif tags is not None:
        each = [spelled(words, tag, f"tags[{n}]", ("Key", "Value")) for n, tag in enumerate(tags)]
        draft.put("Tags", each, words.source("tags"))

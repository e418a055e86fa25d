"""The words of a training job: those of SageMaker SDK v2's `PyTorch` estimator and of its `fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from harness._values import dataclass
from harness.model import Spec

Table = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """A training job in the SDK's words; what is None is left to the SDK's default.

    `job.toml` has the same words, plus any top-level member of CreateTrainingJob in AWS's spelling.
    """

    name: str | None = None
    """The job is called `<name>-YYYY-MM-DD-HH-MM-SS-mmm`, as the SDK does it."""
    base_job_name: str | None = None
    """The SDK's word for `name`."""
    job_name: str | None = None
    """The exact name, nothing added."""
    region: str | None = None
    """Default: $AWS_REGION, $AWS_DEFAULT_REGION, us-east-1."""
    role: str | None = None
    """ARN of the execution role."""

    entry_point: str | None = None
    """The script, relative to `source_dir`; without it the image runs as it is."""
    source_dir: str | None = None
    """Directory (or s3 URI of a sourcedir.tar.gz); becomes /opt/ml/code."""
    dependencies: Sequence[str] | None = None
    code_location: str | None = None
    """s3 prefix for sourcedir.tar.gz; default: the bucket of `output_path`."""
    container_log_level: int | None = None
    image_uri: str | None = None
    framework_version: str | None = None
    py_version: str | None = None
    container_entry_point: Sequence[str] | None = None
    container_arguments: Sequence[str] | None = None
    training_repository_access_mode: str | None = None
    training_repository_credentials_provider_arn: str | None = None

    instance_type: str | None = None
    instance_count: int | None = None
    instance_groups: Sequence[Table] | None = None
    volume_size: int | None = None
    """GB; default 30."""
    volume_kms_key: str | None = None
    keep_alive_period_in_seconds: int | None = None
    training_plan: str | None = None
    instance_placement_config: Table | None = None

    hyperparameters: Table | None = None
    """Script mode: JSON-encoded as the SDK's framework estimators do it (contract: C6)."""
    environment: Table | None = None
    distribution: Table | None = None
    metric_definitions: Sequence[Table] | None = None
    enable_sagemaker_metrics: bool | None = None

    inputs: str | Table | None = None
    """Channel → s3 URI, local path, or a table; a lone string is the channel `training`."""
    input_mode: str | None = None
    model_uri: str | None = None
    model_channel_name: str | None = None
    output_path: str | None = None
    output_kms_key: str | None = None
    disable_output_compression: bool | None = None

    max_run: int | None = None
    """Seconds; default one day."""
    max_wait: int | None = None
    use_spot_instances: bool | None = None
    max_retry_attempts: int | None = None
    checkpoint_s3_uri: str | None = None
    checkpoint_local_path: str | None = None

    subnets: Sequence[str] | None = None
    security_group_ids: Sequence[str] | None = None
    encrypt_inter_container_traffic: bool | None = None
    enable_network_isolation: bool | None = None

    debugger_hook_config: bool | Table | None = None
    profiler_config: Table | None = None
    disable_profiler: bool | None = None
    tensorboard_output_config: Table | None = None
    experiment_config: Table | None = None
    enable_infra_check: bool | None = None
    enable_remote_debug: bool | None = None
    enable_session_tag_chaining: bool | None = None
    tags: Table | Sequence[Table] | None = None

    def compile(
        self,
        *,
        job_name: str | None = None,
        now: datetime | None = None,
        base: Path | str | None = None,
        local: Mapping[str, Any] | None = None,
    ) -> Spec:
        """The request of this job, checked.

        Args:
            job_name: the exact name; wins over the spec's.
            now: the moment in a generated name; default: this one.
            base: what relative paths are relative to; default: the working directory.
            local: the `[local]` table.

        Raises:
            SpecError: a word is wrong; `ValidationError` in AWS's words when the request is.
        """
        from harness.spec._compile import compile_words
        from harness.spec._draft import Words

        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {word: value for word, value in given.items() if value is not None}
        if local is not None:
            given["local"] = local
        words = Words(given=given, origin="python", base=Path.cwd() if base is None else Path(base))
        return compile_words(words, job_name=job_name, now=now)


WORDS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(TrainingSpec))

"""A job that ran here, once more: the same request, inputs and code under a new name."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import tarfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from harness.errors import UsageError
from harness.home import Home
from harness.lifecycle import base_name
from harness.model import EngineName, JsonObject, Spec, Upload
from harness.objects import ObjectStore, parse_uri
from harness.spec import compile_table, timestamped
from harness.store import JobRecord, Store, from_json

__all__ = ["Code", "rerun"]

Code = Literal["then", "current"]

_WORDS: Final = {
    "instance_type": "ResourceConfig.InstanceType",
    "instance_count": "ResourceConfig.InstanceCount",
    "volume_size": "ResourceConfig.VolumeSizeInGB",
    "max_run": "StoppingCondition.MaxRuntimeInSeconds",
    "max_wait": "StoppingCondition.MaxWaitTimeInSeconds",
    "max_retry_attempts": "RetryStrategy.MaximumRetryAttempts",
    "use_spot_instances": "EnableManagedSpotTraining",
    "enable_network_isolation": "EnableNetworkIsolation",
    "image_uri": "AlgorithmSpecification.TrainingImage",
    "input_mode": "AlgorithmSpecification.TrainingInputMode",
    "output_path": "OutputDataConfig.S3OutputPath",
    "role": "RoleArn",
}
"""Words of job.toml that are one member of the request; hyperparameters and environment beside them."""
_COMPARED: Final = 16 << 20
"""Bytes of the archive beyond which it isn't compared with its source."""
_DIRECTORY: Final = "sagemaker_submit_directory"


def rerun(
    home: Home,
    name: str,
    *,
    from_checkpoint: bool = False,
    code: Code = "then",
    overrides: Mapping[str, Any] | None = None,
    engine: EngineName | None = None,
    gpus: str | int | None = None,
    warm: bool | None = None,
    job_name: str | None = None,
    now: datetime | None = None,
) -> Spec:
    """The spec that runs job `name` again, to be submitted like any other.

    The request is the same but for the job's name. The code is the archive that the job ran, byte for byte,
    from the local object store; with `code="current"` what its source directory holds today.

    A job with CheckpointConfig would resume: SageMaker restores whatever is under its S3Uri (contract: F12,
    F19), and by now that is what the job itself left there. `from_checkpoint` wants just that. Without it
    the rerun starts fresh, as the job once may have: with a checkpoint prefix of its own, and a warning
    that says so.

    Args:
        overrides: word of job.toml or dotted member of the request → value, as of `--set`.
        engine, gpus, warm: over the job's own; None keeps them.
        job_name: the exact name; default: the job's base name and the time.

    Raises:
        UsageError: there is no such job, or nothing to resume from, or its code or inputs are gone.
        SpecError: an override makes no sense; `ValidationError` in AWS's words when the request doesn't.
    """
    with Store(home) as store:
        record = store.job(name)
    old = from_json(Spec, record.spec)
    objects = ObjectStore(home.s3)
    fresh_name = job_name or timestamped(base_name(name), now)
    request = copy.deepcopy(old.request)
    request["TrainingJobName"] = fresh_name
    parameters = request.get("HyperParameters", {})
    if "sagemaker_job_name" in parameters:
        parameters["sagemaker_job_name"] = json.dumps(fresh_name)
    uploads = tuple(each for each in old.uploads if each.kind != "source")
    for upload in uploads:
        if not upload.path.exists():
            raise UsageError(
                f"{name} can't be run again: its channel {upload.channel} was {upload.path}, which is gone"
            )
    source = next((each for each in old.uploads if each.kind == "source"), None)
    if code == "current":
        uploads = (_today(record, old, source, request, fresh_name), *uploads)
    elif (source is not None or old.source is not None) and not objects.exists(_archive(request) or ""):
        raise UsageError(
            f"the code that {name} ran is gone from the local object store ({_archive(request)}): "
            "--code current takes what its source directory holds today"
        )
    warnings: tuple[str, ...] = ()
    if code == "then":
        where = source.path if source is not None else old.source
        uri = _archive(request)
        if where is not None and uri is not None and (archive := objects.head(uri)) is not None:
            warnings = _edited_since(name, archive.path, where)
    warnings += _checkpoints(record, request, objects, fresh_name, resume=from_checkpoint)
    spec = compile_table(
        request,
        origin=old.origin,
        base=Path.cwd(),
        raw=True,
        overrides=_members(request, overrides or {}),
        job_name=fresh_name,
    )
    kept = old.local
    local = dataclasses.replace(
        kept,
        debug=None,
        engine=engine or kept.engine,
        gpus=kept.gpus if gpus is None else gpus,
        warm=kept.warm if warm is None else warm,
    )
    return dataclasses.replace(
        spec,
        local=local,
        uploads=uploads,
        region=old.region,
        account=old.account,
        warnings=(*spec.warnings, *warnings),
        provenance={**old.provenance, **_asked(spec.provenance), "TrainingJobName": f"rerun of {name}"},
        source=None if code == "current" else source.path if source is not None else old.source,
        rerun_of=name,
    )


def _asked(provenance: Mapping[str, str]) -> dict[str, str]:
    return {path: said for path, said in provenance.items() if said.startswith("--")}


# ------------------------------------------------------------------------------------------ the code


def _archive(request: JsonObject) -> str | None:
    """Where the request's source archive is, however it says so."""
    told = request.get("HyperParameters", {}).get(_DIRECTORY)
    uri = _decoded(told)
    if uri is not None and uri.startswith("s3://"):
        return uri
    channel = _code_channel(request)
    return None if channel is None else str(channel["S3Uri"])


def _decoded(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, str) else None


def _code_channel(request: JsonObject) -> JsonObject | None:
    """Under network isolation the code comes in a channel."""
    for channel in request.get("InputDataConfig", ()):
        if channel.get("ChannelName") == "code":
            found: JsonObject | None = channel.get("DataSource", {}).get("S3DataSource")
            return found
    return None


def _today(
    record: JobRecord, old: Spec, source: Upload | None, request: JsonObject, fresh_name: str
) -> Upload:
    """The upload of what the source directory holds now, and the request made to use it."""
    path = source.path if source is not None else old.source
    before = _archive(request)
    if path is None or before is None:
        raise UsageError(
            f"{record.name} has no code of this machine: without --code current it runs as it was"
        )
    if not path.exists():
        raise UsageError(
            f"{path}, where the code of {record.name} came from, is gone: leave out --code current"
        )
    bucket, key = parse_uri(before)
    *prefix, _, folder, file = ["", *key.split("/")][-max(3, len(key.split("/")) + 1) :]
    uri = "/".join([f"s3://{bucket}", *(part for part in prefix if part), fresh_name, folder, file])
    channel = _code_channel(request)
    if channel is not None and str(channel["S3Uri"]) == before:
        channel["S3Uri"] = uri
    else:
        request["HyperParameters"][_DIRECTORY] = json.dumps(uri)
    program = _decoded(request.get("HyperParameters", {}).get("sagemaker_program"))
    return Upload(
        path=path,
        uri=uri,
        kind="source",
        entry_point=source.entry_point if source is not None else program,
        dependencies=source.dependencies if source is not None else (),
    )


def _edited_since(name: str, archive: Path, source: Path) -> tuple[str, ...]:
    """That the code is another by now than the one that ran; whoever reruns may have forgotten it."""
    if archive.stat().st_size > _COMPARED:
        return ()
    with contextlib.suppress(OSError, EOFError, tarfile.TarError), tarfile.open(archive, "r:*") as tar:
        for member in tar:
            now = source / member.name if source.is_dir() else source
            file = tar.extractfile(member) if member.isfile() and now.is_file() else None
            if file is not None and (now.stat().st_size != member.size or now.read_bytes() != file.read()):
                return (
                    f"it runs the code as {name} did, and {now} has changed since: --code current takes {source} "
                    "as it is now",
                )
    return ()


# ------------------------------------------------------------------------------------- checkpoints


def _checkpoints(
    record: JobRecord, request: JsonObject, objects: ObjectStore, fresh_name: str, *, resume: bool
) -> tuple[str, ...]:
    """See that the job resumes, or that it doesn't; what to tell about it."""
    config = request.get("CheckpointConfig")
    if config is None:
        if resume:
            raise UsageError(
                f"{record.name} has no CheckpointConfig, so no checkpoint of it was kept: "
                "give the spec a checkpoint_s3_uri, or leave out --from-checkpoint"
            )
        return ()
    uri = str(config["S3Uri"])
    kept = sum(1 for _ in objects.list(uri))
    if resume:
        if not kept:
            raise UsageError(
                f"{record.name} left no checkpoint under {uri}: leave out --from-checkpoint to start from the "
                "beginning"
            )
        return (f"it resumes: {kept} object{'s' * (kept != 1)} of {uri} will be restored (contract F12)",)
    if not kept and not record.result.get("checkpoints_restored"):
        return ()
    bucket, key = parse_uri(uri)
    parts = [part for part in key.split("/") if part]
    if parts[-2:-1] == [record.name]:
        del parts[-2]  # it was a rerun itself, with a prefix of its own
    config["S3Uri"] = "/".join([f"s3://{bucket}", *parts[:-1], fresh_name, *parts[-1:], ""])
    return (
        f"it starts fresh, with checkpoints under {config['S3Uri']}: the same request would resume from what is under "
        f"{uri}, here and in the cloud (contract F12, F19); --from-checkpoint does",
    )


# ---------------------------------------------------------------------------------------- overrides


def _members(request: JsonObject, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Words of job.toml in the request's spelling; values of hyperparameters as the SDK encodes them."""
    parameters = request.get("HyperParameters", {})
    script = "sagemaker_program" in parameters
    found: dict[str, Any] = {}
    for word, value in overrides.items():
        top, _, rest = word.partition(".")
        if not rest and word in parameters:
            top, rest = "HyperParameters", json.dumps(word)
        if top in ("hyperparameters", "HyperParameters") and rest:
            # contract: C6
            found[f"HyperParameters.{rest}"] = json.dumps(value) if script else str(value)
        elif top in ("environment", "Environment") and rest:
            found[f"Environment.{rest}"] = str(value)
        elif word in ("checkpoint_s3_uri", "checkpoint_local_path"):
            member = "S3Uri" if word == "checkpoint_s3_uri" else "LocalPath"
            found[f"CheckpointConfig.{member}"] = value
        elif word in _WORDS:
            found[_WORDS[word]] = value
        elif top[:1].isupper():
            found[word] = value
        else:
            raise UsageError(
                f"--set {word}: a rerun has the request's own words, such as hyperparameters.lr, environment.NAME, "
                f"StoppingCondition.MaxRuntimeInSeconds, or {', '.join(sorted(_WORDS))}; for others run the spec anew"
            )
    return found

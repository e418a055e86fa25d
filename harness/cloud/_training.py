"""SageMaker's operations on training jobs."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from harness.cloud._account import Account
from harness.cloud._errors import ServiceError
from harness.cloud._paging import page
from harness.errors import JobError, JobExistsError, SpecError, UsageError
from harness.model import JsonObject, Upload
from harness.store import JobRecord, Store

__all__ = [
    "add_tags",
    "create_training_job",
    "delete_tags",
    "describe_training_job",
    "list_tags",
    "list_training_jobs",
    "stop_training_job",
]

_ARN: Final = re.compile(r"arn:aws[a-z-]*:sagemaker:[^:]*:\d{12}:training-job/(.+)")


def create_training_job(account: Account, params: JsonObject) -> JsonObject:
    """Run the job here. `FileDataSource` and `file://` channels, which only the SDK knows, are mounted."""
    from harness.spec import compile_table
    from harness.targets import local

    request, uploads = _with_local_channels(account, params)
    try:
        spec = compile_table(
            request, origin="CreateTrainingJob", base=Path.cwd(), raw=True, local=account.local
        )
        spec = dataclasses.replace(spec, uploads=uploads, region=account.region, account=account.number)
        record = local.submit(spec, home=account.home)
    except JobExistsError as error:
        raise ServiceError("ResourceInUse", str(error)) from error
    except (SpecError, JobError) as error:
        raise ServiceError("ValidationException", str(error)) from error
    return {"TrainingJobArn": record.arn}


def describe_training_job(account: Account, params: JsonObject) -> JsonObject:
    from harness.targets import local

    with Store(account.home) as store:
        _job(store, params["TrainingJobName"])
    return local.describe(params["TrainingJobName"], home=account.home)


def stop_training_job(account: Account, params: JsonObject) -> JsonObject:
    """# contract: G9, G11"""
    from harness.targets import local

    with Store(account.home) as store:
        _job(store, params["TrainingJobName"])
    try:
        local.stop(params["TrainingJobName"], home=account.home)
    except UsageError as error:
        raise ServiceError("ValidationException", str(error)) from error
    return {}


def list_training_jobs(account: Account, params: JsonObject) -> JsonObject:
    for unsupported in ("WarmPoolStatusEquals", "TrainingPlanArnEquals"):
        if unsupported in params:
            raise ServiceError("ValidationException", f"jobs here have nothing that {unsupported} could find")
    with Store(account.home) as store:
        found = store.jobs(
            limit=None, status=params.get("StatusEquals"), name_contains=params.get("NameContains")
        )
    found = [record for record in found if _in_range(record, params)]
    order = params.get("SortBy", "CreationTime")
    found.sort(
        key=lambda record: {"Name": record.name, "Status": record.status}.get(order, record.created),
        reverse=params.get("SortOrder", "Ascending" if order == "Name" else "Descending") == "Descending",
    )
    some, token = page(found, params.get("MaxResults", 10), params.get("NextToken"))
    return {"TrainingJobSummaries": [_summary(record) for record in some], **token}


def add_tags(account: Account, params: JsonObject) -> JsonObject:
    with Store(account.home) as store:
        record = _tagged(store, params)
        tags = {**_tags(record), **{tag["Key"]: tag["Value"] for tag in params["Tags"]}}
        return {"Tags": _keep_tags(store, record, tags)}


def delete_tags(account: Account, params: JsonObject) -> JsonObject:
    with Store(account.home) as store:
        record = _tagged(store, params)
        gone = set(params["TagKeys"])
        _keep_tags(store, record, {key: value for key, value in _tags(record).items() if key not in gone})
    return {}


def list_tags(account: Account, params: JsonObject) -> JsonObject:
    with Store(account.home) as store:
        tags = _pairs(_tags(_tagged(store, params)))
    some, token = page(tags, params.get("MaxResults", 50), params.get("NextToken"))
    return {"Tags": some, **token}


def _job(store: Store, name: str) -> JobRecord:
    """Unknown jobs are refused in AWS's own words."""
    try:
        return store.job(name)
    except UsageError as error:
        raise ServiceError("ValidationException", "Requested resource not found.") from error


def _tagged(store: Store, params: JsonObject) -> JobRecord:
    arn = _ARN.fullmatch(params["ResourceArn"])
    if arn is None:
        raise ServiceError(
            "ValidationException", f"only training jobs have tags here, not {params['ResourceArn']}"
        )
    return _job(store, arn[1])


def _tags(record: JobRecord) -> dict[str, str]:
    given = record.result.get("tags")
    if given is not None:
        return dict(given)
    return {tag["Key"]: tag["Value"] for tag in record.request.get("Tags", ())}


def _keep_tags(store: Store, record: JobRecord, tags: dict[str, str]) -> list[JsonObject]:
    if len(tags) > 50:
        raise ServiceError("ResourceLimitExceeded", f"{record.name} would have more than 50 tags")
    store.merge_result(record.name, tags=tags)
    return _pairs(tags)


def _pairs(tags: dict[str, str]) -> list[JsonObject]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _in_range(record: JobRecord, params: JsonObject) -> bool:
    times = {"CreationTime": record.created, "LastModifiedTime": record.modified}
    return all(
        at >= params.get(f"{name}After", at) and at <= params.get(f"{name}Before", at)
        for name, at in times.items()
    )


def _summary(record: JobRecord) -> JsonObject:
    ended = {} if record.training_end is None else {"TrainingEndTime": record.training_end}
    return {
        "TrainingJobName": record.name,
        "TrainingJobArn": record.arn,
        "CreationTime": record.created,
        "LastModifiedTime": record.modified,
        "TrainingJobStatus": record.status,
        "SecondaryStatus": record.secondary_status,
        **ended,
    }


def _with_local_channels(account: Account, params: JsonObject) -> tuple[JsonObject, tuple[Upload, ...]]:
    """The request with S3 URIs only, and what lies on this machine under those URIs."""
    request = copy.deepcopy(params)
    uploads = []
    channels: Iterable[dict[str, Any]] = request.get("InputDataConfig", ())
    for channel in channels:
        source = channel["DataSource"]
        uri = source.get("FileDataSource", {}).get("FileUri") or source.get("S3DataSource", {}).get("S3Uri")
        if not uri or not uri.startswith("file://"):
            continue
        name = channel["ChannelName"]
        path = _local_path(name, uri)
        place = f"s3://sagemaker-{account.region}-{account.number}/{request['TrainingJobName']}/input/{name}/"
        uploads.append(
            Upload(path=path, uri=place + ("" if path.is_dir() else path.name), kind="channel", channel=name)
        )
        given = source.pop("S3DataSource", {})
        source.pop("FileDataSource", None)
        source["S3DataSource"] = {
            "S3DataType": "S3Prefix",
            "S3DataDistributionType": "FullyReplicated",
            **given,
            "S3Uri": uploads[-1].uri,
        }
    return request, tuple(uploads)


def _local_path(channel: str, uri: str) -> Path:
    # The SDK's own file:// URIs may be relative: file://data/digits.
    parts = urlsplit(uri)
    path = Path(unquote(parts.netloc + parts.path)).expanduser().absolute()
    if not path.exists():
        raise ServiceError(
            "ValidationException", f"the data of channel {channel} is not there: {uri} ({path})"
        )
    return path

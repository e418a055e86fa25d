"""CloudWatch Logs, as far as training jobs write it: their streams, read from the job's own log."""

from __future__ import annotations

from typing import Final

from harness.cloud._account import Account
from harness.cloud._errors import ServiceError
from harness.cloud._paging import page
from harness.errors import UsageError
from harness.model import JsonObject
from harness.store import JobRecord, Store
from harness.telemetry import LogEvent, LogReader

__all__ = ["GROUP", "describe_log_groups", "describe_log_streams", "get_log_events"]

GROUP: Final = "/aws/sagemaker/TrainingJobs"
"""contract: I1"""
_PAGE_BYTES: Final = 1 << 20


def describe_log_groups(account: Account, params: JsonObject) -> JsonObject:
    prefix = params.get("logGroupNamePrefix", "")
    groups = [GROUP] if GROUP.startswith(prefix) and params.get("logGroupNamePattern", "") in GROUP else []
    arn = f"arn:aws:logs:{account.region}:{account.number}:log-group:{GROUP}:*"
    return {"logGroups": [{"logGroupName": group, "arn": arn, "creationTime": 0} for group in groups]}


def describe_log_streams(account: Account, params: JsonObject) -> JsonObject:
    """The streams of the jobs whose names begin as the prefix does (contract: I2)."""
    _check_group(params)
    prefix = params.get("logStreamNamePrefix", "")
    job, slash, _ = prefix.partition("/")
    with Store(account.home) as store:
        if slash:
            found = [_record(store, job)]
        else:
            found = [
                store.job(record.name)
                for record in store.jobs(limit=None, name_contains=job)
                if record.name.startswith(job)
            ]
    streams = [
        {
            "logStreamName": host.stream,
            "creationTime": int((record.training_start or record.created) * 1000),
            "arn": f"arn:aws:logs:{account.region}:{account.number}:log-group:{GROUP}:log-stream:{host.stream}",
        }
        for record in found
        if record is not None
        for host in record.hosts
        if host.stream.startswith(prefix)
    ]
    streams.sort(key=lambda stream: str(stream["logStreamName"]), reverse=params.get("descending", False))
    some, token = page(streams, params.get("limit", 50), params.get("nextToken"), "nextToken")
    return {"logStreams": some, **token}


def get_log_events(account: Account, params: JsonObject) -> JsonObject:
    """Events of one stream, in order; a token that was got at the end gives what came since."""
    _check_group(params)
    stream = params["logStreamName"]
    with Store(account.home) as store:
        record = _record(store, stream.partition("/")[0])
    host = next((each.name for each in record.hosts if each.stream == stream), None) if record else None
    if record is None or host is None:
        raise ServiceError("ResourceNotFoundException", "The specified log stream does not exist.")
    reader = LogReader(account.home.logs(record.name, record.attempt), host)
    try:
        events, begin, end = _read(reader, params, final=record.ended_for_good)
    finally:
        reader.close()
    return {
        "events": [
            {
                "timestamp": event.timestamp_ms,
                "message": event.message,
                "ingestionTime": event.timestamp_ms,
            }
            for event in events
        ],
        "nextForwardToken": f"f/{end}",
        "nextBackwardToken": f"b/{begin}",
    }


def _read(reader: LogReader, params: JsonObject, *, final: bool) -> tuple[list[LogEvent], int, int]:
    """The events, where the first begins, and where the last ends."""
    limit = params.get("limit", 10_000)
    since, until = params.get("startTime"), params.get("endTime")
    direction, position = _token(params.get("nextToken"))
    backwards = direction == "b" or (direction is None and not params.get("startFromHead", False))
    if backwards:
        end = reader.size if position is None else position
        if direction is None and until is not None:
            end = reader.seek(until)
        events, begin = reader.read_back(end, limit=limit)
        if not final:
            # The last line may still be growing: it comes when it is whole, and only then.
            whole = reader.read(begin, final=False, limit=len(events))[1]
            events = [event for event in events if event.end <= whole]
            end = min(end, whole)
    else:
        begin = position if position is not None else reader.seek(since) if since else 0
        events, end = reader.read(begin, limit=limit, max_bytes=_PAGE_BYTES, final=final)
    inside = [
        event
        for event in events
        if (since is None or event.timestamp_ms >= since) and (until is None or event.timestamp_ms < until)
    ]
    return inside, begin, end


def _token(token: str | None) -> tuple[str | None, int | None]:
    if token is None:
        return None, None
    direction, _, position = token.partition("/")
    if direction not in ("f", "b") or not position.isdecimal():
        raise ServiceError("InvalidParameterException", "The specified nextToken is invalid.")
    return direction, int(position)


def _check_group(params: JsonObject) -> None:
    group = params.get("logGroupName") or params.get("logGroupIdentifier", "").rpartition(":log-group:")[2]
    if group != GROUP:
        raise ServiceError("ResourceNotFoundException", "The specified log group does not exist.")


def _record(store: Store, name: str) -> JobRecord | None:
    try:
        return store.job(name)
    except UsageError:
        return None

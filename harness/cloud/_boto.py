"""A boto3 session all of whose clients are answered here: no request is signed, none is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from harness.cloud._account import Account
from harness.cloud._errors import ServiceError
from harness.cloud._operations import call

__all__ = ["boto_session"]

_GIVEN: Final = "harness_params"


def boto_session(account: Account) -> Any:
    """A `boto3.Session` in that account.

    It needs no credentials and reads none of the user's AWS configuration. Parameters are checked by
    botocore as always. An operation that isn't answered here raises a ClientError that says so; an error
    of this machine is raised as it is.
    """
    import boto3
    import botocore.session

    core = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    core.set_credentials("harness", "harness")
    core.set_config_variable("region", account.region)

    def keep(params: dict[str, Any], model: Any, context: dict[str, Any], **_: Any) -> None:
        context[_GIVEN] = (
            _with_times(model.input_shape, params, _epoch) if model.input_shape else dict(params)
        )
        if model.name == "CreateTrainingJob":
            _make_valid(params)

    def answer(model: Any, context: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]]:
        service = model.service_model.service_id.hyphenize()
        try:
            found = call(account, service, model.name, context[_GIVEN])
        except ServiceError as error:
            return _response(error.status), {
                "Error": {"Code": error.code, "Message": error.message},
                "ResponseMetadata": _metadata(error.status),
            }
        parsed = _with_times(model.output_shape, found, _moment) if model.output_shape else {}
        if model.has_streaming_output:
            from botocore.response import StreamingBody

            member = model.output_shape.serialization["payload"]
            parsed[member] = StreamingBody(found[member], found[member].length)
        parsed["ResponseMetadata"] = _metadata(200)
        return _response(200), parsed

    events = core.get_component("event_emitter")
    events.register_last("before-parameter-build", keep)
    events.register_first("before-call", answer)
    return boto3.Session(botocore_session=core)


def _make_valid(params: dict[str, Any]) -> None:
    """A local channel as botocore's model knows one; the operation gets it as it was given."""
    channels = params.get("InputDataConfig")
    if not isinstance(channels, list):
        return
    params["InputDataConfig"] = [
        {**channel, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://local/"}}}
        if isinstance(channel, Mapping) and "FileDataSource" in (channel.get("DataSource") or {})
        else channel
        for channel in channels
    ]


def _response(status: int) -> Any:
    from botocore.awsrequest import AWSResponse

    return AWSResponse("https://harness.invalid/", status, {}, None)


def _metadata(status: int) -> dict[str, Any]:
    return {
        "RequestId": os.urandom(16).hex(),
        "HTTPStatusCode": status,
        "HTTPHeaders": {},
        "RetryAttempts": 0,
    }


def _with_times(shape: Any, value: Any, convert: Any) -> Any:
    """A copy of a request or response in which every time is converted."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, Mapping):
        return {
            name: _with_times(shape.members[name], each, convert) if name in shape.members else each
            for name, each in value.items()
        }
    if kind == "list" and isinstance(value, (list, tuple)):
        return [_with_times(shape.member, each, convert) for each in value]
    if kind == "map" and isinstance(value, Mapping):
        return {name: _with_times(shape.value, each, convert) for name, each in value.items()}
    return convert(value) if kind == "timestamp" else value


def _epoch(value: Any) -> float:
    from botocore.utils import parse_to_aware_datetime

    return float(parse_to_aware_datetime(value).timestamp())


def _moment(value: float) -> Any:
    """As botocore gives times: aware, in the local zone."""
    from datetime import datetime, timezone

    return datetime.fromtimestamp(value, timezone.utc).astimezone()

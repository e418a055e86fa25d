"""Which operation of which service is answered here, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from harness.cloud import _cloudwatch, _identity, _logs, _multipart, _s3, _training
from harness.cloud._account import Account
from harness.cloud._errors import ServiceError, unknown_operation
from harness.errors import JobError
from harness.model import JsonObject

__all__ = ["OPERATIONS", "call"]

Operation = Callable[[Account, JsonObject], JsonObject]

OPERATIONS: Final[Mapping[str, Mapping[str, Operation]]] = {
    "cloudwatch": {"GetMetricStatistics": _cloudwatch.get_metric_statistics},
    "cloudwatch-logs": {
        "DescribeLogGroups": _logs.describe_log_groups,
        "DescribeLogStreams": _logs.describe_log_streams,
        "GetLogEvents": _logs.get_log_events,
    },
    "iam": {"GetRole": _identity.get_role},
    "s3": {**_s3.OPERATIONS, **_multipart.OPERATIONS},
    "sagemaker": {
        "AddTags": _training.add_tags,
        "CreateTrainingJob": _training.create_training_job,
        "DeleteTags": _training.delete_tags,
        "DescribeTrainingJob": _training.describe_training_job,
        "ListTags": _training.list_tags,
        "ListTrainingJobs": _training.list_training_jobs,
        "StopTrainingJob": _training.stop_training_job,
    },
    "sts": {"GetCallerIdentity": _identity.get_caller_identity},
}
"""By botocore's service id with hyphens, then by the operation's name."""


def call(account: Account, service: str, operation: str, params: JsonObject) -> JsonObject:
    """Answer one operation.

    Args:
        service: botocore's service id with hyphens, such as `cloudwatch-logs`.
        params: the request in its service's shape, already valid; times in epoch seconds, a streamed
            body as bytes or a file.

    Returns:
        The response in its service's shape; times in epoch seconds, a streamed body as a file with
        `read`, `close` and `length`.

    Raises:
        ServiceError: the service would refuse, or the operation isn't answered here.
        MachineError: this machine can't do it, which no service would say.
    """
    answer = OPERATIONS.get(service, {}).get(operation)
    if answer is None:
        raise unknown_operation(service, operation)
    try:
        return answer(account, params)
    except JobError as error:
        raise ServiceError("ValidationException", str(error)) from error

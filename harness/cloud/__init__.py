"""AWS's operations, answered by this machine: as functions, in a boto3 session, in a SageMaker SDK session."""

from __future__ import annotations

from harness.cloud._account import Account
from harness.cloud._boto import boto_session
from harness.cloud._errors import ServiceError
from harness.cloud._operations import OPERATIONS, call
from harness.cloud._sdk import sagemaker_session

__all__ = ["OPERATIONS", "Account", "ServiceError", "boto_session", "call", "sagemaker_session"]

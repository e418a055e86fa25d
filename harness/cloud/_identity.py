"""STS and IAM: who calls, and what a role's ARN is. Nothing is allowed or denied here."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote

from harness.cloud._account import Account
from harness.cloud._errors import ServiceError
from harness.model import JsonObject

__all__ = ["get_caller_identity", "get_role"]

_SESSION: Final = "harness"
_ROLE_ID: Final = "AROAHARNESSHARNESS000"
_TRUST: Final = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def get_caller_identity(account: Account, params: JsonObject) -> JsonObject:
    """An assumed role, so that the SDK's `get_execution_role()` finds one."""
    del params
    return {
        "UserId": f"{_ROLE_ID}:{_SESSION}",
        "Account": account.number,
        "Arn": f"arn:aws:sts::{account.number}:assumed-role/{account.role}/{_SESSION}",
    }


def get_role(account: Account, params: JsonObject) -> JsonObject:
    """Any role that is named exists: its ARN is all that a job here needs of it."""
    name = str(params["RoleName"])
    if "/" in name:
        raise ServiceError("ValidationError", f"the role name {name!r} must not have a path", status=400)
    return {
        "Role": {
            "Path": "/",
            "RoleName": name,
            "RoleId": _ROLE_ID,
            "Arn": f"arn:aws:iam::{account.number}:role/{name}",
            "CreateDate": 0,
            "AssumeRolePolicyDocument": quote(json.dumps(_TRUST)),
        }
    }

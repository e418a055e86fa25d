"""AWS's operations as functions: plain requests in, plain responses out."""

from __future__ import annotations

import io
import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from harness.cloud import OPERATIONS, Account, ServiceError, call, sagemaker_session
from harness.errors import MachineError
from harness.home import Home


@pytest.fixture
def account(home: Path) -> Account:
    return Account(home=Home(home).ensure())


@pytest.mark.parametrize("service", OPERATIONS)
def test_the_operations_are_awss(service: str) -> None:
    import botocore.session

    session = botocore.session.Session()
    names = {"cloudwatch-logs": "logs"}
    model = session.get_service_model(names.get(service, service))
    assert model.service_id.hyphenize() == service
    assert set(OPERATIONS[service]) <= set(model.operation_names)


@pytest.mark.parametrize(
    ("service", "operation"),
    [("sagemaker", "CreateModel"), ("bedrock", "ListFoundationModels"), ("s3", "Nonsense")],
)
def test_what_is_not_there_is_refused_with_a_400(account: Account, service: str, operation: str) -> None:
    with pytest.raises(ServiceError) as raised:
        call(account, service, operation, {})
    assert (raised.value.code, raised.value.status) == ("UnknownOperationException", 400)


def test_answers_are_plain_values(account: Account) -> None:
    """An endpoint writes them as JSON or XML."""
    assert call(account, "sts", "GetCallerIdentity", {})["Account"] == "111122223333"
    role = call(account, "iam", "GetRole", {"RoleName": "Mine"})
    assert json.loads(json.dumps(role))["Role"]["Arn"] == "arn:aws:iam::111122223333:role/Mine"


def test_a_body_is_a_file(account: Account) -> None:
    call(account, "s3", "PutObject", {"Bucket": "bucket", "Key": "k", "Body": io.BytesIO(b"0123456789")})
    answer = call(account, "s3", "GetObject", {"Bucket": "bucket", "Key": "k", "Range": "bytes=2-4"})
    assert (answer["ContentLength"], answer["ContentRange"]) == (3, "bytes 2-4/10")
    assert answer["Body"].length == 3
    assert answer["Body"].read(2) + answer["Body"].read() == b"234"
    answer["Body"].close()


@pytest.mark.parametrize(
    ("operation", "words", "code", "status"),
    [
        ("GetObject", {"Key": "none"}, "NoSuchKey", 404),
        ("HeadObject", {"Key": "none"}, "404", 404),
        ("GetObject", {"Key": "k", "Range": "bytes=10-"}, "InvalidRange", 416),
        ("GetObject", {"Key": "k", "IfMatch": '"other"'}, "PreconditionFailed", 412),
        ("GetObject", {"Key": "k", "VersionId": "1"}, "NotImplemented", 400),
        ("PutObject", {"Key": "k", "Body": b"", "Tagging": "a=b"}, "NotImplemented", 400),
        ("CreateBucket", {"Bucket": "Big"}, "InvalidBucketName", 400),
        ("GetObject", {"Bucket": "elsewhere", "Key": "k"}, "NoSuchBucket", 404),
        (
            "UploadPart",
            {"Key": "k", "UploadId": "../../x", "PartNumber": 1, "Body": b""},
            "NoSuchUpload",
            404,
        ),
        ("HeadBucket", {"ExpectedBucketOwner": "999999999999"}, "403", 403),
    ],
)
def test_how_s3_refuses(
    account: Account, operation: str, words: dict[str, object], code: str, status: int
) -> None:
    call(account, "s3", "PutObject", {"Bucket": "bucket", "Key": "k", "Body": b"0123456789"})
    with pytest.raises(ServiceError) as raised:
        call(account, "s3", operation, {"Bucket": "bucket", **words})
    assert (raised.value.code, raised.value.status) == (code, status)


def test_an_upload_that_is_given_up_leaves_nothing(account: Account) -> None:
    where = {"Bucket": "bucket", "Key": "k"}
    upload = {**where, "UploadId": call(account, "s3", "CreateMultipartUpload", where)["UploadId"]}
    call(account, "s3", "UploadPart", {**upload, "PartNumber": 1, "Body": b"x"})
    call(account, "s3", "AbortMultipartUpload", upload)
    assert [path for path in account.home.s3.rglob("*") if path.is_file()] == []
    with pytest.raises(ServiceError, match="NoSuchUpload"):
        call(account, "s3", "AbortMultipartUpload", upload)


@pytest.mark.parametrize(
    ("installed", "sentence"),
    [
        ({}, "the SageMaker SDK v2 can't be imported"),
        (
            {"sagemaker-train": "1.27.0"},
            r"v3 \(sagemaker-train 1\.27\.0\), whose ModelTrainer doesn't run here",
        ),
    ],
)
def test_without_the_sdk(
    home: Path, monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], sentence: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setitem(sys.modules, "sagemaker.session", None)
    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(MachineError, match=sentence):
        sagemaker_session(home=home)

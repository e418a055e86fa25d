"""What the commands say about jobs that really ran, against those who define it: botocore's service
model for DescribeTrainingJob, and JSON's grammar for every `--json`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.model import JsonObject
from tests.jobs.conftest import Job, Submit

SCRIPT = """
    import os, sys
    print("Loss = 0.5 :")
    print("Loss = nan :")
    open("/opt/ml/model/m", "w").close()
    sys.exit(int(sys.argv[-1]))
    """
METRICS = [{"Name": "Loss", "Regex": "Loss = (.*?) :"}, {"Name": "never", "Regex": "never (.*)"}]
FULL: dict[str, Any] = {
    "metric_definitions": METRICS,
    "checkpoint_s3_uri": "s3://b/c/",
    "use_spot_instances": True,
    "max_run": 100,
    "max_wait": 200,
    "max_retry_attempts": 2,
    "environment": {"KEY": "value"},
    "tags": {"team": "vision"},
}


def problems(operation: str, answer: JsonObject) -> list[str]:
    """What a client that parses the answer by the service model would miss or choke on."""
    import botocore.parsers
    import botocore.session
    from botocore.validate import ParamValidator

    service = botocore.session.get_session().get_service_model("sagemaker")
    shape = service.operation_model(operation).output_shape
    body = json.dumps(answer).encode()
    parser = botocore.parsers.create_parser(service.protocol)
    parsed = parser.parse({"status_code": 200, "headers": {}, "body": body}, shape)
    del parsed["ResponseMetadata"]
    found = list(lost(answer, parsed, operation))
    report = ParamValidator().validate(parsed, shape)
    return found + ([report.generate_report()] if report.has_errors() else [])


def lost(told: Any, parsed: Any, where: str) -> Any:
    """Members of `told` that the model doesn't know."""
    if isinstance(told, dict):
        for key, value in told.items():
            if key not in parsed:
                yield f"{where}.{key} is unknown"
            else:
                yield from lost(value, parsed[key], f"{where}.{key}")
    elif isinstance(told, list):
        for number, (one, other) in enumerate(zip(told, parsed, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")


@pytest.mark.parametrize(
    ("code", "status", "options"),
    [(0, "Completed", FULL), (1, "Failed", FULL), (0, "Completed", {})],
    ids=["completed", "failed", "minimal"],
)
def test_describe_has_the_service_s_shape(
    run: Submit, code: int, status: str, options: dict[str, Any]
) -> None:
    job = run(SCRIPT, engine="sandbox", hyperparameters={"code": code}, **options)
    answer = job.describe
    assert answer["TrainingJobStatus"] == status
    assert problems("DescribeTrainingJob", answer) == []
    assert [item["Status"] for item in answer["SecondaryStatusTransitions"]][-1] == status
    assert ("FailureReason" in answer) == (status == "Failed")
    if options:
        assert [item["Value"] for item in answer["FinalMetricDataList"]] == [0.5]


def test_describe_has_the_service_s_shape_from_the_first_moment_on(submit: Submit) -> None:
    job = submit("import time; time.sleep(1)", engine="sandbox", **FULL)
    seen = set()
    while not job.record.ended_for_good:
        answer = job.describe
        seen.add(answer["SecondaryStatus"])
        assert problems("DescribeTrainingJob", answer) == []
    assert "Training" in seen
    assert "TrainingEndTime" in job.describe


def strict_json(text: str) -> Any:
    """One document, and no NaN or Infinity, which only Python takes for JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


MLFLOW = "arn:aws:sagemaker:us-east-1:111122223333:mlflow-app/app-A"
COMMANDS: dict[str, tuple[int, list[str]]] = {
    "run": (0, ["run", "SPEC", "--job-name", "another"]),
    "run, failed": (1, ["run", "SPEC", "--job-name", "failing", "--set", "hyperparameters.code=1"]),
    "run, taken": (2, ["run", "SPEC", "--job-name", "JOB"]),
    "run, no file": (2, ["run", "nowhere.toml"]),
    "run, unknown option": (2, ["run", "SPEC", "--nonsense"]),
    "detach": (0, ["run", "SPEC", "--job-name", "detached", "--detach"]),
    "plan": (0, ["plan", "SPEC"]),
    "plan, strict": (2, ["plan", "SPEC", "--strict", "--set", f"MlflowConfig.MlflowResourceArn={MLFLOW}"]),
    "jobs": (0, ["jobs"]),
    "jobs, none": (0, ["jobs", "--name-contains", "nothing"]),
    "describe": (0, ["describe", "JOB"]),
    "describe, unknown": (2, ["describe", "nobody"]),
    "logs": (0, ["logs", "JOB"]),
    "logs, an attempt too many": (2, ["logs", "JOB", "--attempt", "9"]),
    "metrics": (0, ["metrics", "JOB"]),
    "metrics, none": (0, ["metrics", "JOB", "--name", "nothing"]),
    "stop, too late": (2, ["stop", "JOB"]),
    "image list": (0, ["image", "list"]),
    "doctor": (0, ["doctor"]),
    "gc": (0, ["gc"]),
    "gc, dry": (0, ["gc", "--dry-run", "--all"]),
}


@pytest.fixture
def finished(run: Submit) -> Job:
    return run(SCRIPT, engine="sandbox", hyperparameters={"code": 0}, metric_definitions=METRICS)


def test_json_is_one_document_whatever_happens(finished: Job, write_spec: Callable[..., Path]) -> None:
    spec = write_spec(SCRIPT, engine="sandbox", hyperparameters={"code": 0}, metric_definitions=METRICS)
    words = {"SPEC": str(spec), "JOB": finished.name}
    wrong = {}
    for title, (code, command) in COMMANDS.items():
        done = subprocess.run(
            [sys.executable, "-m", "harness", *(words.get(word, word) for word in command), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            document = strict_json(done.stdout)
        except ValueError as error:
            wrong[title] = f"{error}: {done.stdout[:200]!r} {done.stderr[-200:]!r}"
            continue
        if done.returncode != code and not (title in ("doctor", "image list") and done.returncode == 3):
            wrong[title] = f"exit code {done.returncode}: {done.stderr[-300:]}"
        elif (
            done.returncode not in (0, 1) and document.get("error", {}).get("exit_code", 3) != done.returncode
        ):
            wrong[title] = f"no error in {document}"
    assert wrong == {}

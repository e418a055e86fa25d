"""A SageMaker SDK session whose jobs run on this machine."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from harness.cloud._account import Account
from harness.cloud._boto import boto_session
from harness.errors import MachineError
from harness.home import Home

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["sagemaker_session"]

_POLL: Final = 0.2
"""Seconds between two looks at a job; the SDK's own 10 and 30 are for a service that throttles."""
_ENDED: Final = ("Completed", "Failed", "Stopped")
_BEGINNING: Final = ("Starting", "Pending", "Downloading", "Training", "Restarting")


def sagemaker_session(
    *,
    region: str = Account.region,
    account: str = Account.number,
    default_bucket: str | None = None,
    home: Home | Path | str | None = None,
    **local: Any,
) -> Any:
    """A `sagemaker.session.Session` for estimators that shall run here, unmodified::

        PyTorch(…, instance_type="ml.p4d.24xlarge", sagemaker_session=harness.sagemaker_session()).fit(…)

    Everything the SDK asks of SageMaker, S3, CloudWatch, STS and IAM is answered by this machine. Nothing
    is sent to AWS, the SDK's own telemetry included, and no credentials are needed. What isn't answered
    (endpoints, processing, tuning) raises botocore's ClientError with UnknownOperationException.

    An interrupt of `fit` ends the waiting only, as it does with SageMaker, and says so. When it is imported, and
    for each estimator, the SDK itself asks EC2's metadata service for credentials if it finds none: on a machine
    without any, AWS_EC2_METADATA_DISABLED=true spares that.

    Args:
        region, account: what names and ARNs are made of.
        default_bucket: instead of `sagemaker-<region>-<account>`.
        home: the state directory; default $HARNESS_HOME.
        local: keys of the spec's `[local]` table, such as `engine="sandbox"`, `warm=True`,
            `images={"*": "harness-pytorch"}`.

    Raises:
        MachineError: the SageMaker SDK v2 is not installed.
    """
    place = (
        home if isinstance(home, Home) else Home.find({"HARNESS_HOME": str(home)}) if home else Home.find()
    )
    try:
        cls = _session_class()
    except ImportError as error:
        raise MachineError(_why_not(error)) from error
    belongs = Account(home=place.ensure(), region=region, number=account, local=local)
    return cls(boto_session=boto_session(belongs), default_bucket=default_bucket, sagemaker_config=_config())


def _why_not(error: ImportError) -> str:
    from importlib.metadata import PackageNotFoundError, version

    install = "pip install 'sagemaker-harness[sagemaker]'"
    try:
        newer = version("sagemaker-train")  # of v3, which has no estimators and other sessions
    except PackageNotFoundError:
        return f"the SageMaker SDK v2 can't be imported ({error}): {install}"
    return (
        f"this Python has the SageMaker SDK v3 (sagemaker-train {newer}), whose ModelTrainer doesn't run here: use the "
        f"estimators of v2 in an environment of their own ({install}), or a job.toml with `harness run`"
    )


def _config() -> dict[str, Any]:
    """The user's defaults for the SDK, without its telemetry."""
    from importlib import import_module

    sdk: Any = import_module("sagemaker.config")
    config: dict[str, Any] = sdk.load_sagemaker_config() or {}
    config.setdefault("SchemaVersion", "1.0")
    modules = config.setdefault("SageMaker", {}).setdefault("PythonSDK", {}).setdefault("Modules", {})
    modules["TelemetryOptOut"] = True
    return config


def _begun(description: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    """The description as it was when the hosts had begun and not yet ended; never less than was shown."""
    transitions = description["SecondaryStatusTransitions"]
    count = len(shown["SecondaryStatusTransitions"])
    while count < len(transitions) and transitions[count]["Status"] in _BEGINNING:
        count += 1
    return {**description, "SecondaryStatusTransitions": transitions[:count]}


def _has_hosts(description: dict[str, Any]) -> bool:
    """Whether they had started when it was described: lines that came since wait for that status."""
    statuses = {each["Status"] for each in description["SecondaryStatusTransitions"]}
    return bool(statuses & {"Training", *_ENDED})


@contextlib.contextmanager
def _goes_on(job: str) -> Iterator[None]:
    """Tell who interrupts it what that means: the SDK keeps it to itself, and `fit` returns as if all were well."""
    try:
        yield
    except KeyboardInterrupt:
        print(
            f"\nInterrupted: the job {job} goes on, as it would in the cloud. "
            f"`harness stop {job}` or estimator.latest_training_job.stop() stops it.",
            file=sys.stderr,
        )
        raise


def _session_class() -> Any:
    from importlib import import_module

    sdk: Any = import_module("sagemaker.session")  # untyped, and says otherwise
    utils: Any = import_module("sagemaker.utils")

    class LocalCloudSession(sdk.Session):  # type: ignore[misc]
        """The SDK's session; only how often it looks at a job is different, and so how soon it sees the end."""

        def logs_for_job(
            self,
            job_name: str,
            wait: bool = False,
            poll: float = _POLL,
            log_type: Any = "All",
            timeout: float | None = None,
        ) -> None:
            """What the SDK's own does: the log in the hosts' colours, the secondary statuses, the bill."""
            del log_type  # there are no debugger rules here, so there is only the log
            with _goes_on(job_name):
                self._show(job_name, wait, min(poll, _POLL), timeout)

        def _show(self, job_name: str, wait: bool, poll: float, timeout: float | None) -> None:
            deadline = None if timeout is None else time.monotonic() + timeout
            description = self.describe_training_job(job_name)
            print(utils.secondary_training_status_message(description, None), end="")
            count, streams, positions, client, group, dot, wrap = sdk._logs_init(
                self.boto_session, description, job="Training"
            )
            shown = description
            while True:
                # What the hosts printed stands between the statuses that came before and after it.
                for part in (_begun(description, shown), description):
                    if utils.secondary_training_status_changed(part, shown):
                        print()
                        print(utils.secondary_training_status_message(part, shown), end="")
                        shown = part
                    if part is not description and _has_hosts(description):
                        sdk._flush_log_streams(streams, count, client, group, job_name, positions, dot, wrap)
                if description["TrainingJobStatus"] in _ENDED or not wait:
                    break
                if deadline is not None and time.monotonic() > deadline:
                    print(f"Timeout Exceeded. {timeout} seconds elapsed.")
                    break
                time.sleep(poll)
                description = self.describe_training_job(job_name)
            print()
            if wait:
                sdk._check_job_status(job_name, description, "TrainingJobStatus")
                for what in ("Training", "Billable"):
                    seconds = description.get(f"{what}TimeInSeconds")
                    if seconds is not None:
                        print(f"{what} seconds:", seconds * count)

        def wait_for_job(self, job: str, poll: float = _POLL) -> Any:
            with _goes_on(job):
                return super().wait_for_job(job, poll=min(poll, _POLL))

    return LocalCloudSession

"""CloudWatch: the metrics of training jobs, in the periods that are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from harness.cloud._account import Account
from harness.cloud._errors import ServiceError
from harness.errors import UsageError
from harness.model import JsonObject
from harness.store import Store

__all__ = ["get_metric_statistics"]

_NAMESPACE: Final = "/aws/sagemaker/TrainingJobs"


def get_metric_statistics(account: Account, params: JsonObject) -> JsonObject:
    """Of a job's metric definitions (dimension TrainingJobName), or of a host's usage (dimension Host,
    `<job>/algo-1`); contract: I11, I14. Times are epoch seconds."""
    if params["Namespace"] != _NAMESPACE or params.get("ExtendedStatistics"):
        raise ServiceError(
            "InvalidParameterValue",
            f"only Statistics of {_NAMESPACE} are kept here, no percentiles and no other namespace",
        )
    dimensions = {each["Name"]: each["Value"] for each in params.get("Dimensions", ())}
    if set(dimensions) not in ({"TrainingJobName"}, {"Host"}):
        return {"Label": params["MetricName"], "Datapoints": []}
    sampled = "Host" in dimensions
    job, _, host = next(iter(dimensions.values())).partition("/")
    with Store(account.home) as store:
        try:
            store.summary(job)
        except UsageError:
            return {"Label": params["MetricName"], "Datapoints": []}
        points = [point for _, point in store.metrics(job, sampled=sampled)]
    period = params["Period"]
    start = math.floor(params["StartTime"] / period) * period
    bins: dict[int, list[float]] = {}
    for point in points:
        at = point.timestamp_ms / 1000
        fits = point.name == params["MetricName"] and (not sampled or point.host == host)
        if fits and start <= at < params["EndTime"]:
            bins.setdefault(int(at // period) * period, []).append(point.value)
    unit = "Percent" if sampled else "None"
    return {
        "Label": params["MetricName"],
        "Datapoints": [
            {"Timestamp": begin, "Unit": unit, **_statistics(values, params.get("Statistics", ()))}
            for begin, values in sorted(bins.items())
        ],
    }


def _statistics(values: Sequence[float], wanted: Sequence[str]) -> dict[str, float]:
    every = {
        "SampleCount": float(len(values)),
        "Average": sum(values) / len(values),
        "Sum": sum(values),
        "Minimum": min(values),
        "Maximum": max(values),
    }
    return {name: every[name] for name in wanted}

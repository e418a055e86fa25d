"""The last look at a request, whoever wrote it: AWS's model, AWS's rules, lints."""

from __future__ import annotations

from collections.abc import Iterator

from harness import awsapi, instances
from harness.errors import SpecError, ValidationError
from harness.model import JsonObject


def check(request: JsonObject, *, region: str | None = None) -> tuple[str, ...]:
    """Check a CreateTrainingJob request; the lints that it earns.

    Raises:
        SpecError: an instance type that does not exist, with the one that was meant.
        ValidationError: everything else, in AWS's words.
    """
    for name in _instance_types(request):
        _known(name)
    awsapi.check_training(request)
    broken = instances.rules(request)
    if broken:
        raise ValidationError("; ".join(broken))
    return (*awsapi.warnings(request, region=region), *instances.warnings(request))


def _instance_types(request: JsonObject) -> Iterator[str]:
    resources = request.get("ResourceConfig")
    if not isinstance(resources, dict):
        return
    groups = resources.get("InstanceGroups")
    for place in [resources, *(groups if isinstance(groups, list) else [])]:
        name = place.get("InstanceType") if isinstance(place, dict) else None
        if isinstance(name, str):
            yield name


def _known(name: str) -> None:
    """A type of a botocore that is newer than our catalogue passes."""
    try:
        instances.lookup(name)
    except SpecError:
        if name not in awsapi.allowed_values("CreateTrainingJob", "TrainingInstanceType"):
            raise

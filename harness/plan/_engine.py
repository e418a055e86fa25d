"""Which engine runs the job, and why; or why none can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from harness import ledger
from harness._values import dataclass
from harness.errors import EngineError, MachineError, UsageError
from harness.machine import Machine
from harness.model import ENGINES, EngineName, JsonObject, Spec
from harness.plan import _image, _launcher

__all__ = ["Engine", "choose"]

_LAUNCHERS_LABEL: Final = "harness.launchers"
"""A label of an image of ours that has what MPI launchers need."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The engine that was chosen."""

    name: EngineName
    reason: str
    image: _image.Choice | None


def choose(spec: Spec, machine: Machine, wanted: str) -> Engine:
    """The engine `wanted`, or for "auto": docker when it can run this request, else the sandbox.

    Raises:
        EngineError: it can't, or with "auto" none can; says why and what to do.
        MachineError: no engine of this version can run such a job.
        UsageError: there is no such engine.
    """
    if wanted not in (*ENGINES, "fake"):
        raise UsageError(f"there is no engine {wanted!r}: use {', '.join(ENGINES)}")
    if wanted == "fake":
        return Engine(name="fake", reason="asked for", image=None)
    if wanted == "auto":
        return _auto(spec, machine)
    _check_possible(spec, wanted)
    problem, image = _cannot(wanted, spec, machine)
    if problem:
        other = "sandbox" if wanted == "docker" else "docker"
        way_out = "" if _cannot(other, spec, machine)[0] else f". Or use --engine {other}"
        raise EngineError(f"the {wanted} engine can't run this job: {problem}{way_out}")
    if wanted == "docker":
        return Engine(name="docker", reason=f"asked for; {_answers(machine, image)}", image=image)
    return Engine(name="sandbox", reason="asked for", image=None)


def _auto(spec: Spec, machine: Machine) -> Engine:
    docker, image = _cannot("docker", spec, machine)
    if not docker:
        return Engine(name="docker", reason=_answers(machine, image), image=image)
    sandbox, _ = _cannot("sandbox", spec, machine)
    if not sandbox:
        return Engine(name="sandbox", reason=f"docker can't run it: {docker}", image=None)
    _check_possible(spec, "docker")
    raise EngineError(f"no engine can run this job here. docker: {docker}. sandbox: {sandbox}")


def _cannot(engine: str, spec: Spec, machine: Machine) -> tuple[str, _image.Choice | None]:
    """Why `engine` can't run it, with what to do, empty when it can; and docker's image."""
    if problem := _impossible(spec, engine):
        return problem, None
    if engine == "sandbox":
        return _sandbox_cannot(spec, machine), None
    if not machine.docker:
        return machine.docker.reason, None
    image = _image.choose(spec, machine)
    return _docker_cannot(spec, image), image


def _answers(machine: Machine, image: _image.Choice | None) -> str:
    assert image is not None  # without an image docker can't
    return f"{machine.docker.title} answers and the image {image.name} is here"


def _docker_cannot(spec: Spec, image: _image.Choice | None) -> str:
    if image is None:
        return "the request names no TrainingImage"
    if image.image is None:
        if image.name == _image.BUILT_IN:
            return f"the image {image.name} isn't here: make it with `harness image build`"
        mapped = f" ({image.because} for {image.asked})" if image.because else ""
        return f"the image {image.name}{mapped} isn't here: pull or build it, or map it to one that is in [local.images]"
    launcher = _launcher.asked(spec.request)
    labels = image.image.labels
    if launcher and launcher.needs and "harness.image" in labels and _LAUNCHERS_LABEL not in labels:
        return (
            f"the request wants {launcher.title}, which needs {launcher.needs}, and the image {image.name} lacks them: "
            "make one that has them with `harness image build --launchers`, or map to one in [local.images]"
        )
    return ""


def _sandbox_cannot(spec: Spec, machine: Machine) -> str:
    if not _script_mode(spec.request):
        return (
            "it has no image, so it needs a script (entry_point) or a ContainerEntrypoint: "
            "this request relies on its image's own program, which only docker can run"
        )
    if not machine.sandbox:
        hosts = ledger.Given(value=None, engine="sandbox", request=spec.request).hosts
        isolated = bool(spec.request.get("EnableNetworkIsolation"))
        if hosts > 1 or isolated:
            what = "network isolation" if isolated else "several hosts"
            return f"{what} needs namespaces, and {machine.sandbox.reason}"
    return ""


def _script_mode(request: JsonObject) -> bool:
    """Somebody says what to start: the toolkit's entry point, or the request (contract: A4, A22)."""
    given: Mapping[str, str] = request.get("HyperParameters") or {}
    environment: Mapping[str, str] = request.get("Environment") or {}
    return (
        "sagemaker_program" in given
        or "SAGEMAKER_PROGRAM" in environment
        or bool(request["AlgorithmSpecification"].get("ContainerEntrypoint"))
    )


def _impossible(spec: Spec, engine: str) -> str:
    blocked = ledger.blockers(spec, engine)
    return (
        f"{blocked[0].path} is {_shown(blocked[0].value)}: {blocked[0].reason.rstrip('.')}" if blocked else ""
    )


def _check_possible(spec: Spec, engine: str) -> None:
    """Raise when the request has something that no engine can run, so that no other is recommended."""
    if problem := _impossible(spec, engine):
        if _impossible(spec, "sandbox" if engine == "docker" else "docker"):
            raise MachineError(problem)
        raise EngineError(f"the {engine} engine can't run this job: {problem}")


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:60] + "…"

"""What a host starts: the image's words, the request's, and `train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from harness.model import JsonObject

__all__ = ["command", "image_environment", "toolkit_command"]

_TOOLKIT: Final = Path(__file__).parent / "toolkit"


def command(
    request: JsonObject, image_entrypoint: Sequence[str] | None = None
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The entry point and the command of a host; (contract: A1, A4, A5, A6).

    An entry point of None leaves the image's own in force. `image_entrypoint` is given where there is no
    image to have one (the sandbox: `toolkit_command`). The image's CMD never matters: `train`, or
    ContainerArguments, or nothing beside a ContainerEntrypoint takes its place.
    """
    algorithm = request["AlgorithmSpecification"]
    entrypoint = algorithm.get("ContainerEntrypoint")
    arguments = algorithm.get("ContainerArguments")
    if entrypoint:
        return tuple(entrypoint), tuple(arguments or ())
    own = None if image_entrypoint is None else tuple(image_entrypoint)
    return own, tuple(arguments) if arguments else ("train",)


def toolkit_command(python: str) -> tuple[str, ...]:
    """The start of our stand-in for the image's `train`, by the interpreter of the user's script.

    Python 3.8 or newer; only its standard library is used.
    """
    return (python, str(_TOOLKIT / "__main__.py"))


def image_environment() -> dict[str, str]:
    """ENV of the image that `harness image build` makes: the sandbox, which has no image, starts with it.

    Anything of the platform or of the request goes over it (contract: D13).
    """
    return {
        "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",  # contract: A21
        "PYTHONUNBUFFERED": "TRUE",  # contract: I5
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "UTF-8",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
    }

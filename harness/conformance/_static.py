"""What an image's configuration and files tell, before anything of it runs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Final

from harness.conformance._finding import Finding, failed, not_checked, passed, warned
from harness.conformance._subject import DRIVERS, PACKAGES, Subject
from harness.engines.image_facts import ImageFacts, PathFacts
from harness.quantities import size

__all__ = ["static_findings"]

_SHELLS: Final = ("sh", "bash", "dash", "ash", "zsh")
_INITS: Final = ("tini", "tini-static", "dumb-init", "catatonit", "docker-init")
_ARCHITECTURES: Final = {"amd64": "x86-64", "arm64": "Graviton (such as ml.m6g) only"}
_LARGE: Final = 20 * 10**9
_DRIVER_PACKAGES: Final = re.compile(
    rb"^Package: ((?:nvidia-driver|nvidia-kernel|nvidia-utils|libnvidia-compute|libnvidia-gl|libcuda1)[^\s]*)\n"
    rb"Status: install ok installed",
    re.MULTILINE,
)
_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_DRIVER_MENDING: Final = (
    "start from a CUDA runtime image, and don't install driver packages: the driver comes from the host"
)


def static_findings(subject: Subject, image: ImageFacts) -> Iterator[Finding]:
    """One finding per check of `docker inspect` and of the image's files."""
    yield from _start(subject, image)
    yield _baked(image)
    yield _driver(image)
    yield _user(image)
    yield _architecture(image)
    yield _size(image)
    yield _credentials(image)
    yield _buffering(image)
    yield _drivers_of_sdk3(image)


def _start(subject: Subject, image: ImageFacts) -> Iterator[Finding]:
    """contract: A1, A2, A3, A9, A10"""
    asked = subject.request["AlgorithmSpecification"]
    if asked.get("ContainerEntrypoint"):
        yield from _entrypoint(tuple(asked["ContainerEntrypoint"]), "ContainerEntrypoint")
    elif image.entrypoint:
        yield from _entrypoint(image.entrypoint, "ENTRYPOINT")
    else:
        yield _train(image.programs.get("train"), image)
        yield passed("A9", "exec form", "it has no ENTRYPOINT: `train` itself is process 1.")
        yield passed("A10", "no init", "nothing stands in front of `train`.")


def _entrypoint(words: tuple[str, ...], what: str) -> Iterator[Finding]:
    program = posixpath.basename(words[0])
    shown = " ".join(words)[:120]
    if what == "ENTRYPOINT" and program in _SHELLS and len(words) > 2 and words[1] == "-c":
        yield failed(
            "A9",
            "exec form",
            f"ENTRYPOINT is in shell form ({shown}): the shell is process 1, it drops the word `train`, and SIGTERM "
            "doesn't reach the program.",
            'write it as a JSON list: ENTRYPOINT ["python3", "/opt/program/train.py"]',
        )
    else:
        yield passed("A9", "exec form", f"{what} is a list: {shown}.")
    if program in _INITS:
        yield warned(
            "A10",
            "no init",
            f"{what} starts with {program}, which AWS's guide advises against: it may take `train` for an option.",
            f"leave {program} out: the program can be process 1 itself",
        )
    else:
        yield passed("A10", "no init", "no init such as tini stands in front of the program.")


def _train(train: PathFacts | None, image: ImageFacts) -> Finding:
    check = "`train` can be started"
    if train is None:
        return failed(
            "A2",
            check,
            f'it has no ENTRYPOINT and no `train` on its PATH: the job fails at once (exec: "train": executable '
            f"file not found). Its CMD ({' '.join(image.command) or 'none'}) is never used.",
            "put an executable file `train` into /usr/local/bin, or set an ENTRYPOINT in exec form",
        )
    if not train.executable:
        return failed(
            "A3", check, f"{train.path} is not executable: the job fails with exit code 126.",
            f"RUN chmod +x {train.path}",
        )  # fmt: skip
    if train.content.startswith(b"#!") and train.content.split(b"\n", 1)[0].endswith(b"\r"):
        return failed(
            "A3",
            check,
            f"the first line of {train.path} ends with a carriage return: its interpreter isn't found, and the "
            "job fails with exit code 127.",
            "save the file with Unix line ends (dos2unix)",
        )
    return passed("A2", check, f"{train.path} is there and executable.")


def _baked(image: ImageFacts) -> Finding:
    """contract: A11"""
    check = "nothing baked into /opt/ml"
    if not image.baked:
        return passed("A11", check, "it brings no files below /opt/ml but those of /opt/ml/code, if any.")
    return warned(
        "A11",
        check,
        f"it brings {', '.join(image.baked[:3])}: the platform's mounts hide what is below /opt/ml.",
        "keep the image's own files elsewhere, for example below /opt/program",
    )


def _driver(image: ImageFacts) -> Finding:
    """contract: A13"""
    check = "no NVIDIA driver in it"
    libraries = [path for path in DRIVERS if path in image.paths and image.paths[path].size > 0]
    known = image.paths.get(PACKAGES)
    packages = [name.decode() for name in _DRIVER_PACKAGES.findall(known.content)] if known else []
    if packages or libraries:
        return failed(
            "A13",
            check,
            f"it bundles parts of the NVIDIA driver ({', '.join((*packages, *libraries)[:4])}), which won't fit the "
            "host's.",
            _DRIVER_MENDING,
        )
    return passed("A13", check, "no driver library and no driver package is in it.")


def _user(image: ImageFacts) -> Finding:
    """contract: A19"""
    check = "runs as root"
    name = image.user.partition(":")[0]
    if name in ("", "root", "0"):
        return passed("A19", check, "its user is root.")
    return warned(
        "A19",
        check,
        f"its USER is {name}: /opt/ml/input/config is root's and has mode 0644, so {name} can't read its "
        "hyperparameters.",
        "drop USER, and let `train` give up root's rights itself, once it has read its configuration",
    )


def _architecture(image: ImageFacts) -> Finding:
    check = "architecture"
    if image.architecture == "amd64":
        return passed("A1", check, "amd64, as nearly every instance type.")
    fits = _ARCHITECTURES.get(image.architecture)
    if fits is None:
        return failed(
            "A1",
            check,
            f"its architecture is {image.architecture or 'unknown'}: no instance type runs it.",
            "build it with --platform linux/amd64",
        )
    return warned(
        "A1", check, f"{image.architecture}: it runs on {fits}.", "build it with --platform linux/amd64"
    )


def _size(image: ImageFacts) -> Finding:
    """contract: B10"""
    told = f"{size(image.size_bytes)} unpacked"
    if image.size_bytes <= _LARGE:
        return passed("B10", "image size", f"{told}.")
    return warned(
        "B10",
        "image size",
        f"{told}: it lies on the instance's small root disk, and every host fetches it before Training.",
        "use a multi-stage build, clear caches in the RUN that fills them, keep data and models in channels",
    )


def _credentials(image: ImageFacts) -> Finding:
    """contract: D7"""
    check = "no credentials in ENV"
    if found := [name for name in _KEYS if name in image.environment]:
        return failed(
            "D7",
            check,
            f"its ENV has {', '.join(found)}: they go before the role's, and whoever has the image has them.",
            "take them out of the Dockerfile, and renew them: the role's credentials come from an endpoint",
        )
    return passed("D7", check, "its ENV holds no access key.")


def _buffering(image: ImageFacts) -> Finding:
    """contract: I5"""
    check = "output isn't buffered"
    if not {"python", "python3"} & set(image.programs):
        return not_checked("I5", check, "no Python is on its PATH.")
    if image.environment.get("PYTHONUNBUFFERED"):
        return passed("I5", check, "its ENV sets PYTHONUNBUFFERED.")
    return warned(
        "I5",
        check,
        "there is no terminal, so Python keeps its output back: logs come late, and are lost when a job is killed.",
        "ENV PYTHONUNBUFFERED=1",
    )


def _drivers_of_sdk3(image: ImageFacts) -> Finding:
    """contract: A27"""
    check = "fit for SDK v3's drivers"
    missing = [name for name in ("bash", "python3", "pip") if name not in image.programs]
    if not missing:
        return passed("A27", check, "bash, python3 and pip are on its PATH.")
    return warned(
        "A27",
        check,
        f"{', '.join(missing)} is not on its PATH: the SDK's ModelTrainer can't start scripts in it.",
        "install it, or start jobs by CreateTrainingJob or the SDK v2's Estimator",
    )

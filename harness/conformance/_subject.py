"""What is verified: an image by its name, or a spec; and the spec that its runs are variants of."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from harness._values import dataclass
from harness.conformance._words import lay_out, training_spec
from harness.engines.image_facts import ImageFacts, look
from harness.errors import UsageError
from harness.home import Home
from harness.model import JsonObject, Spec
from harness.targets import local

__all__ = ["DRIVERS", "PACKAGES", "PROBE", "Subject", "find_subject", "has_toolkit", "isolated"]

PROBE: Final = Path(__file__).parent / "inner" / "probe.py"
_PROGRAMS: Final = ("train", "python3", "python", "bash", "pip", "sh")
PACKAGES: Final = "/var/lib/dpkg/status"
"""What Debian and Ubuntu know of their packages."""
DRIVERS: Final = tuple(
    f"{place}/{name}"
    for place in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
    for name in ("libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1")
)
"""Libraries of the NVIDIA driver; CUDA's own compatibility package has them elsewhere."""
_SPECS: Final = (".toml", ".json", ".yaml", ".yml")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified."""

    named: str
    spec: Spec
    image: ImageFacts | None
    """None in the sandbox."""
    program: str
    """A name for what runs, for sentences."""
    probed: bool
    """The program is our own script, which the image's toolkit runs: everything can be seen from inside."""

    @property
    def toolkit(self) -> bool:
        """AWS's toolkit, or ours in the sandbox, stands between the platform and the script."""
        if self.image is None:
            return True
        return has_toolkit(self.image)

    @property
    def request(self) -> JsonObject:
        return self.spec.request


def has_toolkit(image: ImageFacts) -> bool:
    """Whether the image's `train` is that of sagemaker-training."""
    train = image.programs.get("train")
    return train is not None and b"sagemaker_training" in train.content


def find_subject(
    named: str,
    home: Home,
    *,
    hyperparameters: Mapping[str, str],
    channels: Mapping[str, Path],
    engine: str | None,
    grace: float,
    load: Callable[[], Spec],
) -> Subject:
    """The image or spec of that name. `home` is the verification's own place.

    `hyperparameters` and `channels` are for an image's own program; a spec has its own.

    Raises:
        UsageError: a spec with words for an image. SpecError, MachineError: as loading and planning.
    """
    if named.endswith(_SPECS) or Path(named).is_file():
        if hyperparameters or channels:
            raise UsageError(
                "a spec has its own hyperparameters and channels; change them there, or with --set"
            )
        return _of_spec(named, home, load(), grace)
    if engine == "sandbox":
        raise UsageError(
            f"an image is verified in docker; the sandbox has none. Or is {named} a spec that isn't there?"
        )
    image = look(named, programs=_PROGRAMS, paths=(*DRIVERS, PACKAGES), owner=home.root.name)
    options = {"engine": "docker", "gpus": "none", "stop_grace": grace, "images": {"*": named}}
    if has_toolkit(image) and not hyperparameters and not channels:
        return _probed(named, home, image, options)
    return _own(named, image, options, hyperparameters, channels)


def _of_spec(named: str, home: Home, spec: Spec, grace: float) -> Subject:
    plan = local.make_plan(spec, home)
    image = None
    if plan.engine == "docker" and plan.image is not None:
        image = look(plan.image, programs=_PROGRAMS, paths=(*DRIVERS, PACKAGES), owner=home.root.name)
    program = (spec.request.get("HyperParameters") or {}).get("sagemaker_program", "").strip(
        '"'
    ) or "the program"
    options = dataclasses.replace(spec.local, engine=plan.engine, stop_grace=grace)
    return Subject(
        named=named,
        spec=dataclasses.replace(spec, local=options),
        image=image,
        program=program,
        probed=False,
    )


def _probed(named: str, home: Home, image: ImageFacts, local: JsonObject) -> Subject:
    """Our probe as the toolkit's script, with a channel of each mode that an image could trip over."""
    code = home.root / "probe"
    code.mkdir()
    shutil.copy(PROBE, code / "probe.py")
    data = {
        channel: lay_out(
            home.root / "data" / channel, {"a b.txt": f"{channel} 1", "below/ü.txt": f"{channel} 2"}
        )
        for channel in ("training", "fast")
    }
    words = {
        "entry_point": "probe.py",
        "source_dir": str(code),
        "environment": {"VERIFY_BLANKS": "two  blanks", "VERIFY_QUOTES": '"it\'s" $HOME ünï\nline'},
        "inputs": {
            "training": str(data["training"]),
            "fast": {"s3_data": str(data["fast"]), "input_mode": "FastFile"},
        },
    }
    spec = training_spec(named, words, channels={}, local=local)
    return Subject(named=named, spec=spec, image=image, program="the probe", probed=True)


def _own(
    named: str,
    image: ImageFacts,
    local: JsonObject,
    hyperparameters: Mapping[str, str],
    channels: Mapping[str, Path],
) -> Subject:
    """The image's own program, as it is."""
    words: Sequence[str] = (*image.entrypoint, "train")
    return Subject(
        named=named,
        spec=training_spec(named, {"hyperparameters": dict(hyperparameters)}, channels=channels, local=local),
        image=image,
        program=posixpath.basename(words[0]) if len(words) == 1 else " ".join(words),
        probed=False,
    )


def isolated(spec: Spec) -> Spec:
    """The spec with network isolation: its code then comes in a channel, as the SDK sends it."""
    request: JsonObject = {**spec.request, "EnableNetworkIsolation": True}
    code = next((upload for upload in spec.uploads if upload.kind == "source"), None)
    if code is not None and not spec.request.get("EnableNetworkIsolation"):
        source = {"S3DataType": "S3Prefix", "S3Uri": code.uri, "S3DataDistributionType": "FullyReplicated"}
        channel = {"ChannelName": "code", "DataSource": {"S3DataSource": source}}
        request["InputDataConfig"] = [*request.get("InputDataConfig", ()), channel]
        place = f"/opt/ml/input/data/code/{posixpath.basename(code.uri)}"
        request["HyperParameters"] = {
            **request["HyperParameters"],
            "sagemaker_submit_directory": json.dumps(place),
        }
    return dataclasses.replace(spec, request=request)

"""/opt/ml of one host without a container: for tests that call a training program's own functions."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from harness import contract
from harness._values import dataclass
from harness.conformance._words import Files, lay_out
from harness.model import JsonObject, Spec

__all__ = ["OptMl", "make_opt_ml"]


@dataclass(frozen=True, kw_only=True)
class OptMl:
    """The tree as the platform makes it, and the variables that it sets."""

    root: Path
    """What is /opt/ml in a container."""
    environment: Mapping[str, str]
    """The platform's variables, and SAGEMAKER_BASE_DIR for AWS's toolkit; no SM_*, which are the toolkit's."""

    @property
    def config(self) -> Path:
        return self.root / "input/config"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def output(self) -> Path:
        return self.root / "output/data"

    @property
    def failure(self) -> str | None:
        """What stands in the failure file; None without one."""
        path = self.root / "output/failure"
        return path.read_text(errors="replace") if path.exists() else None

    def channel(self, name: str) -> Path:
        return self.root / "input/data" / name


def make_opt_ml(
    root: Path, request: JsonObject, host: str, channels: Mapping[str, str | Path | Files]
) -> OptMl:
    """Make the tree of `host` for that request, with these files in its channels."""
    root.mkdir(parents=True, exist_ok=True)
    views = [
        contract.ChannelView(
            name=channel["ChannelName"],
            mode=channel.get("InputMode") or request["AlgorithmSpecification"]["TrainingInputMode"],
            content_type=channel.get("ContentType"),
            distribution=channel["DataSource"]["S3DataSource"].get("S3DataDistributionType"),
        )
        for channel in request.get("InputDataConfig") or ()
    ]
    name = str(request["TrainingJobName"])
    view = contract.host_view(request, host, seed=name)
    contract.write_tree(root, request=request, job_name=name, host=view, channels=views)
    contract.relax_tree(root)  # who runs the test need not be root
    for channel, files in channels.items():
        place = root / "input/data" / channel
        if isinstance(files, (str, Path)):
            shutil.copytree(files, place, dirs_exist_ok=True)
        else:
            lay_out(place, files)
    environment = contract.platform_environment(
        request,
        job_arn=f"arn:aws:sagemaker:{Spec.region}:{Spec.account}:training-job/{name}",
        region=Spec.region,
        hostname=contract.ec2_hostname(name, host, Spec.region),
        gpus=0,
    )
    return OptMl(root=root, environment={**environment, "SAGEMAKER_BASE_DIR": str(root)})

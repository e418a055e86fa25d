"""An image as a function: give it hyperparameters and data, get what its job left."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.conformance._run import Run, Runner, Watching
from harness.conformance._words import Files, lay_out, training_spec
from harness.engines.image_facts import look
from harness.home import Home

__all__ = ["TrainingContainer"]


class TrainingContainer:
    """Runs one image, again and again; each call is a job of its own.

    `home`: a throwaway place (`conformance.place`).
    """

    def __init__(self, image: str, home: Home) -> None:
        self.image = image
        self._home = home
        self._numbers = itertools.count(1)
        look(image)  # an image that isn't here is told at once

    def __call__(
        self,
        *,
        hyperparameters: Mapping[str, str] | None = None,
        channels: Mapping[str, str | Path | Files] | None = None,
        environment: Mapping[str, str] | None = None,
        hosts: int = 1,
        stop_after: float | None = None,
        grace: float = 10.0,
        most: float = 300.0,
        **words: Any,
    ) -> Run:
        """Run the image as a training job and wait for its end.

        Args:
            channels: a local directory, or the files that are to be in one.
            hosts: how many containers, as algo-1, algo-2, …
            stop_after: seconds after which the job is stopped as SageMaker does it.
            grace: seconds between SIGTERM and SIGKILL; 120 in the cloud.
            most: seconds after which the job is stopped in any case.
            words: any other word of a spec: `entry_point`, `source_dir`, `checkpoint_s3_uri`, ….

        Raises:
            SpecError: a word or a value is wrong. MachineError: this machine can't run it.
        """
        number = next(self._numbers)
        spec = training_spec(
            self.image,
            {
                "hyperparameters": hyperparameters,
                "environment": environment,
                "instance_count": hosts,
                **words,
            },
            channels={
                name: Path(files)
                if isinstance(files, (str, Path))
                else lay_out(self._home.root / f"data-{number}" / name, files)
                for name, files in (channels or {}).items()
            },
            local={"engine": "docker", "stop_grace": grace, "images": {"*": self.image}},
        )
        return Runner(self._home, spec).run(f"{number}", act=_stop(stop_after), most=most)


def _stop(after: float | None) -> Callable[[Watching], None] | None:
    if after is None:
        return None

    def act(job: Watching) -> None:
        if (job.running or 0.0) >= after:
            job.stop()

    return act

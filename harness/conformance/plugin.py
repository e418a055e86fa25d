"""The pytest plugin: `pytest --harness-image IMAGE`, and fixtures for tests of training images and programs.

    def test_it_learns(training_container):
        job = training_container(hyperparameters={"epochs": "2"}, channels={"training": {"a.csv": "1,2"}})
        assert job.status == "Completed", job.log
        assert "model.json" in job.model

It is loaded by every pytest run in an environment that has the harness, so it imports nothing before a
fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.conformance._container import TrainingContainer
    from harness.conformance._finding import Report
    from harness.conformance._opt_ml import OptMl
    from harness.conformance._words import Files
    from harness.home import Home
    from harness.model import JsonObject


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("harness", "SageMaker training images")
    group.addoption(
        "--harness-image",
        metavar="IMAGE",
        help="The local training image that is tested: `training_container`.",
    )


@pytest.fixture(scope="session")
def harness_image(request: pytest.FixtureRequest) -> str:
    """The image of `--harness-image`; without it the test is skipped."""
    image: str | None = request.config.getoption("--harness-image")
    if image is None:
        pytest.skip("no image: pytest --harness-image IMAGE")
    return image


@pytest.fixture(scope="session")
def harness_place() -> Iterator[Home]:
    """A state directory for the session's jobs, removed with all that they left."""
    from harness.conformance._place import place
    from harness.home import Home

    with place(Home.find()) as home:
        yield home


@pytest.fixture(scope="session")
def training_container(harness_image: str, harness_place: Home) -> TrainingContainer:
    """Runs the image as a training job: `training_container(hyperparameters={…}, channels={…})`.

    What comes back has `status`, `exit_code`, `reason`, `log`, `model`, `output` and `checkpoints`.
    """
    from harness.conformance._container import TrainingContainer

    return TrainingContainer(harness_image, harness_place)


@pytest.fixture(scope="session")
def harness_report(harness_image: str) -> Report:
    """What `harness verify` finds about the image."""
    from harness.conformance._verify import verify

    return verify(harness_image)


@pytest.fixture
def request_builder(request: pytest.FixtureRequest) -> Callable[..., JsonObject]:
    """Builds CreateTrainingJob requests, checked as AWS would: `request_builder(hyperparameters={…})`.

    Takes the words of a spec; what isn't given is a small job of `--harness-image`, or of an image named
    `test`. Raises `harness.ValidationError` in AWS's words.
    """
    image: str = request.config.getoption("--harness-image") or "test"

    def build(*, channels: Mapping[str, Path | str] | None = None, **words: Any) -> JsonObject:
        from harness.conformance._words import training_spec

        named = None if "image_uri" in words or "framework_version" in words else image
        return training_spec(named, words, channels=channels or {}).request

    return build


@pytest.fixture
def opt_ml(tmp_path: Path, request_builder: Callable[..., JsonObject]) -> Callable[..., OptMl]:
    """Makes /opt/ml as a host finds it, in a directory of the test's own: for code that is called directly.

    `opt_ml(hyperparameters={…}, channels={"training": {"a.csv": "1,2"}}, hosts=2, host="algo-2")`
    """

    def make(
        *,
        channels: Mapping[str, str | Path | Files] | None = None,
        hosts: int = 1,
        host: str = "algo-1",
        **words: Any,
    ) -> OptMl:
        from harness.conformance._opt_ml import make_opt_ml

        uris = {name: f"s3://test/{name}/" for name in channels or {}}
        request = request_builder(channels=uris, instance_count=hosts, **words)
        return make_opt_ml(tmp_path / "opt/ml", request, host, channels or {})

    return make

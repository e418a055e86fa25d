"""Fixtures that every test may use, and the rule for tests that need a daemon or a GPU.

A test marked `docker` runs wherever a Docker Engine answers. Where none does it is skipped, with the
daemon's own reason; HARNESS_REQUIRE_DOCKER=1 turns such a skip into a failure, so that a CI machine can't
pass by testing nothing.
"""

from __future__ import annotations

import functools
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.engines import Engine, Host, open_engine
from harness.errors import EngineError
from harness.model import ExitStatus, HostLaunch

IMAGES = ("harness-pytorch", "harness-base:debian")
"""Images with python3 that the docker tests may use, best first; HARNESS_TEST_IMAGE goes before them."""


@functools.cache
def docker_unavailable() -> str | None:
    """Why no docker test can run here; None when a daemon answers."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=10)
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as error:
        return f"no Docker Engine answers: {error}"
    return None


@functools.cache
def image_for_tests() -> str | None:
    """The image for docker tests, or None when this daemon has none that fits."""
    import docker
    from docker.errors import ImageNotFound

    client = docker.from_env(timeout=10)
    try:
        for name in filter(None, (os.environ.get("HARNESS_TEST_IMAGE"), *IMAGES)):
            try:
                client.images.get(name)
            except ImageNotFound:
                continue
            return name
        return None
    finally:
        client.close()


def lacks_docker(reason: str) -> None:
    """Skip the running test for want of Docker, or fail it where Docker is required."""
    if os.environ.get("HARNESS_REQUIRE_DOCKER") == "1":
        pytest.fail(f"HARNESS_REQUIRE_DOCKER=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@functools.cache
def gpu_unavailable() -> str | None:
    """Why no gpu test can run here; None when there is a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no GPU: {error}"
    try:
        return None if pynvml.nvmlDeviceGetCount() else "no GPU: the driver lists none"
    finally:
        pynvml.nvmlShutdown()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") and (reason := docker_unavailable()):
        lacks_docker(reason)
    if item.get_closest_marker("gpu") and (reason := gpu_unavailable()):
        pytest.skip(reason)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own: $HARNESS_HOME points to it."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HARNESS_HOME", str(path))
    return path


@pytest.fixture
def docker_image() -> str:
    """A local image with python3 on its PATH."""
    if reason := docker_unavailable():
        lacks_docker(reason)
    image = image_for_tests()
    if image is None:
        lacks_docker(f"no test image: set HARNESS_TEST_IMAGE or build one of {', '.join(IMAGES)}")
    assert image is not None
    return image


@pytest.fixture(params=["fake", "sandbox", pytest.param("docker", marks=pytest.mark.docker)])
def engine(request: pytest.FixtureRequest, home: Path) -> Engine:
    """Each engine in turn, in a $HARNESS_HOME of its own; narrow it with `indirect=True`."""
    del home
    try:
        return open_engine(request.param)
    except EngineError as error:
        if request.param == "docker":
            raise
        pytest.skip(f"the {request.param} engine can't run here: {error}")


class EngineJob:
    """A job of bare commands on a real engine, without the life cycle; for tests of engines."""

    def __init__(self, engine: Engine, image: str | None, root: Path) -> None:
        self.engine = engine
        self.name = f"t-{uuid.uuid4().hex[:12]}"
        self.image = image
        self.root = root
        self.python = "python3" if image else sys.executable

    def launch(self, *command: str, host: str = "algo-1", **fields: Any) -> HostLaunch:
        """A launch of `command`, its directories made; `fields` are HostLaunch's."""
        ml, scratch = self.root / host / "ml", self.root / host / "scratch"
        for directory in (*(ml / name for name in ("input", "model", "output")), scratch):
            directory.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "job_name": self.name,
            "host": host,
            "hosts": (host,),
            "hostname": "ip-10-0-1-2.us-east-1.compute.internal",
            "image": self.image,
            "entrypoint": command[:1],
            "command": command[1:],
            "environment": {"PYTHONUNBUFFERED": "1"},
            "ml": ml,
            "mounts": (),
            "scratch": scratch,
            "gpus": (),
            "shm_bytes": 64 << 20,
            "python": None if self.image else sys.executable,
        }
        return HostLaunch(**{**values, **fields})

    def script(self, code: str, host: str = "algo-1", **fields: Any) -> HostLaunch:
        """A launch of Python code."""
        return self.launch(self.python, "-c", code, host=host, **fields)

    def start(self, *launches: HostLaunch) -> list[Host]:
        """Prepare and start them all."""
        self.engine.prepare(launches)
        return [self.engine.start(launch) for launch in launches]

    def run(self, launch: HostLaunch) -> tuple[bytes, ExitStatus]:
        """Start one host; its whole output and its end."""
        (host,) = self.start(launch)
        output = b"".join(host.output())
        status = host.wait(60)
        assert status is not None, "still running a minute after its output ended"
        return output, status


@pytest.fixture
def make_job(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Engine], EngineJob]]:
    """Makes jobs of bare commands; closes them after the test."""
    jobs: list[EngineJob] = []

    def make(engine: Engine) -> EngineJob:
        image = request.getfixturevalue("docker_image") if engine.name == "docker" else None
        jobs.append(EngineJob(engine, image, tmp_path / f"job-{len(jobs)}"))
        return jobs[-1]

    yield make
    for job in jobs:
        job.engine.close(job.name)

"""Whole jobs, from a spec file to a terminal record, in both engines.

`job` runs a script as a job and gives back everything a user can see of it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.home import Home
from harness.model import JsonObject
from harness.store import JobRecord, Store
from harness.targets import local

ROLE = "arn:aws:iam::111122223333:role/SageMakerRole"


@dataclass
class Job:
    """A job that was submitted."""

    home: Home
    name: str

    def wait(self) -> JobRecord:
        return local.wait(self.name, home=self.home)

    @property
    def record(self) -> JobRecord:
        with Store(self.home) as store:
            return store.job(self.name)

    @property
    def describe(self) -> JsonObject:
        return local.describe(self.name, home=self.home)

    def log(self, host: str = "algo-1") -> bytes:
        """The raw bytes of the last attempt's stream."""
        return (self.home.logs(self.name, self.record.attempt) / f"{host}.log").read_bytes()

    def metrics(self, *, sampled: bool = False) -> dict[str, list[float]]:
        with Store(self.home) as store:
            series: dict[str, list[float]] = {}
            for _, point in store.metrics(self.name, sampled=sampled):
                series.setdefault(point.name, []).append(point.value)
            return series

    def archive(self, kind: str = "model") -> dict[str, bytes] | None:
        """Member → content of model.tar.gz ("model") or output.tar.gz ("output"); None when there is none."""
        artifact = self.record.result.get("artifacts", {}).get(kind)
        if artifact is None:
            return None
        with tarfile.open(artifact["path"]) as tar:
            return {
                member.name.removeprefix("./"): file.read()
                for member in tar.getmembers()
                if member.isfile() and (file := tar.extractfile(member)) is not None
            }

    def forget(self) -> None:
        """Free the name for another job."""
        with Store(self.home) as store:
            store.delete_job(self.name)
        shutil.rmtree(self.home.job(self.name))

    def until(self, condition: Callable[[], Any], *, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"timed out; {self.record.secondary_status}; {self.log()!r}"
            time.sleep(0.05)

    def until_log(self, text: bytes, host: str = "algo-1") -> None:
        path = self.home.logs(self.name, 1) / f"{host}.log"
        self.until(lambda: path.exists() and text in path.read_bytes())


@pytest.fixture(params=["sandbox", pytest.param("docker", marks=pytest.mark.docker)])
def engine_name(request: pytest.FixtureRequest) -> str:
    """Each real engine in turn."""
    return str(request.param)


@pytest.fixture
def unique() -> str:
    """A job name that no other session of tests on this machine uses at the moment."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def no_job_outlives_its_test(home: Path) -> Iterator[None]:
    """A test that fails in the middle must not leave its jobs to the tests after it."""
    yield
    place = Home(home)
    if not place.db.exists():
        return
    with Store(place) as store:
        left = store.unfinished()
    for name in left:
        local.stop(name, now=True, home=place)
    for name in left:
        local.wait(name, home=place)


Submit = Callable[..., Job]


def write_project(
    project: Path,
    script: str,
    *,
    engine: str,
    image: str | None = None,
    files: Mapping[str, str] | None = None,
    **spec: Any,
) -> Path:
    """source_dir and job.toml in a new directory; extra top-level keys and tables as keyword arguments."""
    (project / "code").mkdir(parents=True)
    entry = spec.get("entry_point", "train.py")
    (project / "code" / entry).write_text(textwrap.dedent(script))
    for name, text in (files or {}).items():
        path = project / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    local_table = {"engine": engine, "stop_grace": 5, **spec.pop("local", {})}
    document = {
        "name": "t",
        "entry_point": "train.py",
        "source_dir": "code",
        "role": ROLE,
        "image_uri": image or "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine:1",
        "instance_type": "ml.m5.large",
        "instance_count": 1,
        **spec,
        "local": {"images": {"*": image or "harness-pytorch"}, **local_table},
    }
    path = project / "job.toml"
    path.write_text(to_toml(document))
    return path


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """`write_project` in a directory of the test's own."""
    numbers = iter(range(1000))

    def write(script: str, **options: Any) -> Path:
        return write_project(tmp_path / f"project{next(numbers)}", script, **options)

    return write


@pytest.fixture
def submit(home: Path, write_spec: Callable[..., Path]) -> Submit:
    """Submit a script as a job: `submit(script, engine="sandbox", hyperparameters={…}, …)`."""

    def start(script: str, *, engine: str, job_name: str | None = None, **spec: Any) -> Job:
        from harness.spec import load

        compiled = load(write_spec(script, engine=engine, **spec), job_name=job_name)
        place = Home(home)
        return Job(place, local.submit(compiled, home=place).name)

    return start


@pytest.fixture
def run(submit: Submit) -> Submit:
    """`submit`, and wait for the end."""

    def start(script: str, **options: Any) -> Job:
        job = submit(script, **options)
        job.wait()
        return job

    return start


def processes_of(job: Job) -> list[psutil.Process]:
    """Every process of this machine that names the job: its supervisor and the sandbox's hosts."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("TRAINING_JOB_NAME") == job.name:
                found.append(process)
    return found


def to_toml(document: Mapping[str, Any]) -> str:
    """Plain values first, then tables, one level deep; lists of tables inline. Enough for job.toml."""
    document = {key: item for key, item in document.items() if item is not None}
    lines = [f"{key} = {value(item)}" for key, item in document.items() if not isinstance(item, Mapping)]
    for key, item in document.items():
        if isinstance(item, Mapping):
            lines.append(f"[{key}]")
            lines += [f"{json.dumps(name)} = {value(entry)}" for name, entry in item.items()]
    return "\n".join(lines) + "\n"


def value(item: Any) -> str:
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {value(entry)}" for key, entry in item.items()) + "}"
    if isinstance(item, (list, tuple)):
        return "[" + ", ".join(map(value, item)) + "]"
    if isinstance(item, Path):
        return json.dumps(str(item))
    return json.dumps(item)

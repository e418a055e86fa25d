"""How each row of the table is measured."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
HARNESS = str(Path(sys.executable).parent / "harness")
IMAGE = os.environ.get("HARNESS_TEST_IMAGE", "harness-pytorch")
ROLE = "arn:aws:iam::111122223333:role/SageMakerRole"
FIRST_LINE = "import os, time\nos.write(1, f'FIRST {time.time()!r}\\n'.encode())\n"
"""One write: AWS's toolkit puts a line end after each piece that it reads."""


class NotHereError(Exception):
    """The counterpart of a row isn't installed here."""


@dataclass
class Measured:
    """What both sides took, pair by pair."""

    unit: Literal["s", "lines/s"]
    compare: Literal["ratio", "speed-up", "difference", "none"]
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    note: str = ""
    """What else there is to tell of these runs."""

    def result(self) -> str:
        """The median over the pairs of what the row is about."""
        if self.compare == "none":
            return show(statistics.median(self.ours), self.unit)
        pairs = list(zip(self.ours, self.theirs, strict=True))
        if self.compare == "ratio":
            return f"{statistics.median(a / b for a, b in pairs):.2f}×"
        if self.compare == "speed-up":
            return f"{statistics.median(b / a for a, b in pairs):.1f}× faster"
        return f"{statistics.median(a - b for a, b in pairs) * 1000:+.0f} ms"


def show(value: float, unit: str) -> str:
    if unit == "lines/s":
        return f"{value:,.0f}/s"
    return f"{value * 1000:.0f} ms" if value < 10 else f"{value:.1f} s"


def docker_first_line(place: Path, runs: int) -> Measured:
    """`harness run` (the image's `train`, AWS's toolkit) against `docker run` of the same image, `train` and
    /opt/ml, which is all that a user could type without the harness."""
    need_docker()
    spec = project(place, FIRST_LINE, engine="docker")
    tree = ml_tree(place / "bare", FIRST_LINE)
    command = ["docker", "run", "--rm", "-v", f"{tree}:/opt/ml", IMAGE, "train"]
    measured = Measured(unit="s", compare="ratio")
    for _ in range(runs + 1):
        measured.theirs.append(first_line(command))
        measured.ours.append(first_line([HARNESS, "run", str(spec)], home(place)))
    return warmed(measured)


def docker_overhead(place: Path, runs: int) -> Measured:
    """The whole trivial job against `docker run` alone: what no tool can be faster than with this image."""
    need_docker()
    spec = project(place, "print('hello')\n", engine="docker")
    tree = ml_tree(place / "bare", "print('hello')\n")
    command = ["docker", "run", "--rm", "-v", f"{tree}:/opt/ml", IMAGE, "train"]
    measured = Measured(unit="s", compare="difference")
    for _ in range(runs + 1):
        measured.theirs.append(whole(command, {}))
        measured.ours.append(whole([HARNESS, "run", str(spec)], home(place)))
    return warmed(measured)


def docker_whole_job(place: Path, runs: int) -> Measured:
    """The SDK's local mode in its own interpreter, import and all, as a user runs it."""
    need_docker()
    spec = project(place, "print('hello')\n", engine="docker")
    command, environment = sdk_local_mode(place, spec)
    measured = Measured(unit="s", compare="speed-up")
    with composed_removed():
        for _ in range(max(2, runs // 2) + 1):
            measured.theirs.append(whole(command, environment))
            measured.ours.append(whole([HARNESS, "run", str(spec)], home(place)))
    return warmed(measured)


def sdk_local_mode(place: Path, spec: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the SDK's local mode with the spec's script and image."""
    compose = Path(sys.executable).parent / "docker-compose"
    if not compose.exists():
        raise NotHereError("no docker-compose beside the interpreter (extra: bench)")
    script = place / "sdk.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sagemaker
            from sagemaker.local import LocalSession
            from sagemaker.pytorch import PyTorch
            session = LocalSession()
            session.config = {{"local": {{"local_code": True}}}}
            PyTorch(entry_point="train.py", source_dir={str(spec.parent / "code")!r}, role={ROLE!r},
                    image_uri={IMAGE!r}, instance_count=1, instance_type="local",
                    output_path="file://{place}/sdk-out", sagemaker_session=session).fit()
            """
        )
    )
    return [sys.executable, str(script)], {
        "PATH": f"{compose.parent}:{os.environ['PATH']}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }


@contextlib.contextmanager
def composed_removed() -> Iterator[None]:
    """Remove what compose made meanwhile: the SDK's local mode leaves its containers and networks."""
    kinds = {"container": ["container", "ls", "-aq"], "network": ["network", "ls", "-q"]}

    def listed(command: list[str]) -> set[str]:
        label = ["--filter", "label=com.docker.compose.project"]
        done = subprocess.run(["docker", *command, *label], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    before = {kind: listed(command) for kind, command in kinds.items()}
    try:
        yield
    finally:
        for kind, command in kinds.items():
            if made := sorted(listed(command) - before[kind]):
                subprocess.run(["docker", kind, "rm", *made], capture_output=True, check=True)


def sandbox_first_line(place: Path, runs: int) -> Measured:
    """From the start of `harness run` to the script's first line, over the same for `python script.py`."""
    spec = project(place, FIRST_LINE, engine="sandbox")
    script = spec.parent / "code/train.py"
    measured = Measured(unit="s", compare="difference")
    for _ in range(runs + 1):
        measured.theirs.append(first_line([sys.executable, str(script)]))
        measured.ours.append(first_line([HARNESS, "run", str(spec)], home(place)))
    return warmed(measured)


def archive(place: Path, runs: int) -> Measured:
    """400 MB of float32 noise, as trained weights are."""
    from harness.outputs import pack

    tree = place / "model"
    tree.mkdir()
    generator = random.Random(0)
    import numpy

    numpy.random.default_rng(generator.randrange(1 << 30)).standard_normal(
        100_000_000, dtype="float32"
    ).tofile(tree / "model.pth")
    measured = Measured(unit="s", compare="speed-up")
    for _ in range(max(1, runs // 3)):
        started = time.monotonic()
        pack({"algo-1": tree}, place / "ours.tar.gz", progress=lambda *_: None)
        measured.ours.append(time.monotonic() - started)
        started = time.monotonic()
        with tarfile.open(place / "theirs.tar.gz", "w:gz") as tar:
            tar.add(tree, arcname="")
        measured.theirs.append(time.monotonic() - started)
    return measured


def staging(place: Path, runs: int) -> Measured:
    """The Downloading phase of the second run, by the job's own transitions; data in the local object store."""
    from harness.home import Home
    from harness.store import Store

    environment = home(place)
    bucket = place / "home/s3/my-bucket/data"
    for directory in range(50):
        folder = bucket / f"{directory:02}"
        folder.mkdir(parents=True)
        for number in range(1000):
            (folder / f"{number:04}.txt").write_bytes(b"x" * 100)
    spec = project(
        place, "print('hello')\n", engine="sandbox", inputs='[inputs]\ntraining = "s3://my-bucket/data/"\n'
    )
    measured = Measured(unit="s", compare="none")
    for number in range(runs + 1):
        whole([HARNESS, "run", str(spec), "--job-name", f"stage-{number}"], environment)
        with Store(Home(place / "home")) as store:
            spans = [t for t in store.transitions(f"stage-{number}") if t.status == "Downloading"]
        measured.ours.append(sum((t.end or t.start) - t.start for t in spans))
    return warmed(measured)


def log_capture(place: Path, runs: int) -> Measured:
    """A million lines through log writer and metric scanner, one in a hundred with a metric."""
    from harness.telemetry import LogWriter, MetricScanner

    definitions = [{"Name": f"m{n}", "Regex": f"Metric{n} = ([0-9\\.]+)"} for n in range(9)]
    definitions.append({"Name": "train:Loss", "Regex": "Train_Loss = (.*?) :"})
    lines = [
        f"Epoch : [2][{n}/10] Train_Time = 0.355 : (3.134) , Train_Loss = {n / 7} : (1.35)\n"
        if n % 100 == 0
        else f"2026-11-23 05:44:12 INFO step {n} of the training loop, nothing to see here\n"
        for n in range(1_000_000)
    ]
    data = "".join(lines).encode()
    measured = Measured(unit="lines/s", compare="none")
    for number in range(runs):
        writer = LogWriter(place / str(number), "algo-1")
        scanner = MetricScanner(definitions)
        started = time.monotonic()
        found = 0
        for start in range(0, len(data), 1 << 16):
            chunk = data[start : start + (1 << 16)]
            writer.feed(chunk, 0)
            found += len(scanner.feed("algo-1", chunk, 0))
        measured.ours.append(len(lines) / (time.monotonic() - started))
        writer.close()
        if found != 10_000:
            raise AssertionError(f"{found} values of 10,000")
    return measured


def listing(place: Path, runs: int) -> Measured:
    """The whole process `harness jobs`, interpreter start and all."""
    import sqlite3

    from harness.home import Home
    from harness.store import Store

    environment = home(place)
    with Store(Home(place / "home")):
        pass
    with sqlite3.connect(place / "home/harness.db") as db:
        db.executemany(
            "INSERT INTO jobs (name, arn, status, secondary_status, created, modified, ended, engine,"
            " instance_type, instance_count) VALUES (?, '', 'Completed', 'Completed', ?, ?, ?, 'docker',"
            " 'ml.p4d.24xlarge', 1)",
            ((f"job-{n:06}", n, n, n) for n in range(100_000)),
        )
    db.close()
    measured = Measured(unit="s", compare="none")
    for _ in range(runs + 1):
        measured.ours.append(whole([HARNESS, "jobs"], environment))
    return warmed(measured)


# ------------------------------------------------------------------------------ what the rows share


def warmed(measured: Measured) -> Measured:
    """Without the first run, which warmed the caches."""
    return replace(measured, ours=measured.ours[1:], theirs=measured.theirs[1:])


def home(place: Path) -> dict[str, str]:
    return {"HARNESS_HOME": str(place / "home")}


def need_docker() -> None:
    try:
        found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
    except FileNotFoundError:
        raise NotHereError("no docker command") from None
    if found.returncode:
        raise NotHereError(f"no Docker Engine answers, or it has no image {IMAGE}")


def project(place: Path, script: str, *, engine: str, inputs: str = "") -> Path:
    code = place / "project/code"
    code.mkdir(parents=True)
    (code / "train.py").write_text(script)
    spec = place / "project/job.toml"
    spec.write_text(
        f'name = "bench"\nentry_point = "train.py"\nsource_dir = "code"\nrole = "{ROLE}"\n'
        f'image_uri = "{IMAGE}"\ninstance_type = "ml.m5.large"\ninstance_count = 1\n{inputs}\n[local]\nengine = "{engine}"\n'
    )
    return spec


def ml_tree(place: Path, script: str) -> Path:
    """The least that AWS's `train` needs to start the script."""
    config = place / "input/config"
    config.mkdir(parents=True)
    (place / "code").mkdir()
    (place / "model").mkdir()
    (place / "code/train.py").write_text(script)
    (config / "hyperparameters.json").write_text(
        '{"sagemaker_program": "train.py", "sagemaker_submit_directory": "/opt/ml/code"}'
    )
    (config / "resourceconfig.json").write_text(
        '{"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "eth0"}'
    )
    (config / "inputdataconfig.json").write_text("{}")
    return place


def surroundings(changes: Mapping[str, str]) -> dict[str, str]:
    """For both sides: byte code is kept, as for whoever has installed something."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **changes}


def first_line(command: list[str], environment: Mapping[str, str] | None = None) -> float:
    """Seconds from the start of the process to what the script's first line says of the time."""
    started = time.time()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=surroundings(environment or {})
    )
    for line in (done.stdout + done.stderr).splitlines():
        if "FIRST " in line:
            return float(line.split("FIRST ")[1].split()[0]) - started
    raise NotHereError(f"{' '.join(command)} printed no first line: {(done.stdout + done.stderr)[-300:]}")


def whole(command: list[str], environment: Mapping[str, str]) -> float:
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings(environment))
    if done.returncode:
        raise NotHereError(
            f"{' '.join(command)} ended with {done.returncode}: {(done.stdout + done.stderr)[-300:]}"
        )
    return time.monotonic() - started

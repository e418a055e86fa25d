"""`harness verify` on real images: AWS's toolkit passes, broken ones are caught for the right reason."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import docker
import pytest

from harness import conformance
from harness.conformance import Finding, Level, Report
from harness.home import Home

pytestmark = [pytest.mark.docker, pytest.mark.slow]

BASE = "harness-base:debian"
GOOD = """
    #!/usr/bin/env python3
    import json, os, signal, sys, time

    config = "/opt/ml/input/config/"
    hyperparameters = json.load(open(config + "hyperparameters.json"))
    host = json.load(open(config + "resourceconfig.json"))["current_host"]
    steps = int(hyperparameters.get("steps", "10"))
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    state = "/opt/ml/checkpoints/step"
    os.makedirs("/opt/ml/checkpoints", exist_ok=True)
    first = int(open(state).read()) if os.path.exists(state) else 0
    for step in range(first, steps):
        if stop:
            break
        with open("/tmp/step", "w") as file:
            file.write(str(step))
        with open(state + ".new", "w") as file:
            file.write(str(step))
        os.replace(state + ".new", state)
        time.sleep(0.1)
    with open(f"/opt/ml/model/{host}.txt", "w") as file:
        file.write("model")
"""
STUBBORN = """
    #!/usr/bin/env python3
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.makedirs("/results")
    open("/results/model.bin", "w").write("model")
    time.sleep(3)
"""
LIAR = """
    #!/usr/bin/env python3
    import json, sys, traceback
    try:
        epochs = int(json.load(open("/opt/ml/input/config/hyperparameters.json"))["epochs"])
        open("/opt/ml/model/m.txt", "w").write(str(epochs))
    except Exception:
        traceback.print_exc()
        open("/opt/ml/output/failure", "w").write(traceback.format_exc())
        sys.exit(0)
"""
TYPED = """
    import json
    values = json.load(open("/opt/ml/input/config/hyperparameters.json"))
    print({name: json.loads(value) for name, value in values.items()})
    open("/opt/ml/model/m.txt", "w").write("model")
"""


@pytest.fixture(scope="module")
def build() -> Iterator[Callable[..., str]]:
    """Builds an image of a few lines on the base; all of them are removed."""
    client = docker.from_env()
    made: list[str] = []

    def image(script: str, *lines: str) -> str:
        name = f"harness-test-{uuid.uuid4().hex[:10]}"
        dockerfile = "\n".join((f"FROM {BASE}", "COPY train /usr/local/bin/train", *lines))
        client.images.build(
            fileobj=context({"train": textwrap.dedent(script).lstrip(), "Dockerfile": dockerfile}),
            custom_context=True,
            tag=name,
            rm=True,
        )
        made.append(name)
        return name

    try:
        client.images.get(BASE)
    except docker.errors.ImageNotFound:
        pytest.skip(f"no {BASE}: harness image build --base debian")
    yield image
    for name in made:
        client.images.remove(name, force=True)
    client.close()


def context(files: Mapping[str, str]) -> io.BytesIO:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text.encode()), 0o755
            archive.addfile(info, io.BytesIO(text.encode()))
    tar.seek(0)
    return tar


def verify(image: str, home: Path, **options: object) -> Report:
    report = conformance.verify(image, home=Home(home), **{"grace": 1.0, **options})  # type: ignore[arg-type]
    print(json.dumps(report.to_json(), indent=1))
    assert list((home / "verify").iterdir()) == []
    return report


def broken(report: Report) -> dict[str, Finding]:
    return {finding.clause: finding for finding in report.of(Level.FAIL)}


def test_a_good_program_passes(build: Callable[..., str], home: Path) -> None:
    report = verify(build(GOOD, "ENV PYTHONUNBUFFERED=1"), home, hyperparameters={"steps": "20"})

    assert report.ok
    assert not report.of(Level.SKIP)
    assert {finding.clause for finding in report.of(Level.WARN)} <= {"F21", "A27"}
    held = {finding.clause: finding.what for finding in report.of(Level.PASS)}
    assert "exit code 0; what it had saved is in model.tar.gz: algo-1.txt" in held["G9"]
    assert held["F12"] == "killed and started again, it read step."


def test_who_ignores_sigterm_and_writes_to_the_root(build: Callable[..., str], home: Path) -> None:
    # contract: B10, F5, G9
    report = verify(build(STUBBORN), home, only=("term",))

    assert set(broken(report)) == {"B10", "G9"}
    assert "/results/model.bin" in broken(report)["B10"].what
    assert "ignored SIGTERM and was killed after 1 s" in broken(report)["G9"].what
    assert {"F5", "I5"} <= {finding.clause for finding in report.of(Level.WARN)}


def test_who_exits_with_zero_when_it_failed(build: Callable[..., str], home: Path) -> None:
    # contract: G5
    report = verify(build(LIAR), home, hyperparameters={"epochs": "3"}, only=("fail",))

    assert set(broken(report)) == {"G5"}
    assert "it failed (ValueError: invalid literal for int()" in broken(report)["G5"].what


def test_who_wants_types_and_has_a_shell_before_it(build: Callable[..., str], home: Path) -> None:
    # contract: A9, C1
    image = build(TYPED, "ENTRYPOINT python3 /usr/local/bin/train")
    report = verify(image, home, hyperparameters={"steps": "20"}, only=("values",))

    assert set(broken(report)) == {"A9", "C1"}
    assert "shell form" in broken(report)["A9"].what
    assert "JSONDecodeError" in broken(report)["C1"].what


def test_who_is_not_root(build: Callable[..., str], home: Path) -> None:
    # contract: A19, B5
    report = verify(build(GOOD, "USER nobody"), home)

    assert set(broken(report)) == {"B5"}
    assert "nobody, the image's USER, may not do what it must" in broken(report)["B5"].what
    assert "A19" in {finding.clause for finding in report.of(Level.WARN)}


def test_the_example_image_keeps_the_contract(home: Path, tmp_path: Path) -> None:
    # contract: A9, A10, A13
    client = docker.from_env()
    try:
        client.images.get("harness-pytorch")
    except docker.errors.ImageNotFound:
        pytest.skip("no harness-pytorch: harness image build")
    finally:
        client.close()
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "harness", "verify", "harness-pytorch", "--grace", "2", "--json"),
            *("--junit", tmp_path / "report.xml", "--html", tmp_path / "report.html"),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "HARNESS_HOME": str(home)},
        text=True,
    )
    document = json.loads(done.stdout)

    assert done.returncode == 0, document
    assert time.monotonic() - began < 120
    assert document["counts"]["skip"] == 0
    assert [item["clause"] for item in document["findings"] if item["level"] == "warn"] == ["G10"]
    assert {"A9", "A10", "A13", "B16", "C1", "D3", "D11", "D17", "F1", "F12", "G5", "H1"} <= {
        item["clause"] for item in document["findings"] if item["level"] == "pass"
    }
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("failures"), suite.get("tests")) == ("0", str(len(document["findings"])))
    assert "It keeps the container contract." in (tmp_path / "report.html").read_text()


def test_nothing_stays_of_a_verification_that_was_killed(build: Callable[..., str], home: Path) -> None:
    image = build(STUBBORN)
    with subprocess.Popen(
        [sys.executable, "-m", "harness", "verify", image],
        env={**os.environ, "HARNESS_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        client = docker.from_env()
        deadline = time.monotonic() + 30
        while not client.containers.list(filters={"ancestor": image}):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
    conformance.sweep(Home(home))

    assert list((home / "verify").iterdir()) == []
    assert client.containers.list(all=True, filters={"ancestor": image}) == []
    client.close()

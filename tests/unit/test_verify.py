"""Parts of `harness verify` that need no container: what an image's facts mean, and the reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness import conformance
from harness.conformance import Finding, Level, Report
from harness.conformance._judge import outside
from harness.conformance._run import change
from harness.conformance._static import static_findings
from harness.conformance._subject import PACKAGES, Subject, isolated
from harness.conformance._words import aws_name, training_spec
from harness.engines.image_facts import ImageFacts, PathFacts


def program(path: str, *, executable: bool = True, content: bytes = b"#!/bin/sh\n") -> PathFacts:
    return PathFacts(path=path, directory=False, executable=executable, size=len(content), content=content)


def findings(request: dict[str, Any] | None = None, **fields: Any) -> dict[str, Finding]:
    """What is found about a plain image that differs in these fields, by check."""
    values: dict[str, Any] = {
        "name": "i",
        "id": "sha256:1",
        "architecture": "amd64",
        "size_bytes": 10**9,
        "user": "",
        "entrypoint": (),
        "command": ("train",),
        "environment": {"PYTHONUNBUFFERED": "1"},
        "programs": {name: program(f"/usr/bin/{name}") for name in ("train", "python3", "bash", "pip", "sh")},
        "paths": {},
        "baked": (),
    }
    image = ImageFacts(**{**values, **fields})
    spec = training_spec("i", request or {}, channels={})
    subject = Subject(named="i", spec=spec, image=image, program="train", probed=False)
    return {finding.check: finding for finding in static_findings(subject, image)}


def test_a_plain_image_has_nothing_wrong() -> None:
    assert {finding.level for finding in findings().values()} == {Level.PASS}


DRIVER = b"Package: libnvidia-compute-550\nStatus: install ok installed\nVersion: 1\n"


@pytest.mark.parametrize(
    ("fields", "clause", "level", "words"),
    [
        # contract: A2
        ({"programs": {}}, "A2", Level.FAIL, 'exec: "train": executable file not found'),
        # contract: A3
        (
            {"programs": {"train": program("/usr/bin/train", executable=False)}},
            "A3",
            Level.FAIL,
            "/usr/bin/train is not executable",
        ),
        (
            {"programs": {"train": program("/usr/bin/train", content=b"#!/bin/sh\r\necho\r\n")}},
            "A3",
            Level.FAIL,
            "ends with a carriage return",
        ),
        # contract: A9
        ({"entrypoint": ("/bin/sh", "-c", "python3 /x.py")}, "A9", Level.FAIL, "shell form"),
        # contract: A10
        ({"entrypoint": ("/usr/bin/tini", "--", "train")}, "A10", Level.WARN, "starts with tini"),
        # contract: A11
        ({"baked": ("/opt/ml/model/weights",)}, "A11", Level.WARN, "/opt/ml/model/weights"),
        # contract: A13
        (
            {"paths": {PACKAGES: program(PACKAGES, content=DRIVER)}},
            "A13",
            Level.FAIL,
            "libnvidia-compute-550",
        ),
        (
            {"paths": {"/usr/lib64/libcuda.so.1": program("/usr/lib64/libcuda.so.1")}},
            "A13",
            Level.FAIL,
            "/usr/lib64/libcuda.so.1",
        ),
        # contract: A19
        ({"user": "1000:1000"}, "A19", Level.WARN, "its USER is 1000"),
        ({"architecture": "arm64"}, "A1", Level.WARN, "Graviton"),
        ({"architecture": "s390x"}, "A1", Level.FAIL, "no instance type runs it"),
        # contract: B10
        ({"size_bytes": 30 * 10**9}, "B10", Level.WARN, "30.0 GB unpacked"),
        # contract: I5
        ({"environment": {}}, "I5", Level.WARN, "Python keeps its output back"),
        ({"environment": {"AWS_SECRET_ACCESS_KEY": "x"}}, "D7", Level.FAIL, "AWS_SECRET_ACCESS_KEY"),
        ({"programs": {"train": program("/train")}}, "A27", Level.WARN, "bash, python3, pip"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], clause: str, level: Level, words: str) -> None:
    (found,) = [
        finding
        for finding in findings(**fields).values()
        if finding.clause == clause and finding.level is level
    ]
    assert words in found.what
    assert found.mend


def test_an_entrypoint_of_the_request_may_be_a_shell() -> None:
    # contract: A4
    found = findings({"container_entry_point": ["/bin/sh", "-c", "python3 x.py"]}, programs={})

    assert found["exec form"].level is Level.PASS
    assert "`train` can be started" not in found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"/opt/ml/model/x": 1, "/tmp/y": 1, "/run/z": 1, "/dev/shm/a": 1, "/etc/hosts": 0}, []),
        ({"/root": 0, "/root/.cache": 1, "/root/.cache/torch/x": 1, "/home/me/.nv/y": 1}, []),
        (
            {"/usr": 0, "/usr/lib": 0, "/usr/lib/p/__pycache__": 1, "/usr/lib/p/__pycache__/a.pyc": 1},
            [],
        ),
        ({"/results": 1, "/results/model.bin": 1}, ["/results/model.bin"]),
        (
            {"/var": 0, "/var/lib": 0, "/var/lib/data.db": 1, "/workspace": 0, "/workspace/o": 1},
            ["/workspace/o"],
        ),
        ({"/root/out.txt": 1}, ["/root/out.txt"]),
    ],
)  # contract: B10
def test_where_a_program_may_write(changes: dict[str, int], found: list[str]) -> None:
    assert outside(changes) == found


def test_a_request_is_changed_member_by_member() -> None:
    request = {"A": {"B": 1, "C": 2}, "D": [1], "E": 1}

    assert change(request, {"A": {"C": 3}, "D": [2], "E": None, "F": {"G": 1}}) == {
        "A": {"B": 1, "C": 3},
        "D": [2],
        "F": {"G": 1},
    }
    assert request == {"A": {"B": 1, "C": 2}, "D": [1], "E": 1}


def test_an_isolated_job_gets_its_code_in_a_channel(tmp_path: Path) -> None:
    # contract: D11
    (tmp_path / "train.py").touch()
    spec = training_spec("i", {"entry_point": "train.py", "source_dir": str(tmp_path)}, channels={})
    once = isolated(spec)

    assert once.request["EnableNetworkIsolation"]
    assert [channel["ChannelName"] for channel in once.request["InputDataConfig"]] == ["code"]
    assert once.request["HyperParameters"]["sagemaker_submit_directory"] == (
        '"/opt/ml/input/data/code/sourcedir.tar.gz"'
    )
    assert isolated(once).request == once.request


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("mine", "111122223333.dkr.ecr.us-east-1.amazonaws.com/mine"),
        ("me/mine:1", "me/mine:1"),
        ("sha256:0a", "111122223333.dkr.ecr.us-east-1.amazonaws.com/sha256:0a"),
    ],
)
def test_local_names_become_aws_s(image: str, name: str) -> None:
    assert aws_name(image) == name


REPORT = Report(
    subject="<image>",
    image="<image>",
    engine="docker",
    how="train was run",
    findings=(
        Finding(
            clause="G9", check="SIGTERM", level=Level.FAIL, what="it said \x1b[31m<no>\x00", mend="handle it"
        ),
        Finding(clause="F12", check="resumes", level=Level.SKIP, what="nothing to see"),
        Finding(clause="I5", check="buffers", level=Level.WARN, what="late", mend="set it"),
        Finding(clause="A1", check="starts", level=Level.PASS, what="fine"),
    ),
    seconds=1.5,
)


def test_junit() -> None:
    suite = ElementTree.fromstring(conformance.junit(REPORT))

    assert {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")} == {
        "tests": "4",
        "failures": "1",
        "skipped": "1",
        "errors": "0",
    }
    failure = suite.find("testcase[@classname='harness.verify.G9']/failure")
    assert failure is not None
    assert failure.text == "it said \ufffd[31m<no>\ufffd\nTo mend it: handle it."


def test_html_is_one_file_and_escapes_what_was_said() -> None:
    page = conformance.html(REPORT)

    assert "&lt;image&gt;" in page
    assert "<no>" not in page
    assert "src=" not in page
    assert "http" not in page
    assert (
        page.index("1 broken") < page.index("1 warnings") < page.index("1 not checked") < page.index("1 hold")
    )


def test_json() -> None:
    document = json.loads(json.dumps(REPORT.to_json()))

    assert not document["ok"]
    assert document["counts"] == {"pass": 1, "fail": 1, "warn": 1, "skip": 1}
    assert document["findings"][0]["title"] == "stop: SIGTERM to process 1, 120 s, SIGKILL"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "what is to be verified? Give an image or a spec, or --coverage"),
        (["--coverage", "x"], 2, "--coverage is about this harness itself"),
        (["nowhere.toml"], 2, "nowhere.toml can't be read"),
        (["x", "--channel", "a"], 2, "'a' is no pair: write it as NAME=VALUE"),
        (["x", "--junit", "no/where/r.xml"], 2, "no/where is no directory"),
        (["x", "--engine", "sandbox"], 2, "an image is verified in docker"),
    ],
)
def test_wrong_words(home: Path, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "verify", *words], capture_output=True, text=True, cwd=tmp_path
    )

    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not home.joinpath("verify").exists() or list(home.joinpath("verify").iterdir()) == []

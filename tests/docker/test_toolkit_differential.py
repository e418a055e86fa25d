"""Our `train` against AWS's own, in AWS's image, over the same jobs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import harness.contract
from tests.conftest import lacks_docker
from tests.docker import toolkit_cases

pytestmark = [pytest.mark.docker, pytest.mark.slow]

TOOLKIT = Path(harness.contract.__file__).parent / "toolkit"
CASES_FILE = Path(toolkit_cases.__file__)

OWN_WORDS = {"no entry point", "entry point above", "entry point with a blank", "entry point like an option"}
"""Refused by both, each in its own words."""


IN_PIECES = {"exception", "syntax error", "compiler"}
"""The interpreter writes its traceback in several pieces, and AWS's reads end between any two of them."""


def results(image: str, *command: str) -> dict[str, Any]:
    import docker

    client = docker.from_env()
    try:
        output = client.containers.run(
            image,
            ["/cases.py", *command],
            entrypoint=["python3"],
            volumes={
                str(CASES_FILE): {"bind": "/cases.py", "mode": "ro"},
                str(TOOLKIT): {"bind": "/toolkit", "mode": "ro"},
            },
            hostname="ip-10-0-1-2",
            network_mode="none",
            remove=True,
        )
    finally:
        client.close()
    return dict(json.loads(line) for line in output.splitlines())


@pytest.fixture(scope="module")
def both() -> dict[str, dict[str, Any]]:
    """The results of both toolkits; needs an image with AWS's."""
    import docker

    client = docker.from_env()
    try:
        if not client.images.list(name="harness-pytorch"):
            lacks_docker("no image harness-pytorch: build it with `harness image build`")
    finally:
        client.close()
    return {
        "aws": results("harness-pytorch", "train"),
        "ours": results("harness-pytorch", "python3", "/toolkit/__main__.py", "train"),
    }


def characters(text: str) -> str:
    """Output without blanks: AWS's toolkit drops and adds them wherever its reads of the pipe end."""
    return "".join(text.split())


def loose(text: str | None) -> str | None:
    """A failure text without what depends on where reads end: blanks and colons at line ends."""
    return None if text is None else re.sub(r"[\s:]+", " ", text)


def framework_errors_by_name(text: str | None) -> str | None:
    """A crash of the toolkit itself names the exception; the rest of its text is our own."""
    if text is not None and text.startswith("Framework Error"):
        return text.splitlines()[1].partition(":")[0]
    return text


@pytest.mark.parametrize("name", toolkit_cases.CASES)
def test_ends_alike(both: dict[str, dict[str, Any]], name: str) -> None:  # contract: G13–G16, B20
    aws, ours = (both[side].get(name) for side in ("aws", "ours"))
    if aws is None or ours is None:
        pytest.skip("this image lacks what the case needs")
    assert ours["code"] == aws["code"]
    assert ours["success"] == aws["success"]
    assert ours["tree"] == aws["tree"]
    if name in OWN_WORDS:
        assert ours["failure"].startswith("The training entry point")
        return
    texts = [framework_errors_by_name(side["failure"]) for side in (ours, aws)]
    if name in IN_PIECES:
        texts = [loose(text) for text in texts]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", toolkit_cases.CASES)
def test_the_script_sees_the_same(both: dict[str, dict[str, Any]], name: str) -> None:  # contract: D15–D31
    aws, ours = (both[side].get(name) for side in ("aws", "ours"))
    if aws is None or ours is None:
        pytest.skip("this image lacks what the case needs")
    assert characters(ours["stdout"]) == characters(aws["stdout"])
    assert list(ours["probes"]) == list(aws["probes"])
    for theirs, own in zip(aws["probes"].values(), ours["probes"].values(), strict=True):
        assert own["argv"] == theirs["argv"]
        assert own["cwd"] == theirs["cwd"]
        environments = [dict(side["environ"]) for side in (theirs, own)]
        paths = [environment.pop("PYTHONPATH").split(":") for environment in environments]
        assert paths[1][0] == paths[0][0] == "/opt/ml/code"
        assert set(paths[1]) <= set(paths[0])
        assert environments[1] == environments[0]
        names = [[key for key in environment if key.startswith("SM_")] for environment in environments]
        assert names[1] == names[0]


@pytest.mark.parametrize(
    "line", ["Invoking script with the following command:", "Reporting training SUCCESS"]
)
def test_log_lines(both: dict[str, dict[str, Any]], line: str) -> None:  # contract: G34
    for side in both.values():
        assert line in side["nothing"]["stderr"]


def test_env_dump_in_the_log(both: dict[str, dict[str, Any]]) -> None:  # contract: G34
    def dump(side: str) -> str:
        found: str = both[side]["hyperparameters"]["stderr"].partition("Invoking user script")[2]
        return found.partition("Exceptions not imported")[0]

    assert dump("ours") == dump("aws")

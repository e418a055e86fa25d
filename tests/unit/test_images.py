"""Building images, as far as it needs no daemon: what is sent, where the base comes from, what errors say."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from harness.engines import _debian, images
from harness.errors import EngineError

TOP = Path(__file__).parents[2]


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def test_the_context_has_all_that_the_dockerfile_copies():
    packed = names(images.context())
    assert {"container/Dockerfile", "container/install-toolkit.sh"} <= set(packed)
    assert "standins/smdistributed/dataparallel/torch/torch_smddp.py" in packed
    assert not [name for name in packed if "__pycache__" in name]


def test_the_same_context_for_the_same_files():
    """Otherwise no build would find the one before it in the builder's cache."""
    assert images.context() == images.context()


def test_the_default_base_is_the_dockerfiles():
    dockerfile = (TOP / "container/Dockerfile").read_text()
    assert re.search(r"^ARG BASE_IMAGE=(.*)$", dockerfile, re.MULTILINE)[1] == images.DEFAULT_BASE


def test_the_classic_builder_understands_the_dockerfile():
    dockerfile = (TOP / "container/Dockerfile").read_text()
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    assert not [line for line in lines if "--mount" in line or "<<" in line or "--link" in line]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SSL_CERT_FILE": "mine.crt"}, b"mine"),
        ({"REQUESTS_CA_BUNDLE": "mine.crt"}, b"mine"),
        ({"PIP_CERT": "mine.crt"}, b"mine"),
        ({"SSL_CERT_FILE": "gone.crt", "PIP_CERT": "mine.crt"}, b"mine"),
        ({"SSL_CERT_FILE": ""}, None),
        ({}, None),
    ],
)
def test_ca_bundle(variables, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.crt").write_bytes(b"mine")
    found = images.ca_bundle(variables)
    if expected is None:
        system = next((Path(path) for path in images._CA_FILES if Path(path).is_file()), None)
        expected = system.read_bytes() if system else b""
    assert found == expected


def test_proxies_in_both_spellings_and_nothing_else():
    environment = {
        "http_proxy": "http://p:1",
        "HTTPS_PROXY": "http://p:2",
        "NO_PROXY": "x",
        "HOME": "/",
        "ftp_proxy": "",
    }
    assert images.proxies(environment) == {
        "http_proxy": "http://p:1",
        "HTTPS_PROXY": "http://p:2",
        "NO_PROXY": "x",
    }


@pytest.mark.parametrize(
    ("error", "network"),
    [
        ('Get "https://example.invalid/v2/": dial tcp: lookup example.invalid: no such host', True),
        ("W: Failed to fetch http://…  Temporary failure resolving 'mirror.example'", True),
        ("x509: certificate signed by unknown authority", True),
        ("The command '/bin/sh -c false' returned a non-zero code: 1", False),
        ("no space left on device", False),
    ],
)
def test_failure_tells_a_missing_network_from_a_broken_step(error, network):
    told = str(images.failure("building x", error, ["Step 1/2 : FROM y"]))
    assert error in told
    assert ("for want of the network" in told) is network
    assert ("--base debian" in told) is network


def test_a_failed_step_says_what_it_last_said():
    stream = [{"stream": "gcc: fatal error\n"}, {"error": "returned a non-zero code: 1"}]
    with pytest.raises(EngineError, match="gcc: fatal error"):
        list(images.stream_lines(stream, "building x", lambda _: None))


ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/x.gpg] http://vendor.example/apt bookworm main
deb http://security.example/debian-security bookworm-security main
deb http://other.example/debian trixie main
deb http://mirror.example/debian bookworm main contrib  # the one
"""
DEB822 = """Types: deb
# a comment
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
"""


@pytest.mark.parametrize(
    ("files", "mirror"),
    [
        ({"sources.list": ONE_LINE}, "http://mirror.example/debian"),
        ({"sources.list.d/debian.sources": DEB822}, "http://mirror.example/debian"),
        ({"sources.list.d/x.list": ONE_LINE, "sources.list": ""}, "http://mirror.example/debian"),
        ({"sources.list.d/debian.sources.bak": DEB822}, None),
        ({"sources.list": "deb http://ubuntu.example/ubuntu noble main"}, None),
        ({}, None),
    ],
)
def test_the_mirror_is_this_machines(files, mirror, tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert _debian.find_mirror(tmp_path) == mirror


def test_without_a_bootstrap_tool_it_names_one(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(EngineError, match="apt-get install mmdebstrap"),
        _debian._bootstrap("http://mirror.example", lambda _: None),
    ):
        pass


def test_a_tool_that_fails_is_told_with_its_words():
    said: list[str] = []
    command = ["sh", "-c", "echo data; echo 'E: it broke' >&2; exit 7"]
    with (
        pytest.raises(EngineError, match="exit code 7") as raised,
        _debian._running(command, said.append) as out,
    ):
        assert out.read() == b"data\n"
    assert "E: it broke" in str(raised.value)
    assert said == ["E: it broke"]


@pytest.mark.slow
def test_the_wheel_carries_the_build_context(tmp_path):
    # A copy: setuptools would leave its build directory in the checkout.
    source = tmp_path / "source"
    shutil.copytree(TOP / "harness", source / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(TOP / name, source)
    options = ["-q", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    sent = {f"harness/{name}" for name in names(images.context()) if name != "container/ca.crt"}
    assert sent <= inside

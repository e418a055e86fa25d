"""Docker over its socket: what answers, what doesn't, and why."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from harness.engines.docker import _daemon as engine_daemon
from harness.errors import EngineError
from harness.machine import _daemon
from tests.unit.machine_daemon import daemon, image


def test_an_engine_that_answers_and_its_images(tmp_path: Path) -> None:
    with daemon(tmp_path, {"harness-pytorch": image(user="app", **{"harness.image": "pytorch"})}) as where:
        docker = _daemon.probe({"DOCKER_HOST": where})
        assert docker
        assert (docker.version, docker.podman, docker.title) == ("24.0.7", False, "Docker Engine 24.0.7")
        found = docker.image("harness-pytorch")
        assert found is not None
        assert (found.labels["harness.torch"], found.user, found.size_bytes) == (
            "1.10.2+cpu",
            "app",
            1_500_000_000,
        )
        assert docker.image("registry.example:5000/a/b@sha256:00") is None
        assert docker.image("no image/could have/ this name") is None


def test_podman_is_known_by_its_components(tmp_path: Path) -> None:
    version = {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}
    with daemon(tmp_path, {}, version) as where:
        docker = _daemon.probe({"DOCKER_HOST": where})
    assert docker.podman
    assert docker.title == "Podman 4.3.1"


@pytest.mark.parametrize(
    ("version", "accepted"), [("19.03.8", False), ("20.10.24+dfsg1", True), ("28.2.2", True)]
)
def test_the_oldest_docker(tmp_path: Path, version: str, accepted: bool) -> None:
    with daemon(tmp_path, {}, {"Version": version}) as where:
        docker = _daemon.probe({"DOCKER_HOST": where})
    assert bool(docker) == accepted
    assert accepted or "20.10 or newer" in docker.reason


def test_the_oldest_docker_is_the_engines_own() -> None:
    assert ".".join(map(str, _daemon.OLDEST)) == engine_daemon.OLDEST


def test_nobody_there(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    assert "there is no socket at" in _daemon.probe({"DOCKER_HOST": f"unix://{path}"}).reason
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert "nobody listens at" in _daemon.probe({"DOCKER_HOST": f"unix://{path}"}).reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not")
def test_permission_denied_says_how_to_get_it(tmp_path: Path) -> None:
    with daemon(tmp_path, {}) as where:
        os.seteuid(65534)
        try:
            docker = _daemon.probe({"DOCKER_HOST": where})
        finally:
            os.seteuid(0)
    assert "permission denied" in docker.reason
    assert "usermod -aG docker" in docker.reason


def test_a_daemon_that_hangs_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_daemon, "_SECONDS", 0.05)
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        docker = _daemon.probe({"DOCKER_HOST": f"unix://{path}"})
    assert "no answer in 0.05 seconds" in docker.reason


def test_something_else_on_the_socket(tmp_path: Path) -> None:
    with daemon(tmp_path, {}, {"hello": "world"}) as where:
        assert "no Docker Engine" in _daemon.probe({"DOCKER_HOST": where}).reason


def test_a_daemon_elsewhere_cannot_see_our_directories() -> None:
    assert "local socket" in _daemon.probe({"DOCKER_HOST": "ssh://somewhere"}).reason


def test_over_tcp() -> None:
    assert "nobody listens at tcp://127.0.0.1:1" in _daemon.probe({"DOCKER_HOST": "tcp://127.0.0.1:1"}).reason


def test_a_daemon_that_goes_away_is_an_engine_error(tmp_path: Path) -> None:
    with daemon(tmp_path, {}) as where:
        docker = _daemon.probe({"DOCKER_HOST": where})
    with pytest.raises(
        EngineError, match=r"Docker Engine 24\.0\.7 was asked for image x: there is no socket"
    ):
        docker.image("x")


def test_the_docker_commands_context(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"rootless").hexdigest()
    meta = tmp_path / "contexts/meta" / digest / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Name": "rootless", "Endpoints": {"docker": {"Host": "unix:///run/x.sock"}}}))
    environ = {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
    assert _daemon.address({**environ, "DOCKER_CONTEXT": "rootless"}) == "unix:///run/x.sock"
    (tmp_path / "config.json").write_text('{"currentContext": "rootless"}')
    assert _daemon.address(environ) == "unix:///run/x.sock"
    assert _daemon.address({**environ, "DOCKER_HOST": "unix:///y"}) == "unix:///y"
    (tmp_path / "config.json").write_text('{"currentContext": "default"}')
    assert _daemon.address({**environ, "XDG_RUNTIME_DIR": str(tmp_path)}).startswith("unix:///")


@pytest.mark.docker
def test_the_daemon_of_this_machine(docker_image: str) -> None:
    import docker

    client = docker.from_env()
    try:
        version, known = client.version()["Version"], client.images.get(docker_image)
    finally:
        client.close()
    found = _daemon.probe()
    assert found.version == version
    described = found.image(docker_image)
    assert described is not None
    assert (described.id, described.size_bytes) == (known.id, known.attrs["Size"])
    assert dict(described.labels) == known.labels
    assert found.image("harness-no-such-image:never") is None

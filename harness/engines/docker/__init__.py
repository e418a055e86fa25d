"""The fidelity engine: one container per host, on a network of the job's own.

Works with Docker Engine 20.10 or newer and with Podman's Docker API. Everything that it makes carries
labels, so that whoever comes after a crash finds it by the job's name: containers, network, volumes, and
the directories whose files must be given back to the user.
"""

from __future__ import annotations

from harness.engines.docker._engine import DockerEngine

__all__ = ["DockerEngine"]

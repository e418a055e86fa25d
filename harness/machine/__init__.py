"""What this box has: cores, memory, GPUs, Docker or Podman, user namespaces, disk, network, Python."""

from __future__ import annotations

from harness.machine._checks import Check, checks
from harness.machine._daemon import Docker, Image
from harness.machine._machine import Machine, Probe
from harness.machine._namespaces import Sandbox, sandbox
from harness.machine._python import Python

__all__ = ["Check", "Docker", "Image", "Machine", "Probe", "Python", "Sandbox", "checks", "sandbox"]

"""What this box has: cores, memory, GPUs, Docker or Podman, user namespaces, disk, network, Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.machine._checks import Check, checks
    from harness.machine._daemon import Docker, Image
    from harness.machine._limits import available_memory
    from harness.machine._machine import Machine, Probe
    from harness.machine._namespaces import Sandbox, sandbox
    from harness.machine._python import Python
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_checks": ("Check", "checks"),
            "_daemon": ("Docker", "Image"),
            "_limits": ("available_memory",),
            "_machine": ("Machine", "Probe"),
            "_namespaces": ("Sandbox", "sandbox"),
            "_python": ("Python",),
        },
    )

__all__ = [
    "Check",
    "Docker",
    "Image",
    "Machine",
    "Probe",
    "Python",
    "Sandbox",
    "available_memory",
    "checks",
    "sandbox",
]

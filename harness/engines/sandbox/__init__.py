"""The sandbox engine: a host is processes in namespaces, with a real /opt/ml, as any user, in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.engines.sandbox._engine import SandboxEngine
    from harness.engines.sandbox._host import SandboxHost
    from harness.engines.sandbox._mode import Mode, sandbox_mode
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_engine": ("SandboxEngine",),
            "_host": ("SandboxHost",),
            "_mode": ("Mode", "sandbox_mode"),
        },
    )

__all__ = ["Mode", "SandboxEngine", "SandboxHost", "sandbox_mode"]

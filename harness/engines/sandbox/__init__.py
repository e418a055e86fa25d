"""The sandbox engine: a host is processes in namespaces, with a real /opt/ml, as any user, in milliseconds."""

from __future__ import annotations

from harness.engines.sandbox._engine import SandboxEngine
from harness.engines.sandbox._host import SandboxHost
from harness.engines.sandbox._mode import Mode, sandbox_mode

__all__ = ["Mode", "SandboxEngine", "SandboxHost", "sandbox_mode"]

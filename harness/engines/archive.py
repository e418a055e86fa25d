"""Trees of files as tar streams, on either side of a host's border; see `harness.engines.enter`."""

from __future__ import annotations

from harness.engines.sandbox.inner.archive import RefusedError, pack, unpack

__all__ = ["RefusedError", "pack", "unpack"]

"""Slowing data down to what S3 gives in the cloud: `[local] s3_latency_ms` and `s3_throughput_mbps`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from harness.model import LocalOptions

__all__ = ["PARALLEL", "Pace", "download_seconds", "listing_seconds"]

PARALLEL: Final = 16
"""Objects that a download of File mode has under way at once; nobody outside of AWS knows the number."""
_LISTED: Final = 1000
"""Objects in one answer to ListObjectsV2."""
_STEP: Final = 0.02
"""Seconds between two pieces of a stream that is slowed down."""
_BURST: Final = 0.1
"""Seconds whose bytes may come at once, after a pause."""


class Pace:
    """What one host gets of S3: all its streams share the throughput. Safe to use from several threads."""

    def __init__(self, local: LocalOptions, sleep: Callable[[float], None] = time.sleep) -> None:
        self._latency = local.s3_latency_ms / 1000
        self._rate = local.s3_throughput_mbps * 1e6 / 8
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def piece(self) -> int | None:
        """Bytes to send at a time; None: as many as you like."""
        return max(1, int(self._rate * _STEP)) if self._rate else None

    def first_byte(self) -> None:
        """Wait as long as S3 takes to answer one request."""
        if self._latency:
            self._sleep(self._latency)

    def take(self, count: int) -> None:
        """Wait until `count` bytes may be on their way."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._free_at, now - _BURST)
            self._free_at = start + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)


def download_seconds(local: LocalOptions, objects: int, size: int) -> float:
    """How long the download of that much to one host takes at the pace that `local` gives."""
    latency = local.s3_latency_ms / 1000 * -(-objects // PARALLEL)
    return latency + (size * 8 / (local.s3_throughput_mbps * 1e6) if local.s3_throughput_mbps else 0)


def listing_seconds(local: LocalOptions, objects: int) -> float:
    """How long it takes to learn which objects there are: a request for each thousand (contract: E10)."""
    return local.s3_latency_ms / 1000 * -(-objects // _LISTED)

"""Quantities and texts of others, in words for people."""

from __future__ import annotations

import re
import time

__all__ = ["ago", "clock", "duration", "harmless", "number", "size"]


def harmless(text: str) -> str:
    """`text` with its control characters as the log shows them (contract: I4): a script's words and file
    names must not move the cursor, change colours or set the window's title."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"#{ord(found[0]):03o}", text)


def clock(seconds: float) -> str:
    """Epoch seconds as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def ago(seconds: float) -> str:
    """How long ago that was, roughly."""
    passed = max(0.0, time.time() - seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def duration(seconds: float) -> str:
    """`0.3 s`, `42 s`, `3:07 min`, `5:02:11 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def size(count: float) -> str:
    """Bytes in decimal units: `970 B`, `43.1 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def number(value: float) -> str:
    """A metric's value, six digits of it."""
    return f"{value:.6g}"

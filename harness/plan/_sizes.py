"""Sizes as people write and read them."""

from __future__ import annotations

import re
from typing import Final

from harness.errors import SpecError

__all__ = ["parse", "show"]

_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse(text: str, what: str) -> int:
    """Bytes: "64m" is 64 MiB, as for docker; `what` names the option in the message.

    Raises:
        SpecError: it is no size, or nought, or more than a machine can count.
    """
    found = _FORM.fullmatch(text.strip())
    size = 0 if found is None else int(float(found[1]) * 1024 ** _POWERS[found[2].lower()])
    if not 0 < size < 1 << 63:
        raise SpecError(
            f'{what} is {text!r}, which is no size: write bytes, or something such as "64m" or "2g"'
        )
    return size


def show(size: float) -> str:
    """In the largest binary unit that leaves at least 1, with one decimal below 100: 512 MiB, 1.1 TiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size /= 1024
        power += 1
    digits = 0 if power == 0 or size >= 100 or size == int(size) else 1
    return f"{size:,.{digits}f} {units[power]}"

"""Answers in pages: the token is the number of the first item of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from harness.cloud._errors import ServiceError

__all__ = ["page"]

Item = TypeVar("Item")


def page(
    items: Sequence[Item], size: int, token: Any, name: str = "NextToken"
) -> tuple[list[Item], dict[str, str]]:
    """One page of `items`, and the member with the token of the next, if there is one."""
    if token is not None and not str(token).isdecimal():
        raise ServiceError("ValidationException", f"{token!r} is no token that this operation gave out")
    start = int(token or 0)
    some = list(items[start : start + size])
    return some, {name: str(start + size)} if start + size < len(items) else {}

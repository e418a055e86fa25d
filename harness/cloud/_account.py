"""The account that a client of the local cloud is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.home import Home
from harness.model import Spec

__all__ = ["Account"]


@dataclass(frozen=True, kw_only=True)
class Account:
    """One account in one region; its jobs and objects are those of a state directory."""

    home: Home
    region: str = Spec.region
    number: str = Spec.account
    local: Mapping[str, Any] = field(default_factory=dict)
    """The `[local]` table of every job that is created through it."""

    @property
    def role(self) -> str:
        """Name of the role that its callers have."""
        return "SageMakerRole"

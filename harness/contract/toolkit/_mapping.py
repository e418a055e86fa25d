"""Hyperparameters and properties as environment variables and as command-line words."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["to_arguments", "to_variables"]


def to_variables(values: Mapping[str, Any]) -> dict[str, str]:
    """`SM_` + upper-cased key → text; JSON for all that isn't text (contract: D15, D16)."""
    return {f"SM_{key.upper()}": _text(value) for key, value in values.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def to_arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    """`--key value …`, keys sorted, a value for each of them (contract: D27, D28)."""
    words = []
    for key in sorted(hyperparameters):
        words.append(f"--{key}" if len(key) > 1 else f"-{key}" if key else "")
        words.append(_word(hyperparameters[key]))
    return words


def _word(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    return str(value)

"""Warm hosts: kept from job to job, with the script's heavy modules imported. `WarmEngine` wraps another engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.engines.warm._engine import Expectation, WarmEngine, clean_up
    from harness.engines.warm._match import code_version
    from harness.engines.warm._place import Place, places
    from harness.engines.warm._words import KILLED, forget_last_words, leave_last_words, take_last_words
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_engine": ("Expectation", "WarmEngine", "clean_up"),
            "_match": ("code_version",),
            "_place": ("Place", "places"),
            "_words": ("KILLED", "forget_last_words", "leave_last_words", "take_last_words"),
        },
    )

__all__ = [
    "KILLED",
    "Expectation",
    "Place",
    "WarmEngine",
    "clean_up",
    "code_version",
    "forget_last_words",
    "leave_last_words",
    "places",
    "take_last_words",
]

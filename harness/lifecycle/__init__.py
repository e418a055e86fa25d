"""The life of a job: its supervisor, its state machine, what it shares with other jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.lifecycle._clean import LEFT, clean_left
    from harness.lifecycle._compare import base_name
    from harness.lifecycle._describe import describe
    from harness.lifecycle._entries import HostEntry, host_entries
    from harness.lifecycle._kept import kept_host
    from harness.lifecycle._owner import Taker, owned, recover, spawn
    from harness.lifecycle._pause import stands
    from harness.lifecycle._post_mortem import Bundle, compose, read_bundle, source_digest
    from harness.lifecycle._supervisor import supervise
    from harness.lifecycle._warm import (
        Keepers,
        clean_dead,
        end_idle,
        recover_warm,
        warm_sets,
    )
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_clean": ("LEFT", "clean_left"),
            "_compare": ("base_name",),
            "_describe": ("describe",),
            "_entries": ("HostEntry", "host_entries"),
            "_kept": ("kept_host",),
            "_owner": ("Taker", "owned", "recover", "spawn"),
            "_post_mortem": ("Bundle", "compose", "read_bundle", "source_digest"),
            "_pause": ("stands",),
            "_supervisor": ("supervise",),
            "_warm": (
                "Keepers",
                "clean_dead",
                "end_idle",
                "recover_warm",
                "warm_sets",
            ),
        },
    )

__all__ = [
    "LEFT",
    "Bundle",
    "HostEntry",
    "Keepers",
    "Taker",
    "base_name",
    "clean_dead",
    "clean_left",
    "compose",
    "describe",
    "end_idle",
    "host_entries",
    "kept_host",
    "owned",
    "read_bundle",
    "recover",
    "recover_warm",
    "source_digest",
    "spawn",
    "stands",
    "supervise",
    "warm_sets",
]

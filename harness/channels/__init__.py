"""Data sources × input modes: what each host finds at /opt/ml/input/data, and the script's source."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.channels._feeding import Feeder
    from harness.channels._remote import RemoteObject, RemoteS3, open_remote
    from harness.channels._snapshots import collect
    from harness.channels._sources import Extracted, Materialised, extract_source, materialise_source
    from harness.channels._stage import StagedChannel, stage, used
else:
    from harness._doors import closed

    __getattr__ = closed(
        __name__,
        {
            "_feeding": ("Feeder",),
            "_remote": ("RemoteObject", "RemoteS3", "open_remote"),
            "_snapshots": ("collect",),
            "_sources": ("Extracted", "Materialised", "extract_source", "materialise_source"),
            "_stage": ("StagedChannel", "stage", "used"),
        },
    )

__all__ = [
    "Extracted",
    "Feeder",
    "Materialised",
    "RemoteObject",
    "RemoteS3",
    "StagedChannel",
    "collect",
    "extract_source",
    "materialise_source",
    "open_remote",
    "stage",
    "used",
]

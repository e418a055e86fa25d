"""Data sources × input modes: what each host finds at /opt/ml/input/data, and the script's source."""

from harness.channels._remote import RemoteObject, RemoteS3, open_remote
from harness.channels._snapshots import collect
from harness.channels._sources import Extracted, Materialised, extract_source, materialise_source
from harness.channels._stage import StagedChannel, stage, used

__all__ = [
    "Extracted",
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

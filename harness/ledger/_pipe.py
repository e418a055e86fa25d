"""Input modes and sources that this version hasn't got, said once for all the fields that ask for them."""

from __future__ import annotations

from typing import Final

from harness.ledger._entry import Entry, cloud_only

__all__ = ["AUGMENTED", "PIPE"]

PIPE: Final[Entry] = cloud_only(
    "Pipe mode, with its FIFOs, is not available in this version: use File or FastFile here.", impossible=True
)
AUGMENTED: Final[Entry] = cloud_only(
    "An augmented manifest needs Pipe mode, which is not available in this version.", impossible=True
)

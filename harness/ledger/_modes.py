"""Input modes, said once for all the fields that ask for them."""

from __future__ import annotations

from typing import Final

from harness.ledger._entry import Entry, emulated, honoured

__all__ = ["AUGMENTED", "FAST_FILE", "PIPE"]

FAST_FILE: Final[Entry] = emulated(
    "FastFile: a read-only view of the files where they lie; those of Amazon S3 are downloaded before the start."
)
PIPE: Final[Entry] = honoured("Pipe: one FIFO after the other, for each epoch of each channel.")
AUGMENTED: Final[Entry] = honoured(
    "AugmentedManifestFile: the attributes of each line go into the FIFO, objects in the place of their -ref."
)

"""What leaves the hosts: model.tar.gz, output.tar.gz, the failure file, checkpoints both ways."""

from harness.outputs._checkpoints import CheckpointSync, Synced
from harness.outputs._failure import read_failure
from harness.outputs._pack import Packed, copy_uncompressed, pack

__all__ = ["CheckpointSync", "Packed", "Synced", "copy_uncompressed", "pack", "read_failure"]

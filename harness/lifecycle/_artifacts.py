"""What leaves the hosts: checkpoints while they run, archives when they have ended."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.lifecycle._prepare import Prepared
from harness.lifecycle._strict import refuse_clashes, see_that_outputs_fit
from harness.objects import ObjectStore

if TYPE_CHECKING:
    from harness.lifecycle._supervisor import Supervisor
    from harness.outputs import CheckpointSync

__all__ = ["Artifacts", "Checkpoints"]


class Checkpoints:
    """The checkpoint directory ↔ CheckpointConfig.S3Uri; does nothing without CheckpointConfig."""

    def __init__(self, supervisor: Supervisor, prepared: Prepared, objects: ObjectStore) -> None:
        self._job = supervisor
        self._sync: CheckpointSync | None = None
        if (config := supervisor.request.get("CheckpointConfig")) is not None:
            from harness.outputs import CheckpointSync

            self._sync = CheckpointSync(
                objects,
                config["S3Uri"],
                prepared.checkpoints,
                local=supervisor.spec.local,
                region=supervisor.spec.region,
            )
        self._interval = supervisor.spec.local.checkpoint_interval
        self._next = time.monotonic() + self._interval
        self._running: threading.Thread | None = None
        self._problem: str | None = None

    def restore(self) -> None:
        """The objects under S3Uri into every host's directory, before it starts (contract: F12)."""
        if self._sync is not None:
            restored = self._sync.restore(self._job.progress)
            self._job.store.merge_result(self._job.name, checkpoints_restored=restored)
            self._tell()

    def tick(self) -> None:
        """Start a sync when the interval has passed; it runs beside the job (contract: F14, F15)."""
        if self._sync is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval
        if self._running is None or not self._running.is_alive():
            if self._problem is not None:
                self._job.note(self._problem)
            self._running = threading.Thread(target=self._beside, name="checkpoints", daemon=True)
            self._running.start()

    def _beside(self) -> None:
        assert self._sync is not None
        try:
            self._sync.sync()
        except HarnessError as error:
            # The next sync, or the final one, tries again; only that one can fail the upload.
            self._problem = f"a checkpoint sync failed: {error}"

    def settle(self) -> None:
        """Wait for a sync that runs beside the job: the hosts have ended."""
        if self._running is not None:
            self._running.join()

    def finish(self) -> None:
        """The last sync."""
        if self._sync is not None:
            self._sync.sync(final=True)
            self._tell()

    def _tell(self) -> None:
        assert self._sync is not None
        for warning in self._sync.warnings:
            self._job.note(warning)


class Artifacts:
    """The outputs of one attempt."""

    def __init__(self, supervisor: Supervisor, prepared: Prepared) -> None:
        self._job = supervisor
        self._prepared = prepared
        self._objects = ObjectStore(supervisor.home.s3)
        self.checkpoints = Checkpoints(supervisor, prepared, self._objects)

    def upload(self) -> None:
        """Checkpoints, model.tar.gz, output.tar.gz (contract: F1–F9), into the local object store.

        Raises ClientError when the disk is full (contract: F22).
        """
        from harness.outputs import copy_uncompressed, pack  # not needed before the script has ended

        self.checkpoints.finish()
        config = self._job.request["OutputDataConfig"]
        base = f"{config['S3OutputPath'].rstrip('/')}/{self._job.name}/output"
        compressed = config.get("CompressionType", "GZIP") != "NONE"
        result: dict[str, Any] = {}
        clashes: list[str] = []
        see_that_outputs_fit(self._job, self._prepared.trees)
        for kind, archive, inside in (
            ("model", "model.tar.gz", "model"),
            ("output", "output.tar.gz", "output/data"),
        ):
            trees = {host: tree / inside for host, tree in self._prepared.trees.items()}
            uri = f"{base}/{archive}" if compressed else f"{base}/{'model' if kind == 'model' else 'data'}/"
            path = self._objects.path(uri)
            put = pack if compressed else copy_uncompressed
            packed = put(trees, path, progress=self._job.progress)
            if packed is None:
                continue
            result[kind] = {
                "uri": uri,
                "path": str(path),
                "files": packed.files,
                "bytes": packed.size,
            }
            clashes += [f"{inside}/{clash}" for clash in packed.clashes]
            for clash in packed.clashes:
                self._job.note(
                    f"{inside}/{clash} differs between hosts: the archive holds that of the first (contract F4)"
                )
            for warning in packed.warnings:
                self._job.note(warning)
        self._job.store.merge_result(self._job.name, artifacts=result)
        refuse_clashes(self._job, clashes)

"""The process that feeds a job's Pipe channels, as its supervisor sees it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from harness.channels._feeder import tell
from harness.channels._fifo import fifo_name, make_fifo
from harness.channels._stage import StagedChannel
from harness.channels._streams import Stream
from harness.errors import ClientError, InternalServerError, JobError
from harness.model import LocalOptions, Upload
from harness.objects import ObjectStore

__all__ = ["Feeder"]

_PATIENCE: Final = 10.0
_PACKAGES: Final = str(Path(__file__).parents[2])
"""Where this package is: it may be used without having been installed."""


class Feeder:
    """Feeds the FIFOs of all hosts of one attempt, in a process of its own that dies with this one.

    The first FIFOs are there when it is made, so before the hosts start. `close` it when they have ended.
    """

    def __init__(
        self,
        job_name: str,
        channels: Mapping[str, Sequence[StagedChannel]],
        *,
        trees: Mapping[str, Path],
        objects: ObjectStore,
        uploads: Sequence[Upload],
        local: LocalOptions,
        region: str | None,
    ) -> None:
        """`channels`: what `stage` gave; `trees`: host → its /opt/ml.

        Raises:
            InternalServerError: the process can't be started, or the FIFOs can't be made.
        """
        self._streams: dict[str, Stream] = {}
        for shares in channels.values():
            self._streams |= {one.name: one.stream for one in shares if one.stream is not None}
        self._directories: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._problem: JobError | None = None
        self._told = b""
        if not self._streams:
            return
        try:
            self._make(channels, trees)
            self._start(job_name, objects=objects.root, uploads=tuple(uploads), local=local, region=region)
        except OSError as error:
            self.close()
            raise InternalServerError(f"the FIFOs of the Pipe channels can't be fed: {error}") from error

    def problem(self) -> JobError | None:
        """Why the data that the hosts read isn't what they should get; None while all is well."""
        process = self._process
        if process is None or self._problem is not None:
            return self._problem
        assert process.stdout is not None
        while self._problem is None and select.select([process.stdout], [], [], 0)[0]:
            data = os.read(process.stdout.fileno(), 1 << 16)
            self._told += data
            line, end, self._told = self._told.partition(b"\n")
            if end:
                self._problem = _explained(json.loads(line))
            elif not data:
                self._problem = _ended(process.wait(_PATIENCE))
            else:
                self._told = line
        return self._problem

    def close(self) -> None:
        """End the process, and remove the FIFOs that nobody will feed."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(OSError):
                process.stdin.close()  # it ends with that
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        directories, self._directories = self._directories, {}
        for directory in directories.values():
            with contextlib.suppress(OSError):
                self._remove(directory)
            os.close(directory)

    # ------------------------------------------------------------------------- parts

    def _make(self, channels: Mapping[str, Sequence[StagedChannel]], trees: Mapping[str, Path]) -> None:
        """The FIFOs of the first epoch, and what the process finds the others by.

        By descriptors, since the tree of a warm host moves.
        """
        for host, shares in channels.items():
            if any(one.stream is not None for one in shares):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                self._directories[host] = os.open(trees[host] / "input/data", flags)
            for one in shares:
                if one.stream is not None:
                    make_fifo(self._directories[host], fifo_name(one.name, 0))  # contract: E11

    def _start(
        self,
        job_name: str,
        *,
        objects: Path,
        uploads: tuple[Upload, ...],
        local: LocalOptions,
        region: str | None,
    ) -> None:
        words = tell(
            list(self._streams.values()),
            self._directories,
            parent=os.getpid(),
            objects=objects,
            uploads=uploads,
            local=local,
            region=region,
        )
        with tempfile.TemporaryFile() as file:  # a pipe would make us wait for its interpreter to start
            file.write(words)
            file.seek(0)
            number = file.fileno()
            # A new interpreter: this one has threads, and a store that is open.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.channels", str(number), job_name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(number, *self._directories.values()),
                cwd="/",
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, (_PACKAGES, os.environ.get("PYTHONPATH"))))},
                start_new_session=True,  # Ctrl-C is for the command line
            )

    def _remove(self, directory: int) -> None:
        with os.scandir(directory) as entries:
            names = [
                entry.name for entry in entries if stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode)
            ]
        for name in names:
            if name.rpartition("_")[0] in self._streams:
                os.unlink(name, dir_fd=directory)


def _ended(code: int) -> InternalServerError:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
    return InternalServerError(
        f"the process that fed the Pipe channels {how}, so what the script read is not all; run the job again"
    )


def _explained(told: Mapping[str, str]) -> JobError:
    if told.get("ours"):
        return InternalServerError(
            f"the Pipe channel {told['channel']} of {told['host']} can't be fed: {told['error']}"
        )
    return ClientError(told["error"])

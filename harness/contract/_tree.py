"""/opt/ml of one host, on disk (contract: group B)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from harness._values import dataclass
from harness.contract._config import TENSORBOARD, TENSORS, config_files, encode
from harness.contract._environment import metrics_directory
from harness.contract._hosts import HostView
from harness.contract._paths import CODE, ML, PROGRAM, SUBMIT_DIRECTORY, checkpoint_path
from harness.errors import ClientError
from harness.model import JsonObject

__all__ = ["ChannelView", "relax_tree", "write_tree"]

_DIRECTORY: Final = 0o755
_FILE: Final = 0o644
_CONFIG: Final = 0o644
"""A *directory* without x: only root's capabilities get at the files in it (contract: B5)."""


@dataclass(frozen=True, kw_only=True)
class ChannelView:
    """A channel as the host is told of it (contract: C17–C20)."""

    name: str
    mode: str
    """The effective TrainingInputMode: File, FastFile or Pipe."""
    content_type: str | None = None
    record_wrapper: str | None = None
    distribution: str | None = None
    """S3DataDistributionType; None for file systems, told as FullyReplicated."""
    manifest: bytes | None = None
    """Content of the file `<channel>-manifest` beside the channel; None for no such file (contract: B7)."""


def write_tree(
    ml: Path,
    *,
    request: JsonObject,
    job_name: str,
    host: HostView,
    channels: Sequence[ChannelView],
    clutter: bool = False,
) -> None:
    """Make what `host` sees at /opt/ml when it starts, in the directory `ml` (contract: B1–B8, B18–B20).

    `ml` may hold `code` and restored checkpoints already. Channels get an empty directory, to mount the
    data on or to copy it into. `clutter` adds the platform's undocumented files (contract: C29). The
    directory input/config ends with mode 0644, which locks out everybody but root: `relax_tree` gives
    it back. Raises ClientError for a channel that can't be a directory.
    """
    for path in _directories(request):
        _make(ml, path)
    data = ml / "input/data"
    names = {channel.name for channel in channels}
    for channel in channels:
        if channel.name in (".", ".."):  # AWS's pattern lets them pass
            raise ClientError(
                f"the channel {channel.name!r} of {job_name} can't be a directory below "
                "/opt/ml/input/data: give it another ChannelName"
            )
        if channel.mode != "Pipe":
            _make(ml, ML / "input/data" / channel.name)
        beside = f"{channel.name}-manifest"
        if channel.manifest is not None and beside not in names:
            _write(data / beside, channel.manifest)  # contract: B7
    config = ml / "input/config"
    for name, content in config_files(request, host, channels, clutter=clutter).items():
        _write(config / name, encode(content))
    config.chmod(_CONFIG)


def relax_tree(ml: Path) -> None:
    """Let the user into input/config again, once no host runs on this tree any more."""
    config = ml / "input/config"
    if config.is_dir():
        config.chmod(_DIRECTORY)


def _directories(request: JsonObject) -> Iterator[PurePosixPath]:
    """Every directory that is there at the start, channels aside; only those below /opt/ml."""
    yield from (ML / "input/config", ML / "input/data", ML / "model", ML / "output/data")  # contract: B1
    hyperparameters = request.get("HyperParameters") or {}
    if SUBMIT_DIRECTORY in hyperparameters or PROGRAM in hyperparameters:
        yield CODE
    candidates: list[PurePosixPath | None] = [checkpoint_path(request), metrics_directory(request)]
    if (hook := request.get("DebugHookConfig")) is not None:  # contract: B18
        candidates.append(PurePosixPath(hook.get("LocalPath") or TENSORS))
    if (board := request.get("TensorBoardOutputConfig")) is not None:
        candidates.append(PurePosixPath(board.get("LocalPath") or TENSORBOARD))
    profiler = request.get("ProfilerConfig")
    if profiler is not None and not profiler.get("DisableProfiler", False):  # contract: B19
        candidates.append(ML / "output/profiler")
    for path in candidates:
        if path is not None and path.is_relative_to(ML) and ".." not in path.parts:
            yield path


def _make(ml: Path, path: PurePosixPath) -> None:
    """A directory of the tree, its parents too, all 0755 whatever the umask (contract: B6)."""
    current = ml
    for part in path.relative_to(ML).parts:
        current /= part
        current.mkdir(exist_ok=True)
        current.chmod(_DIRECTORY)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(_FILE)

"""What an engine can do more, if its hosts can be kept for several jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from harness._values import dataclass
from harness.engines.base import Engine, Host
from harness.model import HostLaunch

__all__ = ["Keepable", "KeepableHost", "Keeping"]


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What an engine says of a host that is to be kept."""

    refusal: str | None
    """Why such a host can't be kept, as the end of "cold: …"; None when it can."""
    facts: Mapping[str, str]
    """What the engine makes of this machine and of the user's environment, which a running host keeps."""
    command: tuple[str, ...]
    """The whole command line of process 1, with the image's own words in it."""
    python: str
    """The interpreter that runs `command`'s toolkit, by its name or path in the host."""


class KeepableHost(Host, Protocol):
    """A host of such an engine."""

    def watch_oom(self) -> Callable[[int], bool]:
        """Ask the result, with an exit code, whether memory ran out in the host since this call."""
        ...


@runtime_checkable
class Keepable(Engine, Protocol):
    """An engine whose hosts can be kept."""

    def keeping(self, launch: HostLaunch) -> Keeping:
        """Raises EngineError when the image isn't there."""
        ...

    def settle(self, job_name: str) -> None:
        """Give what the hosts wrote to the user, while they run. Raises EngineError."""
        ...

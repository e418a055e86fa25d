"""A new host on what a host of an ended job left: for a look around in it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Final

from harness.engines import open_engine
from harness.errors import EngineError, UsageError
from harness.home import Home
from harness.lifecycle._clean import LEFT, clean
from harness.lifecycle._entries import HostEntry
from harness.lifecycle._owner import own
from harness.store import Store

__all__ = ["kept_host"]

_SLEEP: Final = ("sleep", "2147483647")
"""What process 1 does instead of the script; any image with a shell has it."""
_PATIENCE: Final = 2.0
"""Seconds that the job's supervisor gets to end after its job."""


@contextlib.contextmanager
def kept_host(home: Home, name: str, kept: HostEntry) -> Iterator[HostEntry]:
    """Start the host again as it was launched, but for its command; remove it afterwards.

    /opt/ml and /tmp are the very directories that the job left: what is changed in them stays. Channels are
    mounted anew. Meanwhile this process owns the job, as its supervisor did, and the job is on record as one
    of which something may be left: should this process be killed, `harness gc` removes the host.

    Raises:
        UsageError: another process has the job's hosts, or just removes them.
        EngineError, DiskError: the host can't be started.
    """
    with _owned(home, name), Store(home) as store:
        engine = open_engine(store.summary(name).engine)
        store.claim(name, {LEFT: [name]})
        try:
            launch = dataclasses.replace(kept.launch, entrypoint=_SLEEP[:1], command=_SLEEP[1:])
            engine.prepare((launch,))
            host = engine.start(launch)
            if (ended := host.wait(0)) is not None:
                raise EngineError(
                    f"{kept.host} of {name} can't be started again: "
                    f"{ended.error or f'its process 1 ended with {ended.code}'}"
                )
            yield HostEntry(host=kept.host, entry=host.entry, launch=kept.launch)
        finally:
            clean(home, name, engine, completed=False)
            store.release(name)


@contextlib.contextmanager
def _owned(home: Home, name: str) -> Iterator[None]:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with own(home, name) as mine:
            if mine:
                yield
                return
        if time.monotonic() > deadline:
            raise UsageError(
                f"another process holds what is left of {name}, as a shell with --post-mortem does: leave that first"
            )

"""What is left of a job that has ended, and those who remove it: its supervisor, else `harness gc`."""

from __future__ import annotations

from typing import Final

from harness import contract
from harness.engines import Engine, open_engine, remove_tree
from harness.errors import HarnessError
from harness.home import Home
from harness.lifecycle._owner import own
from harness.store import Store

__all__ = ["LEFT", "clean", "clean_left"]

LEFT: Final = "left"
"""The kind of claim that an ended job holds as long as something of it couldn't be removed."""


def clean(home: Home, name: str, engine: Engine, *, completed: bool) -> None:
    """Remove what the engine made for the job; of one that completed its hosts' directories as well.

    Raises:
        HarnessError, OSError: something can't be removed.
    """
    engine.close(name)
    hosts = home.job(name) / "hosts"
    for tree in hosts.glob("*/ml"):
        contract.relax_tree(tree)
    if completed:
        remove_tree(hosts)


def clean_left(home: Home, store: Store) -> list[str]:
    """Try once more where the end of a job couldn't; one sentence for each that still can't be cleaned up."""
    problems = []
    for name in sorted(set(store.claims(LEFT).values())):
        with own(home, name) as mine:
            if not mine:
                continue  # its supervisor is just about it
            job = store.summary(name)
            try:
                clean(home, name, open_engine(job.engine), completed=job.status == "Completed")
            except (HarnessError, OSError) as error:
                problems.append(f"what is left of {name} can't be removed: {error}")
            else:
                store.release(name)
    return problems

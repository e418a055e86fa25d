"""What concurrent jobs share of this machine: GPUs, one job each, host slots, and rendezvous ports.

A claim is a row in the store with the item as its key, so two jobs can't hold one GPU however they race.
Claims go with the transaction that ends the job; a job whose supervisor died keeps its claims until a new
supervisor has ended it, because its containers may still be using them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from typing import Final

from harness.model import Gpu
from harness.store import Store

__all__ = ["MASTER_PORT", "claim_port", "slots", "try_claim"]

MASTER_PORT: Final = 7777
"""What AWS's toolkit says (contract: D22)."""


def slots() -> int:
    """How many hosts run at a time on this machine: one a core, and two at least."""
    return max(2, os.cpu_count() or 1)


def try_claim(
    store: Store,
    name: str,
    *,
    hosts: int,
    gpus: int,
    machine: tuple[Gpu, ...],
    preferred: Collection[str] = (),
) -> tuple[Gpu, ...] | None:
    """Claim `hosts` slots and `gpus` GPUs for the job; the GPUs, or None when it must wait.

    First come, first served: a job waits behind every older one that is still waiting, so a big job is
    not overtaken for ever by small ones. `preferred`: the GPUs, by UUID, to take rather than others.
    """
    with store.transaction():
        mine = store.summary(name)
        held = store.claims("gpu")
        if name in held.values() or name in store.claims("slot").values():
            return tuple(gpu for gpu in machine if held.get(gpu.uuid) == name)
        for other in store.unfinished():
            job = store.summary(other)
            if (job.created, other) >= (mine.created, name):
                break
            if job.secondary_status == "Pending":
                return None
        taken_slots = store.claims("slot")
        free_slots = [str(n) for n in range(slots()) if str(n) not in taken_slots]
        wanted = min(hosts, slots())
        free_gpus = [gpu for gpu in machine if gpu.uuid not in held]
        if len(free_slots) < wanted or len(free_gpus) < gpus:
            return None
        first = sorted(free_gpus, key=lambda gpu: gpu.uuid not in preferred)[:gpus]
        chosen = tuple(gpu for gpu in machine if gpu in first)
        store.claim(name, {"slot": free_slots[:wanted], "gpu": [gpu.uuid for gpu in chosen]})
        return chosen


def claim_port(store: Store, name: str) -> int:
    """A port for the ranks of a job to meet on, where jobs share the machine's ports: MASTER_PORT, or
    the next one that neither another job nor another program has."""
    with store.transaction():
        held = store.claims("port")
        for port in range(MASTER_PORT, MASTER_PORT + 1000):
            owner = held.get(str(port))
            if owner == name:
                return port
            if owner is None and _is_free(port):
                store.claim(name, {"port": [str(port)]})
                return port
    return MASTER_PORT


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True

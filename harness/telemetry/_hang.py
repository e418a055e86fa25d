"""Tells a job that hangs from one that works in silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from harness.telemetry._stacks import Stack, Stacks, awaited_worker, short_path, standstill

__all__ = ["HangDetector", "describe_hang"]

_LOOKS: Final = 3
"""Looks at the stacks that must be alike."""
_BUSY: Final = 0.1
"""Cores that a process must use to count as computing: few, for others may crowd the machine."""
_IDLE: Final = 0.02
"""Cores that all of a host's processes together may use and still count as idle, where there are no stacks."""

Place = tuple[tuple[str, int, str], ...]


class HangDetector:
    """Decides, from what it is shown, whether a job stands still.

    Nothing printed for `after` seconds makes it look: at the stacks of all ranks, several times. The job hangs
    if no stack has moved between the looks and nobody computes. A process that uses the CPU computes, unless
    it is in a collective operation, where gloo and NCCL spin, or has a GPU, for which it spins.

    `take` takes stacks; `cpu` gives the CPU seconds of each process.
    """

    def __init__(
        self,
        after: float,
        *,
        take: Callable[[], Stacks],
        cpu: Callable[[], Mapping[int, float]],
        gpus: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._after = after
        self._take = take
        self._cpu = cpu
        self._gpus = gpus
        self._clock = clock
        self._spacing = max(0.5, min(10.0, after / 6))
        self._quiet_since = clock()
        self._looks: list[Stacks] = []
        self._places: dict[int, Place] = {}
        self._spent: dict[int, float] = {}
        self._looked_at = 0.0
        self._told = False

    def moved(self) -> bool:
        """Something happened: output, a new process, a debugger's stop. Whether a hang had been told of."""
        self._quiet_since = self._clock()
        self._looks.clear()
        told, self._told = self._told, False
        return told

    @property
    def due(self) -> bool:
        """Whether it is time for a look."""
        now = self._clock()
        return (
            self._after > 0
            and not self._told
            and now - self._quiet_since >= self._after
            and (not self._looks or now - self._looked_at >= self._spacing)
        )

    def look(self) -> Stacks | None:
        """One look; the stacks when it is clear now that the job hangs. Call it when `due`."""
        stacks = self._take()
        spent = dict(self._cpu())
        passed = self._clock() - self._looked_at
        places = {stack.pid: _place(stack) for stack in stacks.stacks if stack.role in ("script", "worker")}
        same = bool(self._looks) and not self._moves(stacks, places, spent, passed)
        self._looked_at, self._places, self._spent = self._clock(), places, spent
        if not same:
            self._looks = [stacks]
            return None
        self._looks.append(stacks)
        if len(self._looks) < _LOOKS:
            return None
        self._told = True
        self._looks.clear()
        return stacks

    def _moves(
        self, stacks: Stacks, places: Mapping[int, Place], spent: Mapping[int, float], passed: float
    ) -> bool:
        if not any(places.values()):
            used = sum(spent.values()) - sum(self._spent.get(pid, 0.0) for pid in spent)
            return used / max(passed, 0.1) > _IDLE
        if places != self._places:
            return True
        for stack in stacks.stacks:
            if stack.role not in ("script", "worker") or self._gpus or stack.collective is not None:
                continue
            used = spent.get(stack.pid, 0.0) - self._spent.get(stack.pid, 0.0)
            if used / max(passed, 0.1) > _BUSY:
                return True
        return False


def _place(stack: Stack) -> Place:
    return tuple((frame.file, frame.line, frame.function) for frame in stack.frames)


def describe_hang(stacks: Stacks, quiet: float) -> str:
    """One sentence: who waits for whom, or where it stands."""
    silence = f"nothing was printed for {quiet:.0f} s"
    if (found := standstill(stacks)) is not None:
        return f"{found.sentence} ({silence} and no rank moves)"
    scripts = [stack for stack in stacks.scripts if stack.frames]
    if scripts:
        first = scripts[0]
        if (worker := awaited_worker(stacks, first)) is not None and first.own is not None:
            line = f"{short_path(first.own.file)}:{first.own.line}"
            return (
                f"a worker (process {worker.pid}) stands at {worker.where}, and the script waits for it at {line} "
                f"({silence} and nothing moves)"
            )
        inner = first.frames[0]
        of = f", in {inner.function}" if first.own is not None and inner != first.own else ""
        return f"the script stands at {first.where}{of} ({silence} and it doesn't move)"
    return f"the job seems to hang: {silence} and its processes don't work; {stacks.problem or 'there are no stacks'}"

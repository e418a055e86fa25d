"""Where every Python process of a job is right now, by py-spy, and which rank keeps the others waiting."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

from harness._values import dataclass
from harness.telemetry._secrets import hide_arguments
from harness.telemetry._traceback import Frame

__all__ = [
    "CODE",
    "Stack",
    "Stacks",
    "Standstill",
    "awaited_worker",
    "is_own_code",
    "read_stacks",
    "short_path",
    "standstill",
    "take_stacks",
]

CODE: Final = ("/opt/ml/code/", "/opt/ml/input/data/code/")
"""Where the user's own code is in a host."""
_MOST: Final = 96
_DEPTH: Final = 100
_COLLECTIVE_FILES: Final = (
    "torch/distributed/",
    "torch/nn/parallel/distributed.py",
    "smdistributed/",
    "horovod/",
)
_COLLECTIVES: Final = (
    "all_reduce",
    "all_gather",
    "all_to_all",
    "reduce_scatter",
    "broadcast",
    "barrier",
    "gather",
    "scatter",
    "reduce",
    "send",
    "recv",
    "wait",
    "allreduce",
    "allgather",
    "synchronize",
)
_CHILD: Final = "multiprocessing/process.py"
_WAITS: Final = ("/multiprocessing/", "torch/utils/data/", "concurrent/futures/")
"""Where a process is that waits for one that it started."""
_LAUNCHERS: Final = (
    "sagemaker_training/",
    "contract/toolkit/",
    "torch/distributed/run.py",
    "/run/harness/code/",
    "warm/inner/",
)
_BACKWARD: Final = ("torch/autograd/__init__.py", "torch/autograd/graph.py", "torch/_tensor.py")

Role = Literal["script", "worker", "launcher", "other"]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One process, at one moment."""

    host: str
    pid: int
    """On this machine."""
    role: Role
    """script: a process of the user's program (a rank, where there are several); worker: a child of one, such
    as a DataLoader's; launcher: torchrun, or the toolkit."""
    rank: int | None
    command: str
    frames: tuple[Frame, ...]
    """Of its main thread, innermost first."""
    threads: Mapping[str, tuple[Frame, ...]]
    """Of its other threads, by name."""
    problem: str = ""
    """Why there are no frames."""
    script: int | None = None
    """Of a worker: the process of the script that it belongs to."""

    @property
    def own(self) -> Frame | None:
        """The innermost frame in the user's own code; not one that a forked worker has from its parent."""
        for frame in self.frames:
            if is_own_code(frame.file):
                return frame
            if (
                self.role == "worker"
                and frame.file.endswith(_CHILD)
                and frame.function.endswith("_bootstrap")
            ):
                return None
        return None

    @property
    def collective(self) -> str | None:
        """The collective operation that its main thread is in, as the user's code called it."""
        found = None
        for frame in self.frames:  # towards the user's code: the outermost name is the one that was called
            if is_own_code(frame.file):
                break
            name = frame.function.rpartition(".")[2].strip("_")
            if any(part in frame.file for part in _COLLECTIVE_FILES):
                if any(name.startswith(each) or name.endswith(each) for each in _COLLECTIVES):
                    found = name
            elif name == "backward" and frame.file.endswith(_BACKWARD):
                found = "backward"
        return found

    @property
    def where(self) -> str:
        """`train.py:55 in step`: the user's line, else the innermost one."""
        frame = self.own or (self.frames[0] if self.frames else None)
        return "" if frame is None else f"{short_path(frame.file)}:{frame.line} in {frame.function}"


@dataclass(frozen=True, kw_only=True)
class Stacks:
    """All Python processes of some hosts, at one moment."""

    at: float
    reason: str
    stacks: tuple[Stack, ...]
    world_size: int | None = None
    """As the ranks' environment says."""
    problem: str = ""
    """Why there are none, one sentence."""

    @property
    def scripts(self) -> tuple[Stack, ...]:
        """The processes of the user's program, by rank."""
        found = [stack for stack in self.stacks if stack.role == "script"]
        return tuple(sorted(found, key=lambda each: (each.rank is None, each.rank or 0, each.host, each.pid)))


@dataclass(frozen=True, kw_only=True)
class Standstill:
    """Who waits for whom."""

    sentence: str
    behind: tuple[int, ...] = ()
    """Ranks that the others wait for, where ranks are known."""
    pids: tuple[int, ...] = ()
    """Their processes, where there are any."""


def is_own_code(file: str) -> bool:
    """Whether a file of a host is the user's own code."""
    return file.startswith(CODE)


def short_path(file: str) -> str:
    """The user's files below source_dir; others from their package on."""
    for place in CODE:
        if file.startswith(place):
            return file[len(place) :]
    for marker in ("/site-packages/", "/dist-packages/"):
        if marker in file:
            return file.rpartition(marker)[2]
    return file.rpartition("/")[2]


# ------------------------------------------------------------------------------------------- taking


def take_stacks(pids: Mapping[str, Sequence[int]], reason: str, *, seconds: float = 2.5) -> Stacks:
    """The stacks of the Python processes among `pids` (host → process ids of this machine).

    Each is stopped for some hundredths of a second. Nothing is raised, and nothing takes longer than about
    `seconds`: what can't be had is told in `problem`.
    """
    at = time.time()
    if not any(pids.values()):
        return Stacks(at=at, reason=reason, stacks=(), problem="the engine can't tell the hosts' process ids")
    program = find_py_spy()
    if program is None:
        why = "py-spy is not installed, so there are no stacks: pip install 'sagemaker-harness[debug]'"
        return Stacks(at=at, reason=reason, stacks=(), problem=why)
    deadline = time.monotonic() + seconds
    wanted = [(host, pid) for host, each in pids.items() for pid in each if _is_python(pid)][:_MOST]
    with ThreadPoolExecutor(max_workers=max(2, min(8, os.cpu_count() or 1))) as pool:
        dumps = list(pool.map(lambda pid: _dump(program, pid, deadline), [pid for _, pid in wanted]))
    parents = {pid: parent for _, pid in wanted if (parent := _parent(pid)) is not None}
    stacks: list[Stack] = []
    sizes: list[int] = []
    for (host, pid), (main, others, problem) in zip(wanted, dumps, strict=True):
        told = _rank_variables(pid)
        if told.get("WORLD_SIZE"):
            sizes.append(told["WORLD_SIZE"])
        stacks.append(
            Stack(
                host=host,
                pid=pid,
                role="other",
                rank=told.get("RANK"),
                command=_command(pid),
                frames=main,
                threads=others,
                problem=problem,
            )
        )
    stacks = _with_roles(stacks, parents)
    problems = {stack.problem for stack in stacks if stack.problem}
    return Stacks(
        at=at,
        reason=reason,
        stacks=tuple(stacks),
        world_size=max(sizes, default=None),
        problem="" if any(stack.frames for stack in stacks) else "; ".join(sorted(problems)),
    )


def find_py_spy() -> str | None:
    """The program, beside this Python or on the PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _dump(
    program: str, pid: int, deadline: float
) -> tuple[tuple[Frame, ...], dict[str, tuple[Frame, ...]], str]:
    left = deadline - time.monotonic()
    if left <= 0.05:
        return (), {}, "there was no time left to look at it"
    command = [program, "dump", "--json", "--pid", str(pid)]
    if (enter := _into_its_namespace(pid)) is not None:
        command = [*enter, *command]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=left, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return (), {}, "py-spy took too long"
    except OSError as error:
        return (), {}, f"py-spy can't be run: {error.strerror}"
    if done.returncode:
        return (), {}, _why_not(done.stderr.decode("utf-8", "replace"))
    try:
        threads: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        return (), {}, "py-spy said something that is no JSON"
    main: tuple[Frame, ...] = ()
    others: dict[str, tuple[Frame, ...]] = {}
    for number, thread in enumerate(threads):
        frames = tuple(
            Frame(file=each["filename"], line=int(each["line"]), function=each["name"])
            for each in thread["frames"][:_DEPTH]
        )
        name = thread.get("thread_name") or f"thread {thread.get('os_thread_id') or number}"
        if name == "MainThread" or (not main and thread.get("os_thread_id") == pid):
            main = frames
        else:
            others[name] = frames
    if not main and others:
        main = others.pop(next(reversed(others)))
    return main, others, ""


def _into_its_namespace(pid: int) -> list[str] | None:
    """An ordinary user may look into a sandbox's process only from inside its user namespace, where the
    kernel's Yama forbids what isn't a descendant."""
    if os.geteuid() == 0:
        return None
    try:
        same = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")  # noqa: PTH115
    except OSError:
        return None
    nsenter = shutil.which("nsenter")
    if same or nsenter is None:
        return None
    return [nsenter, f"--user=/proc/{pid}/ns/user", "--preserve-credentials"]


def _why_not(words: str) -> str:
    lines = [line for line in words.strip().splitlines() if line.strip()]
    first = lines[0].removeprefix("Error: ") if lines else "py-spy failed"
    if any(part in words.lower() for part in ("permission denied", "not permitted", "root")):
        return (
            "the kernel doesn't let this user look into the process (it is another user's, as in a container, or "
            "kernel.yama.ptrace_scope forbids it): run the harness as root for stacks"
        )
    return first[:300]


def _is_python(pid: int) -> bool:
    try:
        name = Path(os.readlink(f"/proc/{pid}/exe")).name  # noqa: PTH115
    except OSError:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return False
    return "python" in name.lower() or name.startswith("pypy")


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return None


def _rank_variables(pid: int) -> dict[str, int]:
    """RANK and WORLD_SIZE of its environment; nothing else of it is read into anything."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name in (b"RANK", b"WORLD_SIZE", b"OMPI_COMM_WORLD_RANK", b"OMPI_COMM_WORLD_SIZE"):
                key = "WORLD_SIZE" if name.endswith(b"SIZE") else "RANK"
                with contextlib.suppress(ValueError):
                    found.setdefault(key, int(value))
    return found


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return ""
    return " ".join(hide_arguments([word for word in words if word]))[:300]


def _with_roles(stacks: Sequence[Stack], parents: Mapping[int, int]) -> list[Stack]:
    """A process that runs the user's code, and is no child of one that does, is the script."""
    import dataclasses

    own = {stack.pid for stack in stacks if any(is_own_code(frame.file) for frame in stack.frames)}
    if not own:  # a script that is not in source_dir: baked into the image
        launchers = {stack.pid for stack in stacks if _is_launcher(stack)}
        own = {stack.pid for stack in stacks if stack.frames and stack.pid not in launchers}
    roles: list[Stack] = []
    for stack in stacks:
        above: int | None = None
        parent = parents.get(stack.pid)
        seen: set[int] = set()
        while parent is not None and parent not in seen:
            seen.add(parent)
            above = parent if parent in own else above
            parent = parents.get(parent)
        role: Role
        if above is not None:
            role = "worker"
        elif stack.pid in own:
            role = "script"
        elif _is_launcher(stack):
            role = "launcher"
        else:
            role = "other"
        rank = stack.rank if role == "script" else None
        roles.append(dataclasses.replace(stack, role=role, rank=rank, script=above))
    return roles


def _is_launcher(stack: Stack) -> bool:
    files = [frame.file for frame in stack.frames]
    return any(part in file for file in files for part in _LAUNCHERS)


# ----------------------------------------------------------------------------------------- judging


def awaited_worker(stacks: Stacks, script: Stack) -> Stack | None:
    """The worker that a process of the script waits for: one that is in the user's code, as an idle one isn't."""
    inner = script.frames[: script.frames.index(script.own)] if script.own is not None else ()
    if not any(part in frame.file for frame in inner for part in _WAITS):
        return None
    workers = (each for each in stacks.stacks if each.script == script.pid and each.own is not None)
    return next(workers, None)


def standstill(stacks: Stacks) -> Standstill | None:
    """Who is behind, if several ranks and a collective operation are in it; None when that can't be told."""
    ranks = [stack for stack in stacks.scripts if stack.frames]
    size = stacks.world_size or len(ranks)
    if size < 2 or not ranks:
        return None
    waiting = [stack for stack in ranks if stack.collective is not None]
    elsewhere = [stack for stack in ranks if stack.collective is None]
    present = {stack.rank for stack in ranks if stack.rank is not None}
    gone = [rank for rank in range(size) if rank not in present] if len(present) == len(ranks) else []
    if not waiting:
        return None
    if elsewhere and len(elsewhere) < len(ranks):
        numbers = tuple(stack.rank for stack in elsewhere if stack.rank is not None)
        place = f" (at {elsewhere[0].where})" if elsewhere[0].where else ""
        if (worker := awaited_worker(stacks, elsewhere[0])) is not None:
            place = f" (at {elsewhere[0].where}, waiting for its worker, which is at {worker.where})"
        return Standstill(
            sentence=f"{_named(elsewhere)} {'is' if len(elsewhere) == 1 else 'are'} behind{place}: "
            f"{_all_others(waiting, ranks)} in {_operations(waiting)}",
            behind=numbers,
            pids=tuple(stack.pid for stack in elsewhere),
        )
    if gone and not elsewhere and len(present) == len(ranks):
        listed = _numbers(gone)
        return Standstill(
            sentence=f"{listed} {'has' if len(gone) == 1 else 'have'} ended already: "
            f"{_named(waiting)} {'waits' if len(waiting) == 1 else 'wait'} in {_operations(waiting)}",
            behind=tuple(gone),
        )
    places = {(stack.collective, stack.where): stack for stack in waiting}
    if len(places) > 1:
        groups: dict[tuple[str | None, str], list[Stack]] = {}
        for stack in waiting:
            groups.setdefault((stack.collective, stack.where), []).append(stack)
        few = min(groups.values(), key=len)
        told = "; ".join(f"{_named(each)} in {_operations(each)}" for each in groups.values())
        return Standstill(
            sentence=f"the ranks wait in different collective operations: {told}",
            behind=tuple(each.rank for each in few if each.rank is not None) if len(groups) == 2 else (),
            pids=tuple(each.pid for each in few) if len(groups) == 2 else (),
        )
    return Standstill(sentence=f"all ranks wait in {_operations(waiting)}")


def _operations(waiting: Sequence[Stack]) -> str:
    first = waiting[0]
    place = f" at {short_path(first.own.file)}:{first.own.line}" if first.own else ""
    return f"{first.collective}{place}"


def _all_others(waiting: Sequence[Stack], ranks: Sequence[Stack]) -> str:
    if len(waiting) == 1:
        return f"{_named(waiting)} waits"
    return "all others wait" if len(waiting) > 2 or len(ranks) > 3 else f"{_named(waiting)} wait"


def _named(stacks: Iterable[Stack]) -> str:
    several = list(stacks)
    numbers = [stack.rank for stack in several if stack.rank is not None]
    if len(numbers) == len(several):
        return _numbers(numbers)
    hosts = [stack.host for stack in several]
    if len({*hosts}) == len(
        hosts
    ):  # one each, started by the script's own means: who is which rank isn't told
        return _listed(hosts)
    return _listed([f"process {stack.pid} of {stack.host}" for stack in several])


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    if len(numbers) > 6:
        return f"ranks {numbers[0]}, {numbers[1]}, … {numbers[-1]} ({len(numbers)} ranks)"
    return f"ranks {_listed(list(map(str, numbers)))}"


def _listed(words: Sequence[str]) -> str:
    if len(words) > 6:
        return f"{words[0]}, {words[1]}, … {words[-1]} ({len(words)} in all)"
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), words[-1]])


def read_stacks(value: Any) -> Stacks:
    """`Stacks` from its JSON (`harness.store.to_json`)."""
    from harness.store import from_json

    return from_json(Stacks, value)

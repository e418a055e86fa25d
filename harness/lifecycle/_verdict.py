"""What ended a job, in one sentence: from exit codes, tracebacks, stacks and the kernel's words.

Pure: everything it judges by is handed in.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from harness._values import dataclass, field
from harness.model import JsonObject
from harness.quantities import size
from harness.telemetry import (
    Frame,
    Scan,
    Stacks,
    Traceback,
    awaited_worker,
    is_own_code,
    short_path,
    standstill,
)

__all__ = ["Facts", "HostFacts", "Verdict", "exit_words", "judge", "own_code"]

_EXIT: Final = re.compile(r"^ExitCode (-?\d+)$", re.MULTILINE)
_HEAD: Final = re.compile(r"^(\w+Error):\s*\nExitCode", re.MULTILINE)
_SIGNALS: Final = {
    signal.SIGSEGV: "segmentation fault, in native code",
    signal.SIGABRT: "native code gave up: a failed assertion, or an uncaught C++ exception",
    signal.SIGBUS: "bus error: memory that a file or /dev/shm should have held isn't there",
    signal.SIGKILL: "killed at once, by the kernel or by somebody",
    signal.SIGTERM: "asked to end",
    signal.SIGILL: "an instruction that this processor doesn't have",
    signal.SIGFPE: "arithmetic error, in native code",
    signal.SIGINT: "interrupted",
    signal.SIGHUP: "its terminal was closed",
    signal.SIGPIPE: "it wrote to a pipe that nobody reads",
}
_CODES: Final = {
    0: "success",
    1: "failure",
    2: "failure, as of a command line that was not understood",
    126: "the command can't be executed",
    127: "the command was not found",
}
_NATIVE: Final = re.compile(
    r"^(terminate called .*|\s+what\(\): .*|.*Assertion .* failed.*|Fatal Python error: .*)$"
)
_PIP: Final = re.compile(r"^(?:ERROR|error): (.*)$")
_USAGE: Final = re.compile(r"^\S+: error: (.*)$")
_MESSAGE: Final = 240
_SHM: Final = re.compile(
    r"insufficient shared memory|out of shared memory|unable to (?:open|write|resize|mmap).*(?:shared memory|/torch_)"
    r"|killed by signal: Bus error|No space left on device.*(?:/dev/shm|shm)",
    re.IGNORECASE | re.DOTALL,
)

_HOOK: Final = re.compile(r"harness debug: (?:TimeoutError|ImportError): (.+)")
"""The debugger's hook gives up (`debugging/inner/hook.py`)."""


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """One host: how it ended and what it said."""

    name: str
    exit_code: int | None
    oom_killed: bool = False
    vanished: bool = False
    error: str | None = None
    """The engine's words."""
    failure: str = ""
    """Its failure file, unabridged."""
    scan: Scan
    said: str = ""
    """The end of its log."""
    look: Mapping[str, Any] = field(default_factory=dict)
    """The last look at it while it ran."""

    @property
    def script_code(self) -> int | None:
        """The script's own exit code, negative for a signal, as the toolkit told it (contract: G13, G14)."""
        if self.scan.root_cause is not None and self.scan.root_cause.exit_code is not None:
            return self.scan.root_cause.exit_code
        found = _EXIT.search(self.failure) or _EXIT.search(self.said)
        return int(found[1]) if found else None

    @property
    def failed_step(self) -> str:
        """The toolkit's class of error, such as InstallRequirementsError."""
        found = _HEAD.search(self.failure) or _HEAD.search(self.said)
        return found[1] if found else ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known of the end of a job."""

    status: str
    secondary_status: str
    reason: str | None
    """FailureReason."""
    first: str | None
    """The host that failed first."""
    hosts: tuple[HostFacts, ...]
    world_size: int
    hangs: Sequence[Mapping[str, Any]] = ()
    stacks: tuple[Stacks, ...] = ()
    kernel: Sequence[Mapping[str, Any]] = ()
    kernel_problem: str | None = None
    request: JsonObject = field(default_factory=dict)
    memory_limit: int | None = None
    """`[local] memory` in bytes."""
    stopped: bool = False
    """Hosts were told to stop, and killed if they didn't."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What ended the job."""

    kind: str
    """exception, memory, signal, exit, install, start, limit, hang, platform, stopped"""
    sentence: str
    host: str | None = None
    rank: int | None = None
    frame: Frame | None = None
    """The user's line."""
    traceback: Traceback | None = None
    advice: tuple[str, ...] = ()
    """What to do about it, one sentence each."""


def exit_words(code: int | None, *, oom_killed: bool = False, stopped: bool = False) -> str:
    """An exit code in words: 137, -9 → `SIGKILL: killed at once, by the kernel or by somebody`.

    `stopped`: by whom is known: by us, after SIGTERM (contract: G9).
    """
    if code is None:
        return "it left no exit code"
    if code in (137, -9) and oom_killed:
        return "SIGKILL: by the kernel, out of memory"
    if code in (137, -9) and stopped:
        return "SIGKILL: by the stop, since SIGTERM didn't end it"
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number:
        try:
            found = signal.Signals(number)
        except ValueError:
            return f"exit code {code}"
        words = _SIGNALS.get(found, signal.strsignal(number) or "")
        return f"{found.name}: {words}" if words else found.name
    return _CODES.get(code, "failure, by the script's own code")


def judge(facts: Facts) -> Verdict:
    """The verdict, most telling cause first."""
    if facts.secondary_status in ("MaxRuntimeExceeded", "MaxWaitTimeExceeded"):
        return _limit(facts)
    if facts.status == "Stopped":
        return _stopped(facts)
    host = _blamed(facts)
    if host is None or host.vanished or not (facts.reason or "").startswith("AlgorithmError"):
        return _platform(facts)
    for rule in (_not_started, _memory, _install, _by_signal, _exception, _undebugged, _exit):
        if (verdict := rule(facts, host)) is not None:
            return verdict
    raise AssertionError("the last rule has a verdict for everything")


def own_code(traceback: Traceback) -> Frame | None:
    """The innermost frame in the user's own code."""
    return next((each for each in reversed(traceback.frames) if is_own_code(each.file)), None)


# ---------------------------------------------------------------------------------- the host to blame


def _blamed(facts: Facts) -> HostFacts | None:
    """The host that failed first, unless all it says is that it lost another."""
    failed = [host for host in facts.hosts if host.exit_code or host.vanished]
    first = next((host for host in failed if host.name == facts.first), next(iter(failed), None))
    if first is None:
        return None
    told = _cause(first)
    if told is not None and told.is_secondary:
        for other in facts.hosts:
            theirs = _cause(other)
            if other is not first and theirs is not None and not theirs.is_secondary and other.exit_code:
                return other
    return first


def _cause(host: HostFacts) -> Traceback | None:
    """The traceback that tells why: of the rank that failed first, else the last that isn't a consequence."""
    own = [each for each in host.scan.tracebacks if not each.is_launchers]
    own = [each for each in own if not each.is_toolkits] or own
    root = host.scan.root_cause
    if root is not None and root.rank is not None:
        of_rank = [each for each in own if each.rank == root.rank]
        own = of_rank or own
    return next((each for each in reversed(own) if not each.is_secondary), own[0] if own else None)


def _rank(facts: Facts, host: HostFacts, traceback: Traceback | None) -> int | None:
    if facts.world_size < 2 and (traceback is None or not traceback.rank):
        return None
    if traceback is not None and traceback.rank is not None:
        return traceback.rank
    root = host.scan.root_cause
    if root is None:
        return None
    kinds = {(each.type, each.message) for each in host.scan.tracebacks if not each.is_launchers}
    return root.rank if len(kinds) <= 1 else None


def _where(facts: Facts, host: HostFacts, rank: int | None) -> str:
    parts = ([host.name] if len(facts.hosts) > 1 else []) + ([f"rank {rank}"] if rank is not None else [])
    return f" on {' '.join(parts)}" if parts else ""


# -------------------------------------------------------------------------------------------- rules


def _platform(facts: Facts) -> Verdict:
    """Not the script's doing: AWS's own words, or ours."""
    text = " ".join((facts.reason or "the job failed without a reason").split())
    kind, _, rest = text.partition(": ")
    shown = rest if kind.endswith("Error") and rest else text
    by = {"ClientError": "the request or its data", "InternalServerError": "the platform"}.get(kind)
    return Verdict(kind="platform", sentence=f"{shown}" + (f" ({by}, not the script)" if by else ""))


def _not_started(facts: Facts, host: HostFacts) -> Verdict | None:
    del facts
    if host.exit_code not in (126, 127) or not host.error:
        return None
    return Verdict(
        kind="start",
        sentence=f"{host.name} never started: {host.error}",
        host=host.name,
        advice=(
            "Look at the image's entry point, or give ContainerEntrypoint a program that is in the image.",
        ),
    )


def _memory(facts: Facts, host: HostFacts) -> Verdict | None:
    pids = {each["pid"]: each for each in host.look.get("processes", ())}
    kills = [line for line in facts.kernel if "Killed process" in line["text"]]
    lines = [line for line in kills if line["pid"] in pids]
    if not lines and host.oom_killed and len(kills) == 1:
        lines = kills  # a process that is younger than the last look
    if not host.oom_killed and not lines:
        return None
    killed = pids.get(lines[-1]["pid"]) if lines else None
    limit = facts.memory_limit or host.look.get("memory_limit")
    used = host.look.get("memory_peak") or 0
    had = f"the host had {size(used)} at the last look" if used else ""
    if lines and (found := re.search(r"\((.+?)\).* anon-rss:(\d+)kB", lines[-1]["text"])):
        pid = f" (process {killed['pid']})" if killed else ""
        had = f"{found[1]}{pid} had {size(int(found[2]) * 1024)}"
    own_limit = facts.memory_limit is not None
    amount = f": {had}" if had else ""
    if limit:
        whose = "that [local] memory gives each host" if own_limit else "of this machine"
        amount += f", of the {size(limit)} {whose}" if had else f": {size(limit)} {whose} were not enough"
    at = f" at {time.strftime('%H:%M:%S', time.localtime(lines[-1]['at']))}" if lines else ""
    what = "raise [local] memory, or " if own_limit else ""
    return Verdict(
        kind="memory",
        sentence=f"killed by the kernel on {host.name}{at}, out of memory{amount}",
        host=host.name,
        advice=(
            f"Take a smaller batch, fewer DataLoader workers, or {what}see what grows: `harness metrics JOB` has the "
            "memory over time.",
        ),
    )


def _install(facts: Facts, host: HostFacts) -> Verdict | None:
    del facts
    if host.failed_step not in ("InstallRequirementsError", "InstallModuleError"):
        return None
    words = [found[1] for line in host.said.splitlines() if (found := _PIP.match(line))]
    what = "requirements.txt" if "Requirements" in host.failed_step else "the code directory (its setup.py)"
    return Verdict(
        kind="install",
        sentence=f"pip could not install {what}: {words[-1] if words else 'see the log'}",
        host=host.name,
        advice=(
            "Try it in the same image: harness shell JOB --post-mortem, then pip install -r requirements.txt.",
        ),
    )


def _by_signal(facts: Facts, host: HostFacts) -> Verdict | None:
    code = host.script_code
    inside = code is not None
    if code is None:
        code = host.exit_code
    if code is None or (0 <= code <= 128):
        return None
    number = -code if code < 0 else code - 128
    if number not in signal.valid_signals():
        return None
    name = signal.Signals(number).name
    last_word = _cause(host)
    if (
        number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
        and not host.scan.crashed
        and last_word is not None
        and last_word.said_after <= 2
    ):
        # Native threads, gloo's for one, may abort a process that an exception is already ending.
        verdict = _exception(facts, host)
        assert verdict is not None
        return dataclasses.replace(verdict, sentence=f"{verdict.sentence} ({name} ended it on its way out)")
    what = "the script" if inside else f"process 1 of {host.name}"
    rank = host.scan.root_cause.rank if host.scan.root_cause else None
    where = _where(facts, host, rank)
    frame = next((each for each in host.scan.crashed if is_own_code(each.file)), None)
    place = f" at {short_path(frame.file)}:{frame.line}" if frame else ""
    sentence = f"{name} ended {what}{where}{place}: {exit_words(code).partition(': ')[2]}"
    said = [found[1].strip() for line in host.scan.last_lines if (found := _NATIVE.match(line))]
    if said:
        sentence += f" (it said: {said[-1][:160]})"
    advice: list[str] = []
    if number == signal.SIGKILL:
        told = facts.kernel_problem or "the kernel's log has no out-of-memory kill of this job"
        advice.append(
            f"Who sent SIGKILL isn't known: {told}. `harness metrics JOB` shows the memory before it."
        )
    elif number == signal.SIGBUS:
        advice.append(_shm_advice(host))
    elif frame is None:
        advice.append("PYTHONFAULTHANDLER=1 in [environment] makes Python print where it was.")
    if number in (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS):
        told_by_kernel = [line["text"] for line in facts.kernel if "Killed process" not in line["text"]]
        advice += [f"The kernel said at that time: {text}" for text in told_by_kernel[-1:]]
    return Verdict(
        kind="signal", sentence=sentence, host=host.name, rank=rank, frame=frame, advice=tuple(advice)
    )


def _exception(facts: Facts, host: HostFacts) -> Verdict | None:
    traceback = _cause(host)
    if traceback is None:
        return None
    rank = _rank(facts, host, traceback)
    frame = own_code(traceback)
    shown = [
        each for each in traceback.frames if not each.file.startswith("<frozen ")
    ]  # nobody can read those
    innermost = shown[-1] if shown else None
    place = "the script"
    if frame is not None:
        place = f"{short_path(frame.file)}:{frame.line}"
    elif innermost is not None:
        place = f"{short_path(innermost.file)}:{innermost.line}"
    through = ""
    if frame is not None and innermost is not None and innermost is not frame:
        through = f" in {short_path(innermost.file)}:{innermost.line}"
    first, _, rest = traceback.message.partition("\n")
    # The lines after the first may be another process's; but one that ends so can't be all of it.
    message = " ".join((first + rest.partition("\n")[0] if first.rstrip().endswith(":") else first).split())
    if len(message) > _MESSAGE:
        message = f"{message[: _MESSAGE - 1]}…"
    kind = traceback.type.rpartition(".")[2]
    if kind == "BdbQuit":
        return Verdict(
            kind="exception",
            sentence=f"{place} stopped in pdb{_where(facts, host, rank)}, and a training job has no terminal, "
            "here or in SageMaker: `harness debug --pdb` gives it one",
            host=host.name,
            rank=rank,
            frame=frame or innermost,
            traceback=traceback,
        )
    where = _where(facts, host, rank)
    sentence = f"{place} raised {kind}{where}{through}"
    if (host.script_code or 0) > 1:  # what isn't caught ends Python with 1: this was caught, or a thread's
        code = host.script_code
        sentence = (
            f"the script ended with exit code {code}{where}, after it told of {kind} at {place}{through}"
        )
    return Verdict(
        kind="exception",
        sentence=f"{sentence}: {message}" if message else sentence,
        host=host.name,
        rank=rank,
        frame=frame or innermost,
        traceback=traceback,
        advice=tuple(_about(facts, host, traceback)),
    )


def _undebugged(facts: Facts, host: HostFacts) -> Verdict | None:
    """`harness debug` ended the script before its first line."""
    del facts
    found = next((match for line in host.scan.last_lines if (match := _HOOK.match(line))), None)
    if found is None:
        return None
    return Verdict(kind="start", sentence=found[1], host=host.name)


def _exit(facts: Facts, host: HostFacts) -> Verdict:
    code = host.script_code
    rank = host.scan.root_cause.rank if host.scan.root_cause else None
    where = _where(facts, host, rank)
    if code is None:
        text = " ".join(host.failure.split())[:_MESSAGE]
        if text:
            words = f"{host.name} ended with exit code {host.exit_code}: {text}"
        else:
            words = f"{host.name} ended with exit code {host.exit_code} and left no word why"
    else:
        words = f"the script ended with exit code {code}{where} and no traceback"
        if code == 0:
            words = f"the toolkit failed after the script{where}"
    refused = [found[1] for line in host.scan.last_lines if (found := _USAGE.match(line))]
    if code == 2 and refused:
        return Verdict(
            kind="exit",
            sentence=f"the script refused its arguments{where}: {refused[-1]}",
            host=host.name,
            rank=rank,
            advice=(
                "Each hyperparameter becomes an argument --NAME VALUE: the script must take all of them.",
            ),
        )
    if code in (126, 127):
        words = f"the script's command {'was not found' if code == 127 else 'can not be executed'}{where} (exit code {code})"
    if host.failure.strip() and not _EXIT.search(host.failure) and code is not None:
        own = " ".join(host.failure.split())
        own = own if len(own) <= _MESSAGE else f"{own[: _MESSAGE - 1]}…"
        words = f"the script ended with exit code {code}{where}; it wrote to /opt/ml/output/failure: {own}"
        return Verdict(kind="exit", sentence=words, host=host.name, rank=rank)
    last = next((line for line in reversed(host.scan.last_lines) if line.strip()), "")
    if last and code is not None:
        words += f"; its last line: {last.strip()[:120]}"
    return Verdict(kind="exit", sentence=words, host=host.name, rank=rank)


def _limit(facts: Facts) -> Verdict:
    limits = facts.request.get("StoppingCondition", {})
    name = "MaxRuntimeInSeconds" if facts.secondary_status == "MaxRuntimeExceeded" else "MaxWaitTimeInSeconds"
    sentence = f"stopped by {name} = {limits.get(name, 86400)}"
    return _standing(facts, "limit", sentence)


def _stopped(facts: Facts) -> Verdict:
    if facts.hangs:
        return _standing(facts, "hang", "stopped by request while it seemed to hang")
    return Verdict(kind="stopped", sentence="stopped by request (`harness stop` or Ctrl-C)")


def _standing(facts: Facts, kind: str, sentence: str) -> Verdict:
    stacks = facts.stacks[-1] if facts.stacks else None
    frame, rank, host = None, None, None
    if facts.hangs and "until" not in facts.hangs[-1]:
        sentence += f": {facts.hangs[-1]['sentence']}"
    elif stacks is not None and (found := standstill(stacks)) is not None:
        sentence += f": {found.sentence}"
    elif stacks is not None and (scripts := [each for each in stacks.scripts if each.frames]):
        sentence += f": the script was at {scripts[0].where}"
    elif stacks is not None and any(each.role == "launcher" for each in stacks.stacks):
        sentence += ": the script had not begun, the toolkit was still preparing it"
    elif stacks is not None and stacks.problem:
        sentence += f" (where it was isn't known: {stacks.problem})"
    if stacks is not None:
        found = standstill(stacks)
        scripts = [each for each in stacks.scripts if each.frames]
        at = next((each for each in scripts if found and each.pid in found.pids), next(iter(scripts), None))
        if at is not None:
            worker = awaited_worker(stacks, at)
            frame, rank, host = (worker or at).own, at.rank, at.host
    return Verdict(kind=kind, sentence=sentence, host=host, rank=rank, frame=frame)


# ------------------------------------------------------------------------------------------- advice


def _about(facts: Facts, host: HostFacts, traceback: Traceback) -> list[str]:
    message, kind = traceback.message, traceback.type.rpartition(".")[2]
    advice: list[str] = []
    if _SHM.search(message):
        advice.append(_shm_advice(host))
    elif "No space left on device" in message or "Errno 28" in message:
        disk = host.look.get("disk")
        left = f" ({size(disk['free'])} of {size(disk['size'])} were free at the last look)" if disk else ""
        advice.append(f"The disk is full{left}: `harness gc` frees what old jobs hold.")
    elif "CUDA out of memory" in message or kind == "OutOfMemoryError":
        advice.append(
            "The GPU's memory is full: take a smaller batch, or see who else uses it: `harness doctor`."
        )
    elif kind in ("ModuleNotFoundError", "ImportError") and (
        found := re.search(r"No module named '([^'.]+)", message)
    ):
        advice.append(
            f"Put {found[1]} into requirements.txt in source_dir: the toolkit installs it, here and in the cloud."
        )
    elif kind == "KeyError" and (found := re.search(r"SM_CHANNEL_(\w+)", message)):
        advice.append(_no_channel(facts, found[1].lower()))
    elif kind == "FileNotFoundError" and (found := re.search(r"/opt/ml/input/data/([\w.-]+)", message)):
        if found[1] not in _channels(facts):
            advice.append(_no_channel(facts, found[1]))
    elif "Address already in use" in message:
        advice.append(
            "Another process has that port: of the script's own making, or of another job in the sandbox."
        )
    return advice


def _channels(facts: Facts) -> list[str]:
    return [str(each["ChannelName"]) for each in facts.request.get("InputDataConfig", ())]


def _no_channel(facts: Facts, name: str) -> str:
    names = _channels(facts)
    has = f"its channels are {', '.join(names)}" if names else "it has none"
    return f'The job has no channel {name}, {has}: give it one under [inputs] in the spec, {name} = "…".'


def _shm_advice(host: HostFacts) -> str:
    shm = host.look.get("shm")
    held = f": it held {size(shm['used'])} of {size(shm['size'])} at the last look" if shm else ""
    return f"/dev/shm was probably too small{held}; give it more with [local] shm_size, or use fewer DataLoader workers."


def own_path(file: str, source: Path | None, entry_point: str | None) -> Path | None:
    """The user's own file for a file of the host's code directory; None when it isn't there any more."""
    if source is None or not is_own_code(file):
        return None
    inside = short_path(file)
    place = source / inside if source.is_dir() else source if inside == (entry_point or source.name) else None
    return place if place is not None and place.is_file() else None

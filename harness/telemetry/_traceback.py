"""Python tracebacks in what a host printed: found, told apart, and attributed to ranks.

A log is the output of several processes at once. Tracebacks of two ranks that fail together come line by
line in turn; PyTorch and MPI may or may not say whose line it is; torchrun adds a traceback of its own and
a table that says who failed first; AWS's toolkit repeats part of it all in its error message.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass as mutable
from dataclasses import field
from typing import Final

from harness._values import dataclass

__all__ = ["Frame", "RootCause", "Scan", "Traceback", "scan"]

_PREFIX: Final = re.compile(
    r"^(?:\[rank(?P<torch>\d+)\]: ?"
    r"|\[\d+,mpirank:(?P<mpi>\d+),(?P<host>[\w-]+)\]<std(?:out|err)>: ?"
    r"|\[[\w-]*?(?P<tee>\d+)\]:)"
)
"""What PyTorch ≥ 2.2, AWS's MPI and torchrun --tee put before each line of a rank."""
_HEAD: Final = "Traceback (most recent call last):"
_BEHIND: Final = re.compile(rf"(?:\[rank(?P<rank>\d+)\]: ?)?{re.escape(_HEAD)}\s*$")
"""It may stand behind what has no line end: a progress bar, a prompt."""
_QUOTED: Final = re.compile(r"\s*ErrorMessage \"")
"""The toolkit's own telling of it."""
_FRAME: Final = re.compile(r'^ {0,2}File "(?P<file>.+)", line (?P<line>\d+)(?:, in (?P<function>.+))?$')
_MARKS: Final = re.compile(r"^[\s~^]*[~^][\s~^]*$")
_NUMBERED: Final = re.compile(r"^ {0,2}\[Previous line repeated \d+ more times?\]$")
_EXCEPTION: Final = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?:: ?(?P<message>.*))?$")
_CHAINS: Final = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_SYNTAX: Final = ("SyntaxError", "IndentationError", "TabError")
_END: Final = re.compile(r"Reporting training FAILURE")
"""What the toolkit prints after it is its own telling of what was printed before."""
_BEGIN: Final = "Invoking script with the following command:"
"""What the toolkit prints before it is its environment, and right after it the script's command line: of no
use here, and both may hold secrets."""
_LOGGED: Final = re.compile(
    r"^(?:\d{4}-\d\d-\d\d[ T]|\[\d{4}-\d\d|[IWEF]\d{4} |(?:INFO|WARNING|ERROR|DEBUG|CRITICAL)[: ]|={5}|-{5}|\[?rank\d)"
)
"""A line that some logger wrote."""
_TOOLKITS: Final = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ sagemaker[-\w.]* +INFO ")
"""What the toolkit says of its own doing."""
_ROOT: Final = re.compile(r"^Root Cause(?: \(first observed failure\))?:$")
_ROOT_FIELD: Final = re.compile(r"^\s+(time|host|rank|exitcode)\s*: (.*)$")
_LAUNCHER: Final = (
    "ChildFailedError",
    "torch.distributed.elastic.multiprocessing.api.SignalException",
    "torch.distributed.elastic.multiprocessing.errors",
)
_TOOLKIT: Final = ("/sagemaker_training/", "/contract/toolkit/")
_SECONDARY: Final = re.compile(
    r"Connection (?:closed|reset) by peer|connection was closed|Broken pipe|Socket Timeout|"
    r"\[.*gloo/transport|NCCL (?:error|communicator was aborted)|remote process exited|"
    r"ProcessGroupNCCL.*(?:watchdog|timeout)|Application timeout caused pair closure|"
    r"recvValue failed|failed to recv, got 0 bytes"
)
"""Errors of a rank that lost another: the cause is the other's."""
_CRASH: Final = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+ .*\(most recent call first\):$")
_CRASH_FRAME: Final = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$')
_ELASTIC: Final = "torch/distributed/elastic/"
"""In what torchrun logs when a rank has failed, and in its own traceback."""
_DYING: Final = re.compile(r"^(?:terminate called|\s+what\(\): |Fatal Python error|Extension modules: )")
_KEEP_MESSAGE: Final = 4000
_KEEP_LINES: Final = 200
_KEEP: Final = 64
_AT_ONCE: Final = 32
"""Tracebacks that may be coming line by line in turn; of more the oldest are given up."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a traceback or a stack, as Python prints it."""

    file: str
    line: int
    function: str
    source: str = ""
    """The line's text, where it was printed."""


@dataclass(frozen=True, kw_only=True)
class Traceback:
    """One traceback, with those that its exception was raised during the handling of."""

    type: str
    message: str
    frames: tuple[Frame, ...]
    """Outermost first."""
    text: str
    """As it was printed, without the prefixes."""
    rank: int | None = None
    """Where the lines say whose they are."""
    at: int = 0
    """Number of its first line in what was scanned."""
    said_after: int = 0
    """Lines that the script printed after it: none when it was the last word of its process."""

    @property
    def is_launchers(self) -> bool:
        """Whether torchrun raised it, to tell that a rank failed."""
        return self.type.endswith(_LAUNCHER[0]) or self.type.startswith(_LAUNCHER[1:])

    @property
    def is_toolkits(self) -> bool:
        """Whether the toolkit raised it: on a full disk it can't even write down how the script failed."""
        return bool(self.frames) and any(part in self.frames[-1].file for part in _TOOLKIT)

    @property
    def is_secondary(self) -> bool:
        """Whether it looks like the loss of another rank."""
        return _SECONDARY.search(self.message) is not None


@dataclass(frozen=True, kw_only=True)
class RootCause:
    """What torchrun's table says of the rank that failed first."""

    rank: int | None
    host: str = ""
    exit_code: int | None = None
    """Negative for a signal, as in Python."""
    pid: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was found in one host's output."""

    tracebacks: tuple[Traceback, ...]
    root_cause: RootCause | None
    last_lines: tuple[str, ...]
    """The last lines before the toolkit tells of the failure."""
    crashed: tuple[Frame, ...] = ()
    """Where Python was when it crashed, innermost first, if its fault handler told."""


@mutable
class _Open:
    """A traceback whose lines are still coming."""

    at: int
    rank: int | None
    lines: list[str]
    frames: list[Frame] = field(default_factory=list)
    wants_source: bool = False
    chained: str = ""
    """The text of the tracebacks before it in the chain."""

    def takes(self, line: str) -> bool:
        if self.frames and (line.startswith("    ") or _NUMBERED.match(line) or _MARKS.match(line)):
            return True
        if self.wants_source and not _FRAME.match(line):
            # AWS's toolkit strips what it reads, so that a line may have lost its indentation.
            found = _EXCEPTION.match(line)
            return not (found and _looks_raised(found["type"]))
        return bool(_FRAME.match(line)) or line.startswith(("  +", "  |", "    +"))

    def add(self, line: str) -> None:
        if not line.strip():
            return  # the toolkit's, which makes lines of pieces
        if len(self.lines) < _KEEP_LINES:
            self.lines.append(line)
        if found := _FRAME.match(line):
            self.frames.append(
                Frame(file=found["file"], line=int(found["line"]), function=found["function"] or "<module>")
            )
            self.wants_source = True
        elif self.wants_source and not _MARKS.match(line):
            last = self.frames[-1]
            self.frames[-1] = Frame(
                file=last.file, line=last.line, function=last.function, source=line.strip()
            )
            self.wants_source = False


def _begins(line: str) -> re.Match[str] | None:
    """Whether a traceback begins with this line."""
    return None if _HEAD not in line or _QUOTED.match(line) else _BEHIND.search(line)


class _Scanner:
    def __init__(self, keep_last: int) -> None:
        self.done: list[Traceback] = []
        self.root: dict[str, str] | None = None
        self.crashed: list[Frame] = []
        self._crashing = False
        self._command_next = False
        self._in_root = False
        self._open: list[_Open] = []
        self._said = 0
        self._launcher_spoke = False
        self._message: tuple[Traceback, int] | None = None
        self._chain: dict[int | None, str] = {}
        self._last: list[str] = []
        self._keep_last = keep_last

    def feed(self, number: int, raw: str) -> None:
        prefix = _PREFIX.match(raw)
        rank: int | None = None
        line = raw
        if prefix:
            told = prefix["torch"] or prefix["mpi"] or prefix["tee"]
            rank = int(told)
            line = raw[prefix.end() :]
        if raw.strip() == _BEGIN:
            self._last.clear()
            self._command_next = True
        elif raw.strip() and self._command_next:
            self._command_next = False
        elif raw.strip() and not _TOOLKITS.match(raw):
            self._last.append(raw)
            del self._last[: -self._keep_last]
        if self._of_root(line) or self._of_crash(line):
            return
        if (torn := _begins(line)) is not None:
            rank = rank if torn["rank"] is None else int(torn["rank"])
            self._message = None
            del self._open[: -_AT_ONCE + 1]
            self._open.append(_Open(at=number, rank=rank, lines=[_HEAD], chained=self._chain.pop(rank, "")))
            return
        if line in _CHAINS:
            self._chained(rank, line)
            return
        ours = [each for each in self._open if each.rank == rank or each.rank is None]
        if self._syntax_error(number, rank, line, ours):
            return
        takers = [each for each in ours if each.takes(line)]
        if takers:
            # Of several that wait for this kind of line the one that is furthest behind: they come in turn.
            is_source = not _FRAME.match(line) and not _MARKS.match(line)
            fitting = [each for each in takers if each.wants_source == is_source] or takers
            min(fitting, key=lambda each: len(each.lines)).add(line)
            return
        if found := _EXCEPTION.match(line):
            ready = [each for each in ours if each.frames]
            if ready and (ready[0].rank is not None or _looks_raised(found["type"])):
                self._close(ready[0], found["type"], found["message"] or "", line)
                return
        self._continue(number, line)

    def finish(self) -> Scan:
        root = None
        if self.root is not None:
            root = _root_cause(self.root)
        said = self._said
        tracebacks = [dataclasses.replace(each, said_after=said - each.said_after) for each in self.done]
        return Scan(
            tracebacks=tuple(tracebacks[-_KEEP:]),
            root_cause=root,
            last_lines=tuple(self._last),
            crashed=tuple(self.crashed),
        )

    # ------------------------------------------------------------------------- parts

    def _close(self, opened: _Open, kind: str, message: str, line: str) -> None:
        self._open.remove(opened)
        text = "\n".join([*opened.lines, line])
        done = Traceback(
            type=kind,
            message=message[:_KEEP_MESSAGE],
            frames=tuple(opened.frames),
            text=f"{opened.chained}{text}",
            rank=opened.rank,
            at=opened.at,
            said_after=self._said,  # so far: what is said until the end is known at the end
        )
        self.done.append(done)
        self._message = (done, 0)

    def _continue(self, number: int, line: str) -> None:
        """An exception's message may have several lines; a few, up to an empty one, are taken for its."""
        del number
        self._launcher_spoke |= _ELASTIC in line
        plain = bool(line.strip()) and not self._launcher_spoke
        if plain and not _LOGGED.match(line) and not _DYING.match(line):
            self._said += 1
        if self._message is None or not self.done or self.done[-1] is not self._message[0]:
            return
        done, count = self._message
        if not line.strip() and done.text.rstrip().endswith(":") and not done.message:
            return
        if not line.strip() or count >= 12 or self._open or _LOGGED.match(line):
            self._message = None
            return
        # Without Python's buffer (PYTHONUNBUFFERED) type, colon and message are written one by one, and AWS's
        # toolkit makes a line of whatever it gets at a time.
        torn = not done.message and (line.startswith(":") or done.text.rstrip().endswith(":"))
        longer = dataclasses.replace(
            done,
            message=line.lstrip(": ") if torn else f"{done.message}\n{line}"[:_KEEP_MESSAGE],
            text=f"{done.text.rstrip()}{'' if line.startswith(':') else ' '}{line}"
            if torn
            else f"{done.text}\n{line}",
            said_after=self._said,
        )
        self.done[-1] = longer
        self._message = (longer, count + 1)

    def _chained(self, rank: int | None, line: str) -> None:
        """The last exception of this rank was only the first of a chain."""
        self._message = None
        for at in range(len(self.done) - 1, -1, -1):
            if self.done[at].rank == rank:
                self._chain[rank] = f"{self.done.pop(at).text}\n\n{line}\n\n"
                return

    def _syntax_error(self, number: int, rank: int | None, line: str, ours: list[_Open]) -> bool:
        """Python prints a syntax error in the script itself without the head."""
        found = _FRAME.match(line)
        if found and found["function"] is None and not ours:
            opened = _Open(at=number, rank=rank, lines=[])
            opened.add(line)
            self._open.append(opened)
            return True
        if not found and ours and not ours[0].lines[0].startswith("Traceback"):
            name = line.partition(":")[0]
            if name in _SYNTAX:
                self._close(ours[0], name, line.partition(":")[2].strip(), line)
                return True
            if not ours[0].takes(line):
                self._open.remove(ours[0])
        return False

    def _of_crash(self, line: str) -> bool:
        if line.startswith("Current thread 0x"):
            self.crashed, self._crashing = [], bool(_CRASH.match(line))
            return True
        if self._crashing and (found := _CRASH_FRAME.match(line)):
            self.crashed.append(
                Frame(file=found["file"], line=int(found["line"]), function=found["function"])
            )
            return True
        self._crashing = False
        return False

    def _of_root(self, line: str) -> bool:
        if _ROOT.match(line):
            self.root, self._in_root, self._message = {}, True, None
            return True
        if self._in_root and self.root is not None:
            if found := _ROOT_FIELD.match(line):
                self.root.setdefault(found[1], found[2].strip())
                return True
            if line.startswith("==="):
                self._in_root = False
        return False


def scan(lines: Iterable[str], *, keep_last: int = 40) -> Scan:
    """The tracebacks in the lines of one host's log, in the order in which they ended."""
    scanner = _Scanner(keep_last)
    for number, line in enumerate(lines):
        if _END.search(line):
            break
        scanner.feed(number, line)
    return scanner.finish()


def _looks_raised(name: str) -> bool:
    """Whether a bare word at the start of a line is an exception's type and not the start of a sentence."""
    last = name.rpartition(".")[2]
    return (
        last.endswith(("Error", "Exception", "Exit", "Interrupt", "Warning", "Iteration", "Failure"))
        or "." in name
        or (last[:1].isupper() and not last.isupper())
    )


def _root_cause(fields: dict[str, str]) -> RootCause | None:
    rank = re.match(r"(\d+)", fields.get("rank", ""))
    code = re.match(r"(-?\d+)(?: \(pid: (\d+)\))?", fields.get("exitcode", ""))
    if rank is None and code is None:
        return None
    return RootCause(
        rank=int(rank[1]) if rank else None,
        host=fields.get("host", ""),
        exit_code=int(code[1]) if code else None,
        pid=int(code[2]) if code and code[2] else None,
    )

"""What of a script's output becomes the ErrorMessage of its failure (contract: G15)."""

from __future__ import annotations

import re

__all__ = ["COMPILER_PATHS", "Capture", "message", "tagged"]

COMPILER_PATHS = (
    "tensorflow/compiler/xla",
    "tensorflow/compiler/tf2xla",
    "tensorflow/python/compiler/xla",
    "torch_xla/",
)
"""Traces of SageMaker's training compiler (contract: G16)."""

_NAMES = (
    b"Invalid requirement",
    *(
        b"BaseException Exception ArithmeticError AssertionError AttributeError BlockingIOError "
        b"BrokenPipeError BufferError ChildProcessError ConnectionAbortedError ConnectionError "
        b"ConnectionRefusedError ConnectionResetError EOFError EnvironmentError FileExistsError "
        b"FileNotFoundError FloatingPointError IOError ImportError IndentationError IndexError "
        b"InterruptedError IsADirectoryError KeyError LookupError MemoryError ModuleNotFoundError "
        b"NameError NotADirectoryError NotImplementedError OSError OverflowError PermissionError "
        b"ProcessLookupError RecursionError ReferenceError RuntimeError SyntaxError SystemError "
        b"TabError TimeoutError TypeError UnboundLocalError UnicodeDecodeError UnicodeEncodeError "
        b"UnicodeError UnicodeTranslateError ValueError ZeroDivisionError ResourceExhaustedError "
        b"OutOfRangeError InvalidArgumentError ExecuteUserScriptError InstallModuleError "
        b"InstallRequirementsError mpirun.real ORTE"
    ).split(),
)

_MARKS = (b"Error", b"Exception", b"mpirun.real", b"ORTE", b"Invalid requirement")
"""Each name has one of these: looking for five words is what an ordinary chunk of output costs."""

_LIMIT = 256 * 1024
"""Characters to keep per stream. The toolkit keeps all; FailureReason shows 1024."""


_TAG = re.compile(rb"\[(\d),(\d+)\]<(stdout|stderr)>")
_SHORT_TAG = re.compile(r"\[(\d),(\d)\]<(?:stdout|stderr)>")
"""What is taken off before lines are compared: ranks above 9 keep theirs, and so what they say comes again."""


def tagged(lines: bytes, processes: object) -> bytes:
    """mpirun's tags as the toolkit writes them; the host is a guess from the rank (contract: H21)."""
    if not isinstance(processes, int) or processes < 1:
        return lines

    def named(found: re.Match[bytes]) -> bytes:
        job, rank, stream = found.groups()
        return b"[%s,mpirank:%s,algo-%d]<%s>" % (job, rank, int(rank) // processes + 1, stream)

    return _TAG.sub(named, lines)


class Capture:
    """Keeps the lines of one stream, from the first that has a known error name on."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._seen: set[str] = set()
        self._left = _LIMIT

    def feed(self, chunk: bytes) -> None:
        """More of the stream, cut at line ends wherever lines aren't enormous."""
        if self._left <= 0 or not (self._lines or any(mark in chunk for mark in _MARKS)):
            return
        lines = chunk.strip().split(b"\n")
        if not self._lines:
            first = next(
                (number for number, line in enumerate(lines) if any(name in line for name in _NAMES)), None
            )
            if first is None:
                return
            del lines[:first]
        for line in lines:
            text = _SHORT_TAG.sub("", line.decode("utf-8", "replace")).strip(" :\n")
            # What comes again says nothing new; the first line is told apart by its place.
            if text in self._seen:
                continue
            if self._lines:
                self._seen.add(text)
            self._lines.append(text[: self._left] + "\n")
            self._left -= len(text) + 1
            if self._left <= 0:
                return

    def text(self) -> str:
        return " ".join(self._lines)


def message(out: Capture, err: Capture) -> str:
    """The ErrorMessage: stdout's lines before stderr's, each line once."""
    joined = " ".join((out.text(), err.text()))
    return "\n".join(dict.fromkeys(joined.split("\n"))).strip()

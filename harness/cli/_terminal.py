"""How the command line writes: colour, width, a line of status at the bottom, quantities for people."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final, Literal, TextIO

from harness.errors import DiskError
from harness.quantities import ago, clock, duration, harmless, number, size

__all__ = [
    "Screen",
    "ago",
    "clock",
    "console",
    "duration",
    "emit_json",
    "harmless",
    "json_time",
    "mask",
    "number",
    "prepare_streams",
    "silence_stdout",
    "size",
    "table",
    "tell",
]

Style = Literal["bold", "dim", "red", "green", "yellow", "blue", "magenta", "cyan"]
_CODES: Final = {
    "bold": 1,
    "dim": 2,
    "red": 31,
    "green": 32,
    "yellow": 33,
    "blue": 34,
    "magenta": 35,
    "cyan": 36,
}
_ASCII: Final = str.maketrans(
    {
        "│": "|",
        "…": "~",
        "–": "-",
        "×": "x",
        "≥": ">=",
        "≤": "<=",
        "→": "->",
        "█": "#",
        "░": ".",
        "·": "-",
        "’": "'",
    }
)
_SECRET_WORDS: Final = ("SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL", "APIKEY", "PRIVATE")


class Screen:
    """One output stream: a terminal, or a pipe or file that gets plain lines only.

    On a terminal a status line can stand below what is written; it is redrawn after every write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.is_terminal and not os.environ.get("NO_COLOR")
        self._ascii = not _can_encode(stream, "│…×█░")
        self._status = ""

    @property
    def width(self) -> int:
        """Columns; 80 where there is no terminal to ask."""
        if not self.is_terminal:
            return 80
        import shutil

        return shutil.get_terminal_size((80, 24)).columns

    def style(self, text: str, *styles: Style) -> str:
        """`text` in these styles, where the stream shows any."""
        if not self.colour or not styles or not text:
            return text
        return f"\x1b[{';'.join(str(_CODES[each]) for each in styles)}m{text}\x1b[0m"

    def write(self, *lines: str) -> None:
        """Write whole lines above the status line, in one go."""
        if not lines:
            return
        text = "".join(f"{line}\n" for line in lines)
        if self._ascii:
            text = text.translate(_ASCII)
        if self._status:
            text = f"\r\x1b[K{text}{self._status}"
        self._stream.write(text)
        self._stream.flush()

    def status(self, text: str) -> None:
        """Replace the status line; an empty one goes away. Nothing happens without a terminal."""
        if not self.is_terminal:
            return
        if len(text) > self.width - 1:
            text = f"{text[: self.width - 2]}…"  # else half a number would look like a whole one
        if self._ascii:
            text = text.translate(_ASCII)
        if text == self._status:
            return
        self._status = text
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()

    def wrap(self, text: str, indent: int = 0) -> list[str]:
        """`text` in lines that leave `indent` columns free; one line where there is no terminal."""
        if not self.is_terminal:
            return [text]
        import textwrap

        width = max(40, self.width - indent - 1)
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]

    def bar(self, done: int, total: int, columns: int = 24) -> str:
        """A progress bar of that many columns."""
        filled = min(columns, done * columns // total) if total else 0
        return "█" * filled + "░" * (columns - filled)


class _Stdout(io.TextIOWrapper):
    """Standard output on a disk that may be full; a pipe that nobody reads is something else."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(error) from error


def _unwritable(error: OSError) -> DiskError:
    silence_stdout()
    return DiskError(
        f"standard output can't be written ({error.strerror}); "
        "a job that was started goes on: see `harness jobs` and `harness logs`"
    )


def prepare_streams() -> None:
    """Let no character of a log stop us: what the terminal can't show is written as an escape.

    A stream that our caller closed (`>&-`) becomes /dev/null, before a database gets its number.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one: those before it are open by now.
            os.open(os.devnull, os.O_WRONLY if descriptor else os.O_RDONLY)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", encoding="utf-8"))  # noqa: PTH123, SIM115
    if type(sys.stdout) is io.TextIOWrapper:
        buffered = sys.stdout.line_buffering
        sys.stdout = _Stdout(sys.stdout.detach(), encoding=sys.stdout.encoding, line_buffering=buffered)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def silence_stdout() -> None:
    """Throw away what is still to be printed; else Python would try once more, and complain, when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: str, *, kind: Literal["error", "warning", "note"]) -> None:
    """One sentence for the user, on stderr."""
    screen = Screen(sys.stderr)
    colours: dict[str, Style] = {"error": "red", "warning": "yellow", "note": "cyan"}
    screen.write(f"{screen.style(kind + ':', 'bold', colours[kind])} {message}")


def emit_json(document: Any) -> None:
    """The one JSON document of a command, on stdout."""
    import json

    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def json_time(seconds: float | None) -> str | None:
    """Epoch seconds as the AWS CLI prints a time: ISO 8601 with the local offset."""
    if seconds is None:
        return None
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().isoformat()


def mask(environment: dict[str, str]) -> dict[str, str]:
    """The environment with the values of names that look like secrets hidden."""
    return {name: "********" if _is_secret(name) else value for name, value in environment.items()}


def _is_secret(name: str) -> bool:
    words = name.upper()
    return any(word in words.replace("_", "") for word in _SECRET_WORDS) or words.endswith(("_KEY", "_PWD"))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> list[str]:
    """Lines of a table: columns as wide as their content, those in `right` flush right, the last one free."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def console(stream: TextIO | None = None) -> Any:
    """A rich console for `stream` (default stdout), with our rules for colour and width."""
    from rich.console import Console

    screen = Screen(stream or sys.stdout)
    return Console(
        file=stream or sys.stdout,
        width=screen.width,
        no_color=not screen.colour,
        force_terminal=screen.colour,
        highlight=False,
    )

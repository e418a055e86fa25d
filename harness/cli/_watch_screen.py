"""`harness watch` on a terminal: one screen, drawn anew up to ten times a second, and given back at the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from harness import errors
from harness.cli import _terminal
from harness.cli._display import PREFIX_STYLES
from harness.cli._watch_views import Key, headline
from harness.targets.follow import End, Event

if TYPE_CHECKING:
    from rich.text import Text

    from harness.cli._watch_board import Board, Run, Series
    from harness.debugging import Change

__all__ = ["ScreenView", "draw"]

_EVERY: Final = 0.1
"""Seconds between two pictures."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_TAIL: Final = 4
"""Lines of the log before there is room for anything else."""
_ROOMY: Final = 14
"""Lines of a terminal that has room for more than the present run and its log."""
_MARKS: Final = {"Completed": ("✓", "green"), "Failed": ("✗", "red"), "Stopped": ("■", "yellow")}
_SAMPLES: Final = {
    "CPUUtilization": "cpu",
    "MemoryUtilization": "memory",
    "GPUUtilization": "gpu",
    "GPUMemoryUtilization": "gpu memory",
}


class ScreenView:
    """Keeps the terminal's other page for itself, and its keys; both are given back however it ends."""

    def __init__(self, board: Board) -> None:
        from rich.console import Console

        self._board = board
        self._console = Console(
            file=sys.stdout,
            highlight=False,
            emoji=False,
            markup=False,
            no_color=bool(os.environ.get("NO_COLOR")),
        )
        self._drawn = 0.0
        self._size: Any = None
        self._keys: Any = None
        self._suspend = False

    def __enter__(self) -> ScreenView:
        self._open()
        self._before = signal.signal(signal.SIGTSTP, self._pause)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTSTP, self._before)
        with contextlib.suppress(OSError, errors.DiskError):  # the terminal may be gone: nothing to give back
            self._close()
        if self._board.count and kind is None:
            self._last_words()

    def _open(self) -> None:
        import termios

        from rich.live import Live

        with contextlib.suppress(termios.error, ValueError, OSError):  # standard input is something else
            self._keys = termios.tcgetattr(0)
            quiet = termios.tcgetattr(0)
            quiet[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(0, termios.TCSADRAIN, quiet)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,  # a thread would keep supervisors from being forked
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _close(self) -> None:
        import termios

        try:
            self._live.stop()
        finally:
            if self._keys is not None:
                with contextlib.suppress(termios.error):
                    termios.tcsetattr(0, termios.TCSADRAIN, self._keys)
                self._keys = None

    def _pause(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._suspend = True

    def _last_words(self) -> None:
        """What stays on the terminal: the runs, and how the last one ended."""
        run = self._board.run
        screen = _terminal.Screen(sys.stdout)
        text = _history(self._board, screen.width)
        if text is not None:
            screen.write(f"{self._board.spec}: {text.plain.strip()}")
        if run is not None:
            screen.write(f"{run.name}: {run.status} in {_terminal.duration(run.seconds)}")
            if reason := run.verdict or run.failure:
                screen.write(*(_terminal.harmless(line) for line in reason.splitlines()))

    # ------------------------------------------------------------------- what happens

    def note(self, message: str) -> None:
        del message
        self._draw()

    def changed(self, change: Change) -> None:
        del change
        self._draw()

    def refused(self, error: errors.HarnessError) -> None:
        del error
        self._draw()

    def started(self, run: Run) -> None:
        del run
        self._draw()

    def event(self, run: Run, event: Event) -> None:
        del run
        if isinstance(event, End):
            self._draw()

    def stopping(self, run: Run, why: str) -> None:
        del run, why
        self._draw()

    def ended(self, run: Run) -> None:
        del run
        self._draw()

    def removed(self, names: list[str]) -> None:
        del names

    def idle(self) -> Key | None:
        """Draw, where it is time to; read a key."""
        if self._suspend:
            self._suspend = False
            self._close()
            os.kill(os.getpid(), signal.SIGSTOP)
            self._open()
            self._drawn = 0.0
        now = time.monotonic()
        if now - self._drawn >= _EVERY and (
            self._board.is_running or self._console.size != self._size or now - self._drawn >= 1
        ):
            self._draw()
        if self._keys is None or not select.select([0], [], [], 0)[0]:
            return None
        return os.read(0, 64).decode("utf-8", "replace")[:1] or None

    def _draw(self) -> None:
        self._size = self._console.size
        self._live.update(_Lines(draw(self._board, self._size.width, self._size.height)), refresh=True)
        self._drawn = time.monotonic()


class _Lines:
    """Lines that are as wide as the terminal or less, one below the other."""

    def __init__(self, lines: Sequence[Text]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        del console, options
        yield from self._lines


def draw(board: Board, width: int, height: int) -> list[Text]:
    """The picture: at most `height` lines of at most `width` columns."""
    run = board.run
    head = _head(board, run, width, height)
    below = _below(board, run, width, room=max(1, height // 3))
    room = height - len(head) - len(below)
    spare = room - 1 - max(_TAIL, room // 3)
    change = _change(board.change, room=min(8, spare // 2 - 1))
    spare -= len(change) + bool(change)
    metrics = _metrics(run, width, room=min(8, spare - 1)) if run else []
    blocks = [block for block in (change, metrics) if block]
    room -= sum(len(block) + 1 for block in blocks)
    tail = _tail(run, width, max(0, room - 1)) if run else []
    lines = list(head)
    for block in blocks:
        lines += [_text(), *block]
    lines += [_text(), *tail]
    lines = lines[: max(0, height - len(below))]
    lines += [_text()] * (height - len(below) - len(lines)) + below
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines[:height]


def _text(*pieces: str | tuple[str, str]) -> Text:
    from rich.text import Text

    return Text.assemble(*pieces, no_wrap=True, end="\n")


def _head(board: Board, run: Run | None, width: int, height: int) -> list[Text]:
    words = [board.spec]
    if run is not None:
        words.append(run.plan.engine)
    words.append(f"on change: {board.on_change}")
    lines = [_text(("harness watch ", "bold"), " · ".join(words))]
    history = _history(board, width)
    if history is not None and height >= _ROOMY:
        lines.append(history)
    if run is not None:
        lines.append(_verdict(board, run))
        if height >= _ROOMY:
            lines.append(_phases(run))
    return lines


def _history(board: Board, width: int) -> Text | None:
    """The last runs, oldest first, as many as fit."""
    from rich.text import Text

    if not board.runs:
        return None
    cells: list[Text] = []
    left = width - 1
    for run in reversed(board.runs):
        mark, style = _MARKS.get(run.status, ("▶", "cyan"))
        cell = Text(f"{mark} {_terminal.duration(run.seconds)}  ", style="dim" if run.superseded else style)
        left -= cell.cell_len
        if left < 0 and cells:
            break
        cells.append(cell)
    return Text("", no_wrap=True).join(reversed(cells))


def _verdict(board: Board, run: Run) -> Text:
    mark, style = _MARKS.get(run.status, ("▶", "cyan"))
    what = run.phases[-1].transition.status if run.phases else "Starting"
    if run.ended is None and run.stopping:
        what = "stopping"
    pieces: list[str | tuple[str, str]] = [(f"{mark} run {run.number} {what}", f"bold {style}")]
    pieces.append(f" {_terminal.duration(run.seconds)}")
    if run.to_first_line is not None:
        pieces.append(f" · first line after {run.to_first_line:.2f} s")
    if board.waiting:
        pieces.append((" · a change waits", "yellow"))
    progress = run.progress
    if run.ended is None and progress is not None and what in ("Starting", "Downloading", "Uploading"):
        share = f" {100 * progress.done // progress.total} %" if progress.total else f": {progress.done:,}"
        pieces.append(f" · {progress.what}{share}")
    elif run.ended is None:
        for name, short in _SAMPLES.items():
            if name in run.samples:
                pieces.append(f" · {short} {max(run.samples[name].values()):.0f} %")
    pieces.append((f" · {run.name}", "dim"))
    return _text(*pieces)


def _phases(run: Run) -> Text:
    spans = []
    for number, phase in enumerate(run.phases):
        if phase.transition.status in _MARKS:
            continue
        following = run.phases[number + 1].transition.start if number + 1 < len(run.phases) else None
        end = following or run.ended or time.time()
        spans.append(f"{phase.transition.status} {_terminal.duration(max(0, end - phase.transition.start))}")
    line = "  " + " → ".join(spans)
    if run.warmth is not None:
        line += f" · {_terminal.harmless(run.warmth)}"
    return _text((line, "dim"))


def _change(change: Change | None, *, room: int) -> list[Text]:
    if change is None or room < 1:
        return []
    moment = time.strftime("%H:%M:%S", time.localtime(change.at))
    lines = [_text((headline(change), "bold"), (f"  saved {moment}", "dim"))]
    changed = [line for file in change.files for line in file.lines]
    fits = changed if len(changed) < room else changed[: max(0, room - 2)]
    lines += [_text((f"  {_terminal.harmless(line)}", "green" if line[0] == "+" else "red")) for line in fits]
    if len(fits) < len(changed) and room > 1:
        lines.append(_text((f"  … {len(changed) - len(fits)} more changed lines", "dim")))
    return lines


def _metrics(run: Run, width: int, *, room: int) -> list[Text]:
    series = {name: each for name, each in run.series.items() if each.count or each.before is not None}
    names = list(series)
    if room < 1:
        return []
    shown = names if len(names) <= room else names[: max(1, room - 1)]
    column = min(max((len(name) for name in shown), default=0), max(8, width // 3))
    lines = [_metric(name, series[name], column, width, several=len(run.hosts) > 1) for name in shown]
    if len(shown) < len(names) and room > 1:
        lines.append(_text((f"{len(names) - len(shown)} more metrics: see `harness metrics`", "dim")))
    return lines


def _metric(name: str, series: Series, column: int, width: int, *, several: bool) -> Text:
    label = name if len(name) <= column else f"{name[: column - 1]}…"
    pieces: list[str | tuple[str, str]] = [(f"{_terminal.harmless(label):<{column}}  ", "cyan")]
    if series.count:
        values = list(series.values)
        arrow = _arrow(values)
        pieces.append((f"{_terminal.number(values[-1]):>10} {arrow}", "bold"))
        pieces.append(f" {_spark(values, max(4, min(24, width - column - 40)))}")
    else:
        pieces.append((f"{'–':>10}  ", "dim"))
    if several:
        pieces.append((f"  {series.host}", "dim"))
    if series.before is not None:
        pieces.append((f"  before {_terminal.number(series.before)}", "dim"))
    return _text(*pieces)


def _arrow(values: Sequence[float]) -> str:
    if len(values) < 2 or values[-1] == values[-2]:
        return " "
    return "↑" if values[-1] > values[-2] else "↓"


def _spark(values: Sequence[float], columns: int) -> str:
    import math

    shown = [value for value in values if math.isfinite(value)][-columns:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, int((value - low) / span * 7.999))] for value in shown)


def _tail(run: Run, width: int, room: int) -> list[Text]:
    if not room:
        return []
    last = list(run.tail)[-room:]
    column = max(map(len, run.hosts), default=0)
    position = {host: at for at, host in enumerate(run.hosts)}
    lines = []
    for host, message in last:
        style = PREFIX_STYLES[position.get(host, 0) % len(PREFIX_STYLES)]
        # Nobody sees more of it, and a line may have a quarter of a million characters.
        lines.append(_text((f"{host:<{column}} │ ", style), _terminal.harmless(message[: 2 * width])))
    return lines


def _below(board: Board, run: Run | None, width: int, *, room: int) -> list[Text]:
    """What went wrong, what the user should know, and what can be done now."""
    import textwrap

    lines: list[Text] = []

    def add(text: str, style: str) -> None:
        for line in textwrap.wrap(_terminal.harmless(text), max(20, width - 1)) or [""]:
            lines.append(_text((line, style)))

    if board.refused is not None:
        add(board.refused, "bold red")
    elif run is not None and run.failure and not run.superseded:
        for line in (run.verdict or run.failure).splitlines():
            add(line, "bold red")
        left = room - len(lines)
        # The end of a traceback is what one needs of it.
        trace = run.traceback if len(run.traceback) <= left else run.traceback[len(run.traceback) - left :]
        lines += [_text((_terminal.harmless(line), "red")) for line in trace]
    for note in board.notes:
        add(f"note: {note}", "cyan")
    lines = lines[:room]
    return [*lines, _text((_hint(board, run, width), "dim"))]


def _hint(board: Board, run: Run | None, width: int) -> str:
    """What can be done now; a command is there as a whole, to be copied, or not at all."""
    if run is not None and board.is_running:
        return "Ctrl-C again kills it" if run.interrupted else "Ctrl-C stops it and leaves"
    hint = "waiting for a change · r runs again · q leaves"
    if run is not None and run.status == "Failed":
        for command in (f"harness why {run.name}", "harness why"):
            if len(longer := f"{hint} · {command}") <= width:
                return longer
    return hint

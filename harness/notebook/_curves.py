"""Curves: by matplotlib where it is installed, in characters everywhere."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

from harness.notebook._picture import USAGE, Picture, Point
from harness.quantities import number

__all__ = ["png", "sparkline"]

_DRAWN: Final = ("CPUUtilization", "MemoryUtilization", "GPUUtilization", "GPUMemoryUtilization")
_COLOURS: Final = ("#2f7ed8", "#e4572e", "#17a37a", "#9b5de5", "#e0a100", "#0fa3b1", "#d1478c", "#7a8b3c")
_INK: Final = "#808890"
"""Reads on white and on black: nobody knows which one the page has."""
_MOST: Final = 12
"""Metrics that are drawn; the table has all."""
_ACROSS: Final = 3
_BARS: Final = "▁▂▃▄▅▆▇█"


def png(picture: Picture) -> bytes | None:
    """The metrics, and what the hosts used, each a small plot; None when there is nothing, or no matplotlib.

    One value is no curve: the table has it.
    """
    series = [(name, points) for name, points in picture.metrics.items() if len(points) > 1][:_MOST]
    usage = [
        name for name in _DRAWN if any(len(points) > 1 for points in picture.usage.get(name, {}).values())
    ]
    count = len(series) + bool(usage)
    if not count:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    across = 2 if count == 4 else min(count, _ACROSS)
    down = -(-count // across)
    figure = Figure(figsize=(3.1 * across, 1.75 * down), dpi=160, layout="constrained")
    places = iter(figure.subplots(down, across, squeeze=False).flat)
    for position, (name, points) in enumerate(series):
        place = next(places)
        _draw(place, points, _COLOURS[position % len(_COLOURS)])
        _dress(place, name, number(points[-1][1]))
    if usage:
        place = next(places)
        for position, name in enumerate(usage):
            for each in picture.usage[name].values():
                _line(place, each, _COLOURS[position], USAGE[name])
        _dress(place, "use of the hosts", "%")
        handles, labels = place.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        place.legend(
            unique.values(),
            unique,
            fontsize=6.5,
            frameon=False,
            labelcolor=_INK,
            loc="best",
            handlelength=1.2,
        )
        highest = max(value for name in usage for each in picture.usage[name].values() for _, value in each)
        place.set_ylim(0, max(100.0, 1.05 * highest))
    for place in places:
        place.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True)
    return file.getvalue()


def _draw(place: Any, points: Sequence[Point], colour: str) -> None:
    _line(place, points, colour, None)
    if len(points) <= 40:
        place.plot(*_columns(points), ".", color=colour, markersize=3.5)


def _line(place: Any, points: Sequence[Point], colour: str, label: str | None) -> None:
    place.plot(*_columns(points), color=colour, linewidth=1.4, label=label, solid_capstyle="round")


def _columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Thinned out to what a small plot can show, the last one kept."""
    step = max(1, len(points) // 1500)
    kept = [*points[::step], points[-1]] if step > 1 else points
    return [at for at, _ in kept], [value for _, value in kept]


def _dress(place: Any, title: str, value: str) -> None:
    # A metric's name is a user's: no character of it is mathematics.
    place.set_title(title, fontsize=8, color=_INK, loc="left", parse_math=False)
    place.set_title(value, fontsize=8, color=_INK, loc="right", fontweight="bold", parse_math=False)
    place.tick_params(labelsize=6.5, colors=_INK, length=2, width=0.6)
    place.xaxis.set_major_formatter(lambda seconds, _: _clock(seconds))
    place.locator_params(axis="both", nbins=5)
    place.grid(visible=True, color=_INK, alpha=0.18, linewidth=0.6)
    for side, spine in place.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
        spine.set_linewidth(0.6)


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The values as bars of eight heights, thinned out to `width` characters."""
    if len(values) > width:
        values = [values[position * (len(values) - 1) // (width - 1)] for position in range(width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)

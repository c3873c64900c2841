"""
The plots of a report: ``python -m benchmarks.suite.plots report.json``, in an environment that has matplotlib.

Draws ``drain``, ``enqueue`` and ``latency`` beside the report, as PNG and as SVG; one that has no figures is left out.
Colours are of Okabe and Ito's palette, which those who see fewer colours can tell apart; they say who is ours, what is
the limit and who is a peer, and nothing depends on them alone.

Source: M. Okabe, K. Ito, "Color Universal Design", 2008.
"""

import importlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIREMENTS = ("matplotlib==3.11.2",)

INK, FAINT, GRID = "#222222", "#6b6b6b", "#e4e4e4"
COLOURS = {"ours": "#0072B2", "raw": "#4d4d4d", "peer": "#E69F00", "orientation": "#CC79A7"}
MEANING = {
    "ours": "eventflow",
    "raw": "hand-written asyncpg, the limit",
    "peer": "on Postgres",
    "orientation": "on Redis, for orientation",
}
LOUD = "   * others used the machine before every repeat"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "svg.hashsalt": "eventflow",
}


@dataclass(frozen=True)
class Point:
    """A figure of the report."""

    median: float
    low: float
    high: float
    loud: bool

    @property
    def label(self) -> str:
        """In two or three digits; a star where others used the machine."""
        value, star = self.median, "*" if self.loud else ""
        if value >= 100:
            return f"{float(f'{value:.3g}'):,.0f}{star}"
        return f"{value:.{0 if value >= 10 else 1 if value >= 1 else 2}f}{star}"


class Contestant:
    """A contestant of the report."""

    def __init__(self, standing: dict[str, Any]) -> None:
        self.name: str = standing["name"]
        self.role: str = standing["role"]
        self.colour = COLOURS[self.role]
        self._figures: dict[str, dict[str, dict[str, Any]]] = standing["figures"]

    def figure(self, task: str, name: str) -> Point | None:
        """One of its figures, if it has been measured."""
        found = self._figures.get(task, {}).get(name)
        return Point(found["median"], found["low"], found["high"], found["loud"]) if found else None


@dataclass(frozen=True)
class Panel:
    """
    One diagram of several side by side: a line of bars or points for each contestant.

    Attributes:
        series: Task and figure of each, and what it is called.
    """

    title: str
    series: tuple[tuple[str, str, str], ...]

    def measured(self, contestant: Contestant) -> list[tuple[str, Point]]:
        """Its figures, and what they are called."""
        found = [(label, contestant.figure(task, figure)) for task, figure, label in self.series]
        return [(label, point) for label, point in found if point]


DRAIN = (Panel("", tuple((f"drain-{n}", "per_second", str(n)) for n in (1, 2, 4))),)
ENQUEUE = (
    Panel("1 caller", (("enqueue-1", "per_second", ""),)),
    Panel("20 concurrent callers", (("enqueue-20", "per_second", ""),)),
    Panel("In bulk", (("bulk", "per_second", ""),)),
)
LATENCY = (
    Panel("Pickup: from the call to the start", (("pickup", "pickup_p50_ms", ""), ("pickup", "pickup_p99_ms", ""))),
    Panel(
        "Lateness: from the due time to the start", (("lateness", "late_p50_ms", ""), ("lateness", "late_p99_ms", ""))
    ),
)


class Plots:
    """
    Draws.

    Args:
        report: Decoded.
        folder: Where the files go.
    """

    def __init__(self, report: dict[str, Any], folder: Path) -> None:
        self._contestants = [Contestant(standing) for standing in report["contestants"]]
        machine = report["machine"]
        self._machine = f"{machine['processor']}, {machine['cores']:g} cores, {machine['day']}"
        self._folder = folder
        # Any: the environment that checks types has no matplotlib.
        self._pyplot: Any = importlib.import_module("matplotlib.pyplot")
        self._pyplot.rcParams.update(STYLE)

    def drain(self) -> None:
        """Bars: no-op jobs to their durable end, by 1, 2 and 4 processes."""
        subtitle = "No-op jobs, by 1, 2 and 4 worker processes. Thin lines: lowest and highest repeat"
        self._draw("drain", "Jobs completed per second", subtitle, DRAIN, _bars)

    def enqueue(self) -> None:
        """Bars: single calls and bulk."""
        subtitle = "On Postgres durable when the call returns. Thin lines: lowest and highest repeat"
        self._draw("enqueue", "Jobs enqueued per second", subtitle, ENQUEUE, _bars)

    def latency(self) -> None:
        """From the median to the 99th percentile."""
        subtitle = "Circle: median; stroke: 99th percentile. Left is better; the axes are logarithmic"
        self._draw("latency", "Time until a job starts, in milliseconds", subtitle, LATENCY, _ranges)

    def _draw(self, name: str, title: str, subtitle: str, panels: Sequence[Panel], draw: Any) -> None:
        panels = [panel for panel in panels if any(panel.measured(each) for each in self._contestants)]
        if not panels:
            return
        lines = [each for each in self._contestants if any(panel.measured(each) for panel in panels)]
        lines.sort(key=lambda each: max((point.median for _, point in panels[0].measured(each)), default=0))
        if draw is _ranges:
            lines.reverse()  # the first is drawn at the bottom
        most = len(panels[0].series) if draw is _bars else 1
        inches = 1.6 + len(lines) * (0.17 + 0.17 * most)
        figure, axes = self._pyplot.subplots(
            1, len(panels), figsize=(9, inches), sharey=True, squeeze=False, layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, rect=(0, 0, 1, 1 - 0.6 / inches))
        for axis, panel in zip(axes[0], panels, strict=True):
            draw(axis, panel, lines)
            _dress(axis, panel, lines)
        _name(axes[0][0], lines, pad=16 if most > 1 else 6)
        left = 0.1 / 9
        figure.text(left, 1 - 0.25 / inches, title, va="center", fontsize=13, fontweight="bold")
        figure.text(left, 1 - 0.5 / inches, subtitle, va="center", color=FAINT)
        loud = any(point.loud for panel in panels for each in lines for _, point in panel.measured(each))
        _legend(figure, lines, self._machine + (LOUD if loud else ""))
        for kind in ("png", "svg"):
            metadata = {"Date": None, "Creator": None} if kind == "svg" else {}
            figure.savefig(self._folder / f"{name}.{kind}", dpi=160, facecolor="white", metadata=metadata)
        self._pyplot.close(figure)


def _bars(axis: Any, panel: Panel, lines: Sequence[Contestant]) -> None:
    """The more processes, the fainter; the thin line goes from the lowest to the highest repeat."""
    height = 0.8 / len(panel.series)
    top = max(point.high for each in lines for _, point in panel.measured(each))
    beside = axis.get_yaxis_transform()
    for line, each in enumerate(lines):
        measured = panel.measured(each)
        for nth, (label, point) in enumerate(measured):
            y = line + (len(measured) / 2 - nth - 0.5) * height
            axis.barh(y, point.median, height * 0.88, color=_faint(each.colour, 0.3 * nth))
            if point.high > point.low:
                axis.plot((point.low, point.high), (y, y), color=INK, linewidth=1)
            axis.annotate(point.label, (max(point.high, point.median), y), **BESIDE)
            axis.text(-0.008, y, label, transform=beside, ha="right", va="center_baseline", fontsize=8, color=FAINT)
        if not measured:
            axis.annotate("no figure", (0, line), **BESIDE | {"color": FAINT})
    axis.set_xlim(0, top * (1.12 if len(panel.series) > 1 else 1.3))
    axis.xaxis.set_major_locator(importlib.import_module("matplotlib.ticker").MaxNLocator(4))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _ranges(axis: Any, panel: Panel, lines: Sequence[Contestant]) -> None:
    axis.set_xscale("log")
    for line, each in enumerate(lines):
        points = [point for _, point in panel.measured(each)]
        if not points:
            where = {"xycoords": axis.get_yaxis_transform(), "color": FAINT}
            axis.annotate("no figure", (0, line), **BESIDE | where)
            continue
        first, last = (max(point.median, LEAST_MS) for point in (points[0], points[-1]))
        axis.plot((first, last), (line, line), color=each.colour, linewidth=2.5, solid_capstyle="butt")
        axis.plot(first, line, "o", color=each.colour, markersize=7)
        axis.plot(last, line, "|", color=each.colour, markersize=12, markeredgewidth=2.5)
        said = " / ".join(point.label for point in points)
        axis.annotate(said, (last, line), **BESIDE | {"xytext": (8, 0)})
    low, high = (math.log10(limit) for limit in axis.get_xlim())
    low = math.floor(low)  # so that there is a tick, however small the range
    axis.set_xlim(10**low, 10 ** max(low + 1.3, high + 0.25 * (high - low)))
    axis.xaxis.set_major_formatter(_duration)
    axis.minorticks_off()


LEAST_MS = 0.01
"""Where what is early or at once is drawn: a logarithm has no zero."""
BESIDE = {"xytext": (4, 0), "textcoords": "offset points", "va": "center_baseline", "fontsize": 8, "color": INK}


def _duration(milliseconds: float, _place: int) -> str:
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 else f"{milliseconds:g} ms"


def _faint(colour: str, share: float) -> tuple[float, ...]:
    """A colour with so much white in it; grid lines do not show through."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return tuple(channel + (1 - channel) * share for channel in channels)


def _dress(axis: Any, panel: Panel, lines: Sequence[Contestant]) -> None:
    axis.set_title(panel.title, loc="left", fontsize=10, color=INK)
    axis.set_ylim(-0.6, len(lines) - 0.4)
    axis.tick_params(length=0)
    axis.grid(axis="x", color=GRID)
    axis.set_axisbelow(True)


def _name(axis: Any, lines: Sequence[Contestant], *, pad: float) -> None:
    axis.tick_params(axis="y", pad=pad)
    axis.set_yticks(range(len(lines)), [each.name for each in lines])
    for label, each in zip(axis.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if each.role == "ours" else "normal")


def _legend(figure: Any, lines: Sequence[Contestant], title: str) -> None:
    patch = importlib.import_module("matplotlib.patches").Patch
    roles = dict.fromkeys(role for role in COLOURS if any(each.role == role for each in lines))
    figure.legend(
        handles=[patch(color=COLOURS[role], label=MEANING[role]) for role in roles],
        loc="outside lower left", ncols=len(roles), frameon=False, fontsize=8,
        title=title, title_fontsize=8, alignment="left",
    )  # fmt: skip


def main() -> None:
    """Draw them all."""
    report = Path(sys.argv[1])
    plots = Plots(json.loads(report.read_bytes()), report.parent)
    plots.drain()
    plots.enqueue()
    plots.latency()


if __name__ == "__main__":
    importlib.import_module("matplotlib").use("Agg")
    main()

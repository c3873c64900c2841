"""What the demo shows while it runs and at its end: live in a terminal, a few lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from eventflow.clock import Clock
from eventflow.demo.report import Figures, Progress, milliseconds, percentiles

PLAIN_SECONDS = 2.0
"""Seconds between two lines of progress where nothing can be drawn over."""


class View:
    """
    Tells what happens, line by line.

    Args:
        jobs: How many commands there will be.
        clock: Shown beside each line, counted from here.
    """

    def __init__(self, console: Console, jobs: int, clock: Clock) -> None:
        self.console = console
        self._jobs = jobs
        self._clock = clock
        self._began_at = self._shown_at = clock.monotonic()

    def __enter__(self) -> Self:
        self._shown_at = self._clock.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, text: str, style: str = "") -> None:
        """Something happened."""
        seconds = self._clock.monotonic() - self._began_at
        self.console.print(
            Text.assemble((f"{seconds:5.1f} s  ", "dim"), (text, style)), soft_wrap=True, highlight=False
        )

    def show(self, progress: Progress, worker: str) -> None:
        """Where the jobs are, and what the worker does."""
        if self._clock.monotonic() - self._shown_at >= PLAIN_SECONDS:
            self._shown_at = self._clock.monotonic()
            self.say(
                f"waiting {progress.waiting}, claimed {progress.claimed}, running {progress.running}, "
                f"done {progress.done}; p50 / p99 late {percentiles(progress.lateness_ms)}",
                "dim",
            )


class LiveView(View):
    """Draws the state of the jobs below these lines, several times a second."""

    def __init__(self, console: Console, jobs: int, clock: Clock) -> None:
        super().__init__(console, jobs, clock)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, progress: Progress, worker: str) -> None:
        self._live.update(Padding(self._draw(progress, worker), (1, 0, 1, 9)), refresh=True)

    def _draw(self, progress: Progress, worker: str) -> RenderableType:
        bars = Table.grid(padding=(0, 2))
        bars.add_column(width=14)
        bars.add_column(justify="right", width=6)
        bars.add_column()
        for label, number, style in (
            ("scheduled", progress.scheduled, "blue"),
            ("waiting", progress.waiting, "cyan"),
            ("claimed", progress.claimed, "magenta"),
            ("running", progress.running, "yellow"),
            ("done", progress.done, "green"),
        ):
            bar = ProgressBar(total=max(1, self._jobs), completed=number, width=40, complete_style=style)
            bar.finished_style = style
            bars.add_row(Text(label, style), str(number), bar)
        texts = Table.grid(padding=(0, 2))
        texts.add_column(width=14)
        texts.add_column()
        texts.add_row("p50 / p99 late", percentiles(progress.lateness_ms))
        texts.add_row("worker", Text(worker, "green" if worker.startswith("running") else "bold red"))
        return Group(bars, texts)


def view_on(console: Console, jobs: int, clock: Clock) -> View:
    """The view that fits the console."""
    return (LiveView if console.is_terminal and not console.is_dumb_terminal else View)(console, jobs, clock)


def print_figures(console: Console, figures: Figures, *, dead_seconds: float, seconds: float) -> None:
    """
    The table, what its numbers mean, and the verdict.

    Args:
        dead_seconds: How long after the kill another worker was asked for.
        seconds: What it all took.
    """
    console.print(Text("\nWhat happened, by the database", "bold"))
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("scheduled", str(figures.scheduled))
    table.add_row("executed", str(figures.executed))
    table.add_row("executed twice or more", str(figures.repeated))
    table.add_row("early", str(figures.early))
    table.add_row("lost", str(figures.lost))
    table.add_row("lateness p50 / p99, all jobs", percentiles(figures.all_ms))
    table.add_row(
        f"  the {figures.scheduled - figures.hit} due while a worker was alive", percentiles(figures.spared_ms)
    )
    table.add_row(f"  the {figures.hit} the kill got in the way of", percentiles(figures.hit_ms))
    table.add_row(
        f"from kill to new worker (asked for after {dead_seconds * 1000:.0f} ms)",
        milliseconds(figures.revived_after_ms),
    )
    table.add_row(f"from kill to first of {figures.rescued} rescued jobs", milliseconds(figures.rescued_after_ms))
    console.print(table)
    console.print()
    console.print(
        "Executed twice are the jobs that were running when the worker died: nobody knows how far they came, so they "
        "run again. Lateness is from the due time to the (last) start of the handler, by the database's clock.",
        style="dim",
        highlight=False,
    )
    problems = figures.problems()
    for problem in problems:
        console.print(problem, style="bold red", highlight=False)
    if not problems:
        console.print(f"No job was lost, and none ran early. ({seconds:.1f} s)", style="bold green", highlight=False)


def print_failure(console: Console, text: str) -> None:
    """Why there are no figures."""
    console.print(f"[bold red]The demo could not be shown:[/] {escape(text)}", soft_wrap=True, highlight=False)

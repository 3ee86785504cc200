"""What a person sees of a sweep: a bar and the trials at work while it runs, and the table of all
afterwards. Without a terminal, a line for each trial that ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jobs.train.history import EpochRecord, best_epoch
from jobs.tune.records import Record, best_of
from jobs.tune.space import Trial, names_of

REFRESHES_A_SECOND = 2
COLOURS = {"finished": "green", "stopped": "yellow", "failed": "red"}


class Board:
    """Follows a sweep and shows it. `keep` is called with each trial that ends, before it shows."""

    def __init__(
        self,
        console: Console,
        trials: Sequence[Trial],
        ended: Mapping[int, Record],
        keep: Callable[[Record], None],
    ) -> None:
        self.records = dict(ended)
        self._console, self._keep = console, keep
        self._trials = {trial.number: trial for trial in trials}
        self._monitor = trials[0].config.monitor
        self._running: dict[int, list[EpochRecord]] = {}
        self._bar = Progress(
            TextColumn("trials"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task = self._bar.add_task("trials", total=len(trials), completed=len(ended))

    def started(self, number: int) -> None:
        """Show a trial that has begun."""
        self._running[number] = []

    def epoch(self, number: int, record: EpochRecord) -> None:
        """Show what a trial has reached."""
        self._running.setdefault(number, []).append(record)

    def ended(self, record: Record) -> None:
        """Keep a trial that has ended, and show it."""
        self._keep(record)
        self.records[record.number] = record
        self._running.pop(record.number, None)
        self._bar.advance(self._task)
        if not self._console.is_terminal:
            self._console.print(
                f"trial {record.number} ({len(self.records)} of {len(self._trials)}) "
                f"{describe(record, self._monitor)}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while it runs, where there is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=REFRESHES_A_SECOND,
            transient=True,
        ):
            yield

    def _render(self) -> RenderableType:
        table = Table("trial", "settings", "epoch", self._monitor)
        for number, history in sorted(self._running.items()):
            trial = self._trials[number]
            table.add_row(
                str(number),
                escape(_settings(trial.settings)),
                f"{len(history)} of {trial.config.epochs}",
                _figure(history, self._monitor),
            )
        best = best_of(list(self.records.values()))
        if best is None:
            return Group(self._bar, table)
        line = f"best so far: trial {best.number}, {describe(best, self._monitor)}"
        return Group(self._bar, table, escape(line))


def describe(record: Record, monitor: str) -> str:
    """Return one line on a trial that has ended."""
    value = record.figure(monitor)
    figures = "" if value is None else f": {monitor} {value:.4f} in epoch {record.best_epoch}"
    reason = f": {record.reason.splitlines()[0]}" if record.reason else ""
    return (
        f"{record.status} after {len(record.epochs)} epochs, {record.seconds:.0f} s{figures}"
        f"{reason}  {_settings(record.settings)}"
    )


def trials_table(records: Sequence[Record], monitor: str) -> Table:
    """Return all trials that ended, the best first and those that failed last."""
    names = list(dict.fromkeys(name for record in records for name in record.settings))
    # What all trials have in common says nothing about them.
    shown = [n for n in names if len({repr(record.settings.get(n)) for record in records}) > 1]
    table = Table(title="trials, the best first", title_justify="left")
    figures = (f"validation {monitor}", "in epoch", "epochs", "s", "end")
    for column in ("trial", *_short(shown), *figures):
        table.add_column(
            escape(column.replace(" ", "\n")),
            justify="left" if column == "end" else "right",
            overflow="fold",
        )
    best = best_of(records)
    for record in sorted(records, key=_rank):
        value = record.figure(monitor)
        colour = COLOURS[record.status]
        table.add_row(
            str(record.number),
            *(escape(_value(record.settings.get(name))) for name in shown),
            "" if value is None else f"{value:.4f}",
            str(record.best_epoch or ""),
            str(len(record.epochs)),
            f"{record.seconds:.0f}",
            f"[{colour}]{record.status}[/]",
            style="bold" if record is best else None,
        )
    return table


def _short(names: Sequence[str]) -> list[str]:
    """Return names without their sections, which would take the width of the table, where that
    leaves them different.
    """
    short = [", ".join(one.rpartition(".")[2] for one in names_of(name)) for name in names]
    counts = Counter(short)
    return [s if counts[s] == 1 else name for s, name in zip(short, names, strict=True)]


def _rank(record: Record) -> tuple[bool, float, int]:
    value = float("-inf") if record.score is None else record.score
    return record.status == "failed", -value, record.number


def _figure(history: Sequence[EpochRecord], monitor: str) -> str:
    if not history:
        return ""
    values = history[best_epoch(history, monitor)].validation or {}
    return f"{values.get(monitor, float('nan')):.4f}"


def _settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name.replace(' ', '')}={_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Progress of a sweep: a live table on a terminal, one line a run elsewhere."""

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rmbook.errors import printable
from rmbook.sweeps.ledger import STATES, Lease
from rmbook.sweeps.listener import Listener
from rmbook.sweeps.table import DEFAULTS, is_fine_tuning, method_label


def describe_run(config: dict) -> str:
    """Describe a run in one line."""
    if not is_fine_tuning(config):
        return printable(" ".join(f"{name} {value}" for name, value in config.items() if value is not None), 200)
    config = DEFAULTS | config
    model = str(config["model"]).rstrip("/").split("/")[-1]
    return f"{model} {config['task']} {method_label(config)} lr {config['learning_rate']:g} seed {config['seed']}"


class LineListener(Listener):
    """One line a run on standard error."""

    def __init__(self):
        self._started = time.monotonic()

    def ended(self, lease: Lease, state: str, note: str, counts: dict[str, int]) -> None:
        """Print a line."""
        ended, total = sum(counts[name] for name in STATES[2:]), sum(counts.values())
        told = f" ({note})" if note else ""
        seconds = time.monotonic() - self._started
        print(f"[{ended}/{total}, {seconds:.0f} s] {state}: {describe_run(lease.config)}{told}", file=sys.stderr)


class LiveListener(Listener):
    """A table that stays in its place on a terminal; failures are printed above it. A context manager."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)
        self._counts, self._now, self._began = dict.fromkeys(STATES, 0), "", time.monotonic()
        self._first: int | None = None
        self._live = Live(get_renderable=self.table, console=self._console, refresh_per_second=1)

    def __enter__(self) -> "LiveListener":
        self._live.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._live.__exit__(*error)

    def begun(self, lease: Lease, counts: dict[str, int]) -> None:
        """Show the run."""
        self._update(counts, f"{describe_run(lease.config)}{', again' if lease.attempt > 1 else ''}")

    def ended(self, lease: Lease, state: str, note: str, counts: dict[str, int]) -> None:
        """Count it; say it where it went wrong."""
        self._update(counts, "")
        if note:
            self._console.print(f"{state}: {describe_run(lease.config)} ({note})", markup=False, highlight=False)

    def waiting(self, counts: dict[str, int]) -> None:
        """Say for what."""
        self._update(counts, "waiting for runs of other processes")

    def _update(self, counts: dict[str, int], now: str) -> None:
        if self._first is None:
            self._first, self._began = _ended(counts), time.monotonic()
        self._counts, self._now = counts, now

    def table(self) -> Table:
        """Return what the terminal shows."""
        table = Table(*(*STATES, "time left"), caption=self._now or None, caption_justify="left")
        table.add_row(*(f"{self._counts[state]:,}" for state in STATES), self._time_left())
        return table

    def _time_left(self) -> str:
        """Estimate from the pace so far, that of other processes included."""
        fresh = _ended(self._counts) - (self._first or 0)
        left = self._counts["pending"] + self._counts["leased"]
        if not fresh or not left:
            return "" if fresh else "?"
        minutes = round((time.monotonic() - self._began) / fresh * left / 60)
        return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes or 'under 1'} min"


def _ended(counts: dict[str, int]) -> int:
    return sum(counts[name] for name in STATES[2:])

"""The command line of sweeps: `rmbook sweep run`, `status`, `export`, `emit` and `grids`."""

import contextlib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from rmbook.cli import interrupt
from rmbook.cli.options import Sweep, check_outputs, path_flag, takes
from rmbook.errors import ConfigError, printable
from rmbook.settings import COUNT, check_settings, expand_home, parse_pairs, setting
from rmbook.sweeps.liveness import LEASE_SECONDS, MAX_ATTEMPTS

app = typer.Typer(
    help="Many runs: grids that can be stopped and resumed at any moment.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RUN = """\b
Examples:
  rmbook sweep run table1-tiny --output sweeps/tiny        (no network, no GPU)
  rmbook sweep run my_grid.yaml --output sweeps/mine
  rmbook sweep run table1 --output sweeps/table1 --set model=facebook/opt-125m --set data_dir=~/glue
  rmbook sweep run my_grid.yaml --output sweeps/mine --engine ray --workers 4       (four at a time on this machine)
  rmbook sweep run my_grid.yaml --output /mnt/team/mine --engine ray --address auto --gpus-per-run 0.5
  rmbook sweep run my_grid.yaml --output sweeps/mine --halving --budget 20       (at most 20 runs' worth of epochs)
The same command resumes after Ctrl-C, a kill or a full disk; started twice, it shares the work.
Either engine resumes the other's sweep. On a cluster, the folder, the examples and local models must lie on a file
system that all machines share, and all need the same version of rmbook.
"""
STATUS = """\b
Examples:
  rmbook sweep status sweeps/tiny
"""
EXPORT = """\b
Examples:
  rmbook sweep export sweeps/tiny --csv results.csv
  rmbook sweep export sweeps/tiny --parquet results.parquet --timing
"""
EMIT = """\b
Examples:
  rmbook sweep emit table1 --output sweeps/table1 --slurm-array
  sbatch --gpus=1 --time=8:00:00 sweeps/table1/slurm/array.sbatch
"""

LONGEST_NOTE = 1000  # characters
LONGEST_LEASE = 10**7  # seconds: a third of a year


@dataclass(frozen=True)
class SweepFlags:
    """Settings of how the runs of a sweep are performed."""

    max_attempts: int = setting(
        "How often a run is begun when workers die or machines fail", MAX_ATTEMPTS, least=1, most=10**6
    )
    lease: float = setting(
        "Seconds after which a process without a sign of life is given up", LEASE_SECONDS, least=1, most=LONGEST_LEASE
    )
    engine: str = setting("What performs the runs, embedded in this process", "embedded", choices=("embedded", "ray"))
    workers: int | None = setting("Ray: runs at a time", None, least=1, most=10**6, unset="as many as fit")
    cpus_per_run: float | None = setting("Ray: CPUs and threads of each", None, above=0, most=10**4, unset="1")
    gpus_per_run: float | None = setting(
        "Ray: GPUs of each, such as 0.5", None, least=0, most=10**4, unset="1, where there are GPUs"
    )
    address: str | None = setting("Ray: auto, HOST:PORT or ray://...", None, unset="$RAY_ADDRESS, or this machine")
    halving: bool = setting("Stop learning rates that others beat after epochs 1, 3, 9 ...", False)
    budget: float | None = setting(
        "Spend at most so many runs' worth of epochs in this call; needs --halving or Optuna", None, above=0, most=COUNT
    )
    order_seed: int = setting("Seed of the order of runs under a budget", 0, least=0, most=2**63 - 1)

    def __post_init__(self):
        check_settings(self)
        given = [name for name in FOR_RAY if getattr(self, name) is not None]
        if self.engine != "ray" and given:
            raise ConfigError(f"--{given[0].replace('_', '-')} belongs to --engine ray: add that, or leave it out.")
        if self.engine == "ray" and (self.halving or self.budget is not None):
            raise ConfigError("--halving and --budget work in one process: leave out --engine.")

    def perform_all(self) -> Callable[..., dict[str, int]]:
        """The function that performs a sweep."""
        if self.engine == "ray":
            from rmbook.sweeps.ray_engine import run_sweep_ray

            interrupt.wait_for_workers()
            for_ray = {name: getattr(self, name) for name in FOR_RAY if getattr(self, name) is not None}
            return functools.partial(run_sweep_ray, **for_ray)
        from rmbook.sweeps.local import run_sweep

        return functools.partial(run_sweep, halving=self.halving, budget=self.budget, seed=self.order_seed)


FOR_RAY = ("workers", "cpus_per_run", "gpus_per_run", "address")
Grid = Annotated[
    str, typer.Argument(help="YAML file, or name of a ready-made grid.", metavar="GRID", callback=expand_home)
]
NEW = "Folder of the sweep, a new one or one to resume."
Output = Annotated[str, typer.Option("--output", help=NEW, metavar="PATH", callback=expand_home)]
ANOTHER = "Another value of a setting, or a list as an axis: --set seed=[0,1]."
AllowRuns = Annotated[int, typer.Option("--allow-runs", help="The most runs that the grid may have.", min=1, max=COUNT)]
Set = Annotated[list[str] | None, typer.Option("--set", help=ANOTHER, metavar="NAME=VALUE", show_default=False)]


@app.command(epilog=RUN)
@takes(SweepFlags)
def run(
    given: dict,
    grid: Grid,
    output: Output,
    settings: Set = None,
    allow_runs: AllowRuns = 100_000,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Begin failed runs again.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for runs of other processes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing while it runs.")] = False,
) -> None:
    """Perform the runs of a grid that are not done yet."""
    flags = SweepFlags(**given)
    from rmbook.sweeps.display import LineListener, LiveListener
    from rmbook.sweeps.listener import Listener

    perform_all, runs = flags.perform_all(), _plan(grid, settings, allow_runs)
    silent = contextlib.nullcontext(Listener() if quiet else LineListener())
    with LiveListener() if sys.stderr.isatty() and not quiet else silent as listener:
        counts = perform_all(
            runs,
            output,
            listener=listener,
            retry_failed=retry_failed,
            wait=not no_wait,
            lease_seconds=flags.lease,
            max_attempts=flags.max_attempts,
        )
    typer.echo(f"{_sentence(counts)}; see {output}")
    if counts["pending"]:
        typer.echo("without --halving and --budget, the same command completes the rest.")
    if counts["failed"]:
        typer.echo(f"rmbook: why runs failed: rmbook sweep status {output}; again: --retry-failed.", err=True)
        raise typer.Exit(1)


@app.command(epilog=STATUS)
def status(sweep: Sweep) -> None:
    """Say how many runs are in which state, and why runs failed."""
    from rmbook.sweeps.display import describe_run
    from rmbook.sweeps.folder import SweepFolder
    from rmbook.sweeps.ledger import STOPPED, count_states
    from rmbook.sweeps.state import read_rows

    rows = read_rows(SweepFolder(sweep))
    typer.echo(_sentence(count_states(rows)))
    stopped = [row for row in rows if row["state"] == "pending" and (row["error"] or "").startswith(STOPPED)]
    if stopped:
        typer.echo(f"{len(stopped):,} of the pending ones were stopped early by --halving")
    for row in rows:
        if row["state"] in ("leased", "failed"):
            note = row["error"] or f"attempt {row['attempts']}, since {row['claimed']}"
            typer.echo(printable(f"{row['state']}: {describe_run(row['config'])}: {note}", LONGEST_NOTE))


@app.command(epilog=EXPORT)
def export(
    sweep: Sweep,
    csv: Annotated[str | None, path_flag("--csv", help="File to write, FILE.csv.")] = None,
    parquet: Annotated[str | None, path_flag("--parquet", help="File to write, FILE.parquet.")] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Add speed, machine, attempts and messages.")] = False,
) -> None:
    """Write the results as a table: the same bytes for the same runs, however they came about."""
    if not (csv or parquet):
        raise ConfigError("give --csv FILE or --parquet FILE.")
    check_outputs({"--csv": (csv, ".csv"), "--parquet": (parquet, ".parquet")})
    from rmbook.sweeps.folder import SweepFolder
    from rmbook.sweeps.ledger import count_states
    from rmbook.sweeps.state import read_rows
    from rmbook.sweeps.table import sweep_table, write_table

    rows = read_rows(SweepFolder(sweep))
    table = sweep_table(rows, timing)
    for path in filter(None, (csv, parquet)):
        write_table(table, path)
        typer.echo(f"{len(table)} runs ({_sentence(count_states(rows))}) in {path}")


@app.command(epilog=EMIT)
def emit(
    grid: Grid,
    output: Output,
    settings: Set = None,
    allow_runs: AllowRuns = 100_000,
    slurm_array: Annotated[bool, typer.Option("--slurm-array", help="A batch script for Slurm.")] = False,
    tasks: Annotated[int, typer.Option(help="Most tasks in the array.", min=1)] = 1000,
) -> None:
    """Write the runs of a grid that are not done yet as plain commands."""
    from rmbook.sweeps.folder import SweepFolder
    from rmbook.sweeps.slurm import emit_slurm_array
    from rmbook.sweeps.state import open_ledger

    if not slurm_array:
        raise ConfigError("`rmbook sweep emit` needs --slurm-array, the one form of commands that it writes.")
    runs = _plan(grid, settings, allow_runs)
    place = SweepFolder(output, new=True)
    place.keep_plan(runs)
    open_ledger(place).add(runs, wanted=False)
    script, count = emit_slurm_array(runs, place, tasks)
    typer.echo(f"{count} of {len(runs)} runs in {script.with_name('commands.txt')}; start them: sbatch {script}")


@app.command()
def grids() -> None:
    """List the ready-made grids."""
    from rmbook.sweeps.grid import ready_made

    for name, description in ready_made().items():
        typer.echo(f"{name:<14}{description}")


def _plan(grid: str, settings: list[str] | None, allow_runs: int) -> list:
    from rmbook.sweeps.grid import expand, override, plan, read_grid

    values = parse_pairs(settings or [])
    return plan(expand(override(read_grid(grid), values), allow_runs))


def _sentence(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {state}" for state, number in counts.items() if number) or "no runs"

"""The command line of sweeps: `rmbook sweep run`, `status`, `export`, `emit` and `grids`."""

import contextlib
import sys
from typing import Annotated

import typer

app = typer.Typer(
    help="Many runs: grids that can be stopped and taken up at any moment.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RUN = """\b
Examples:
  rmbook sweep run table1-tiny --output sweeps/tiny        (no network, no GPU)
  rmbook sweep run my_grid.yaml --output sweeps/mine
  rmbook sweep run table1 --output sweeps/table1 --set model=facebook/opt-125m --set data_dir=~/glue
The same command goes on after Ctrl-C, a kill or a full disk; started twice, it shares the work.
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

Grid = Annotated[str, typer.Argument(help="YAML file, or name of a ready-made grid.", show_default=False)]
Sweep = Annotated[str, typer.Argument(help="Folder of a sweep.", show_default=False)]
Output = Annotated[str, typer.Option("--output", help="Folder of the sweep, a new one or one to go on with.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Another value of a setting, or a list as an axis: --set seed=[0,1].", show_default=False
    ),
]


@app.command(epilog=RUN)
def run(
    grid: Grid,
    output: Output,
    settings: Set = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Begin failed runs again.")] = False,
    max_attempts: Annotated[int, typer.Option(help="When workers die or machines fail.", min=1)] = 5,
    lease: Annotated[
        float, typer.Option(help="Seconds after which a process without a sign of life is given up.", min=1)
    ] = 300,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for runs of other processes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing while it runs.")] = False,
) -> None:
    """Perform the runs of a grid that are not done yet, one after the other."""
    with _one_line_errors():
        from rmbook.sweep import Report, run_sweep
        from rmbook.sweep_display import LineReport, LiveReport

        runs = _plan(grid, settings)
        live = sys.stderr.isatty() and not quiet
        with contextlib.nullcontext(Report() if quiet else LineReport()) if not live else LiveReport() as report:
            counts = run_sweep(
                runs,
                output,
                report=report,
                retry_failed=retry_failed,
                wait=not no_wait,
                lease_seconds=lease,
                max_attempts=max_attempts,
            )
        typer.echo(f"{_sentence(counts)}; see {output}")
    if counts["failed"]:
        typer.echo(f"rmbook: why runs failed: rmbook sweep status {output}; again: --retry-failed.", err=True)
        raise typer.Exit(1)


@app.command(epilog=STATUS)
def status(sweep: Sweep) -> None:
    """Say how many runs are in which state, and why runs failed."""
    with _one_line_errors():
        from rmbook.sweep_display import describe_run
        from rmbook.sweep_driver import open_ledger
        from rmbook.sweep_folder import SweepFolder

        ledger = open_ledger(SweepFolder(sweep))
        typer.echo(_sentence(ledger.counts()))
        for row in ledger.rows("leased", "failed"):
            note = row["error"] or f"attempt {row['attempts']}, since {row['claimed']}"
            typer.echo(f"{row['state']}: {describe_run(row['config'])}: {note}")


@app.command(epilog=EXPORT)
def export(
    sweep: Sweep,
    csv: Annotated[str | None, typer.Option(help="File to write.", show_default=False)] = None,
    parquet: Annotated[str | None, typer.Option(help="File to write.", show_default=False)] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Add speed, machine, attempts and messages.")] = False,
) -> None:
    """Write the results as a table: the same bytes for the same runs, however they came about."""
    with _one_line_errors():
        from rmbook.run_config import ConfigError
        from rmbook.sweep_driver import open_ledger
        from rmbook.sweep_folder import SweepFolder
        from rmbook.sweep_table import sweep_table, write_table

        wanted = {".csv": csv, ".parquet": parquet}
        if not any(wanted.values()):
            raise ConfigError("give --csv FILE or --parquet FILE.")
        for ending, path in wanted.items():
            if path and not path.endswith(ending):
                raise ConfigError(f"--{ending[1:]} takes a name that ends in {ending}, got {path}.")
        ledger = open_ledger(SweepFolder(sweep))
        table = sweep_table(ledger.rows(), timing)
        for path in filter(None, wanted.values()):
            write_table(table, path)
            typer.echo(f"{len(table)} runs ({_sentence(ledger.counts())}) in {path}")


@app.command(epilog=EMIT)
def emit(
    grid: Grid,
    output: Output,
    settings: Set = None,
    slurm_array: Annotated[bool, typer.Option("--slurm-array", help="A batch script for Slurm.")] = False,
    tasks: Annotated[int, typer.Option(help="Most tasks in the array.", min=1)] = 1000,
) -> None:
    """Write the runs of a grid that are not done yet as plain commands."""
    with _one_line_errors():
        from rmbook.run_config import ConfigError
        from rmbook.slurm import emit_slurm_array
        from rmbook.sweep_driver import open_ledger
        from rmbook.sweep_folder import SweepFolder

        if not slurm_array:
            raise ConfigError("say what to emit: --slurm-array.")
        runs = _plan(grid, settings)
        place = SweepFolder(output, new=True)
        place.keep_plan(runs)
        open_ledger(place).add(runs, wanted=False)
        script, count = emit_slurm_array(runs, place, tasks)
        typer.echo(f"{count} of {len(runs)} runs in {script.with_name('commands.txt')}; start them: sbatch {script}")


@app.command()
def grids() -> None:
    """List the ready-made grids."""
    with _one_line_errors():
        from rmbook.grids import ready_made

        for name, description in ready_made().items():
            typer.echo(f"{name:<14}{description}")


def _plan(grid: str, settings: list[str] | None) -> list:
    from rmbook.cli import parsed
    from rmbook.grids import expand, override, plan, read_grid

    values = parsed({"settings": settings or []})["settings"]
    return plan(expand(override(read_grid(grid), values)))


def _sentence(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {state}" for state, number in counts.items() if number) or "no runs"


def _one_line_errors():
    from rmbook.cli import one_line_errors  # which mounts this module's commands

    return one_line_errors()

"""The command line of sweeps: `rmbook sweep run`, `status`, `export`, `emit` and `grids`."""

import contextlib
import functools
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
  rmbook sweep run my_grid.yaml --output sweeps/mine --engine ray --workers 4       (four at a time on this machine)
  rmbook sweep run my_grid.yaml --output /mnt/team/mine --engine ray --address auto --gpus-per-run 0.5
  rmbook sweep run my_grid.yaml --output sweeps/mine --halving --budget 20       (at most 20 runs' worth of epochs)
The same command goes on after Ctrl-C, a kill or a full disk; started twice, it shares the work.
Either engine goes on with the other's sweep. On a cluster, the folder, the records and local models must lie on a
file system that all machines share, and all need the same version of rmbook.
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
AllowRuns = Annotated[int, typer.Option("--allow-runs", help="The most runs that the grid may have.", min=1)]


@app.command(epilog=RUN)
def run(
    grid: Grid,
    output: Output,
    settings: Set = None,
    allow_runs: AllowRuns = 100_000,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Begin failed runs again.")] = False,
    max_attempts: Annotated[int, typer.Option(help="When workers die or machines fail.", min=1)] = 5,
    lease: Annotated[
        float, typer.Option(help="Seconds after which a process without a sign of life is given up.", min=1)
    ] = 300,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for runs of other processes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing while it runs.")] = False,
    engine: Annotated[
        str, typer.Option(help="embedded: one run after the other, in this process. Or ray.")
    ] = "embedded",
    workers: Annotated[
        int | None, typer.Option(help="Ray: runs at a time; as many as fit if not given.", min=1)
    ] = None,
    cpus_per_run: Annotated[float | None, typer.Option(help="Ray: CPUs and threads of each; 1 if not given.")] = None,
    gpus_per_run: Annotated[
        float | None, typer.Option(help="Ray: GPUs of each, such as 0.5; 1 if not given, where there are GPUs.", min=0)
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray: auto, HOST:PORT or ray://...; $RAY_ADDRESS, or only this machine, if not given."),
    ] = None,
    halving: Annotated[
        bool, typer.Option("--halving", help="Stop learning rates that others beat after epochs 1, 3, 9 ...")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(help="Spend at most so many runs' worth of epochs in this call; needs --halving or Optuna."),
    ] = None,
    order_seed: Annotated[int, typer.Option(help="Of the order of runs under a budget.", min=0)] = 0,
) -> None:
    """Perform the runs of a grid that are not done yet."""
    with _one_line_errors():
        from rmbook.errors import ConfigError
        from rmbook.sweeps.display import LineListener, LiveListener
        from rmbook.sweeps.local import Listener, run_sweep

        for_ray = {"workers": workers, "cpus_per_run": cpus_per_run, "gpus_per_run": gpus_per_run, "address": address}
        perform_all = _engine(engine, {name: value for name, value in for_ray.items() if value is not None}, run_sweep)

        if halving or budget is not None:
            if engine != "embedded":
                raise ConfigError("--halving and --budget work in one process: leave out --engine.")
            perform_all = functools.partial(run_sweep, halving=halving, budget=budget, seed=order_seed)
        runs = _plan(grid, settings, allow_runs)
        silent = contextlib.nullcontext(Listener() if quiet else LineListener())
        with LiveListener() if sys.stderr.isatty() and not quiet else silent as listener:
            counts = perform_all(
                runs,
                output,
                listener=listener,
                retry_failed=retry_failed,
                wait=not no_wait,
                lease_seconds=lease,
                max_attempts=max_attempts,
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
    with _one_line_errors():
        from rmbook.sweeps.display import describe_run
        from rmbook.sweeps.driver import read_rows
        from rmbook.sweeps.folder import SweepFolder
        from rmbook.sweeps.ledger import STOPPED, count_states

        rows = read_rows(SweepFolder(sweep))
        typer.echo(_sentence(count_states(rows)))
        stopped = [row for row in rows if row["state"] == "pending" and (row["error"] or "").startswith(STOPPED)]
        if stopped:
            typer.echo(f"{len(stopped):,} of the pending ones were stopped early by --halving")
        for row in rows:
            if row["state"] in ("leased", "failed"):
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
        from rmbook.errors import ConfigError
        from rmbook.sweeps.driver import read_rows
        from rmbook.sweeps.folder import SweepFolder
        from rmbook.sweeps.ledger import count_states
        from rmbook.sweeps.table import sweep_table, write_table

        wanted = {".csv": csv, ".parquet": parquet}
        if not any(wanted.values()):
            raise ConfigError("give --csv FILE or --parquet FILE.")
        for ending, path in wanted.items():
            if path and not path.endswith(ending):
                raise ConfigError(f"--{ending[1:]} takes a name that ends in {ending}, got {path}.")
        rows = read_rows(SweepFolder(sweep))
        table = sweep_table(rows, timing)
        for path in filter(None, wanted.values()):
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
    with _one_line_errors():
        from rmbook.errors import ConfigError
        from rmbook.sweeps.driver import open_ledger
        from rmbook.sweeps.folder import SweepFolder
        from rmbook.sweeps.slurm import emit_slurm_array

        if not slurm_array:
            raise ConfigError("say what to emit: --slurm-array.")
        runs = _plan(grid, settings, allow_runs)
        place = SweepFolder(output, new=True)
        place.keep_plan(runs)
        open_ledger(place).add(runs, wanted=False)
        script, count = emit_slurm_array(runs, place, tasks)
        typer.echo(f"{count} of {len(runs)} runs in {script.with_name('commands.txt')}; start them: sbatch {script}")


@app.command()
def grids() -> None:
    """List the ready-made grids."""
    with _one_line_errors():
        from rmbook.sweeps.grid import ready_made

        for name, description in ready_made().items():
            typer.echo(f"{name:<14}{description}")


def _plan(grid: str, settings: list[str] | None, allow_runs: int) -> list:
    from rmbook.cli.options import parsed
    from rmbook.sweeps.grid import expand, override, plan, read_grid

    values = parsed({"settings": settings or []})["settings"]
    return plan(expand(override(read_grid(grid), values), allow_runs))


def _engine(name: str, for_ray: dict, embedded):
    """What performs a sweep."""
    from rmbook.errors import ConfigError, closest

    if name == "ray":
        from rmbook.sweeps.ray_engine import run_sweep_ray

        return functools.partial(run_sweep_ray, **for_ray)
    if name != "embedded":
        raise ConfigError(f"unknown engine {name!r}: {closest(name, ('embedded', 'ray'))}")
    if for_ray:
        raise ConfigError(
            f"--{next(iter(for_ray)).replace('_', '-')} belongs to --engine ray: add that, or leave it out."
        )
    return embedded


def _sentence(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {state}" for state, number in counts.items() if number) or "no runs"


def _one_line_errors():
    from rmbook.cli.errors import one_line_errors

    return one_line_errors()

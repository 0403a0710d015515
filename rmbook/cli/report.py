"""The command line of reports: `rmbook report`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rmbook.cli.options import Sweep, check_outputs, path_flag
from rmbook.files import replacing

REPORT = """\b
Examples:
  rmbook report sweeps/tiny
  rmbook report sweeps/table5 --output book/our_table5.md --csv our_table5.csv
  rmbook report sweeps/local --as OPT-125m        (the one model that is a folder is the paper's)
"""


def report(
    sweep: Sweep,
    output: Annotated[str | None, path_flag("--output", help="Page of the book to write, PAGE.md.")] = None,
    csv: Annotated[str | None, path_flag("--csv", help="File to write, FILE.csv.")] = None,
    model: Annotated[
        str | None, typer.Option("--as", help="The paper's model that a folder holds.", show_default=False)
    ] = None,
) -> None:
    """Say which learning rates were best by dev score, and how their test scores stand beside the paper's."""
    check_outputs({"--output": (output, ".md"), "--csv": (csv, ".csv")})
    from rmbook.sweeps.report import read_runs, summarize
    from rmbook.sweeps.report_page import page, text_report
    from rmbook.sweeps.table import write_table
    from rmbook.sweeps.verdicts import compare

    runs, stamps = read_runs(sweep)
    table = compare(summarize(runs), model)
    name = Path(sweep).resolve().name
    if output:
        again = ["rmbook", "report", name, "--output", Path(output).name, *(["--as", model] if model else [])]
        with replacing(Path(output)) as temporary:  # first what can fail, so that both files are written or none
            temporary.write_text(page(table, stamps, name, shlex.join(again)), "utf-8")
            if csv:
                write_table(table.drop(columns=["config", "local"]), csv)
    elif csv:
        write_table(table.drop(columns=["config", "local"]), csv)
    typer.echo(text_report(table))
    for path in filter(None, (output, csv)):
        typer.echo(f"written: {path}")

"""The command line of reports: `rmbook report`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

REPORT = """\b
Examples:
  rmbook report sweeps/tiny
  rmbook report sweeps/table5 --output book/our_table5.md --csv our_table5.csv
  rmbook report sweeps/local --as OPT-125m        (the one model that is a folder is the paper's)
"""


def report(
    sweep: Annotated[str, typer.Argument(help="Folder of a sweep.", show_default=False)],
    output: Annotated[
        str | None, typer.Option("--output", help="Page of the book to write, PAGE.md.", show_default=False)
    ] = None,
    csv: Annotated[str | None, typer.Option("--csv", help="File to write.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option("--as", help="The paper's model that a folder holds.", show_default=False)
    ] = None,
) -> None:
    """Say which learning rates were best by dev score, and how their test scores stand beside the paper's."""
    from rmbook.cli.errors import one_line_errors

    with one_line_errors():
        from rmbook.errors import ConfigError
        from rmbook.files import replacing
        from rmbook.sweeps.report import read_runs, summarize
        from rmbook.sweeps.report_page import page, text_report
        from rmbook.sweeps.table import write_table
        from rmbook.sweeps.verdicts import compare

        for flag, path, ending in (("--output", output, ".md"), ("--csv", csv, ".csv")):
            if path and not path.endswith(ending):
                raise ConfigError(f"{flag} takes a name that ends in {ending}, got {path}.")
            if path and not Path(path).parent.is_dir():
                raise ConfigError(f"{flag}: the folder {Path(path).parent} does not exist; create it first.")
        runs, stamps = read_runs(sweep)
        table = compare(summarize(runs), model)
        if csv:
            write_table(table.drop(columns=["config", "local"]), csv)
        if output:
            name = Path(sweep).resolve().name
            again = ["rmbook", "report", name, "--output", Path(output).name, *(["--as", model] if model else [])]
            with replacing(Path(output)) as temporary:
                temporary.write_text(page(table, stamps, name, shlex.join(again)), "utf-8")
        typer.echo(text_report(table))
        for path in filter(None, (output, csv)):
            typer.echo(f"written: {path}")

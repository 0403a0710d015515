"""The commands `rmbook record` and `rmbook claims`: making the book's evidence anew."""

import contextlib
import sys
from typing import Annotated

import typer

from rmbook.cli.options import path_flag

RECORD = """\b
Examples:
  rmbook record                                   (lists what can be recorded)
  rmbook record vit_grid vit_scaled
  rmbook record fine_tuning_tiny --data-dir ~/glue
  rmbook record fine_tuning_hub --model facebook/opt-1.3b --task RTE
  rmbook record my_grid.yaml --output sweeps/mine
The same command resumes after Ctrl-C or a kill; started twice, it shares the work.
"""
WEIGHTS = "The packaged weights of the tiny models: they are pretrained anew."


def record(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Grids or YAML files; without any, all names are listed.", show_default=False),
    ] = None,
    output: Annotated[str | None, path_flag("--output", help="Folder of the sweep [in rmbook's cache].")] = None,
    model: Annotated[str | None, path_flag("--model", help="Grids of fine-tuning: another model.")] = None,
    task: Annotated[str | None, typer.Option(help="Grids of fine-tuning: another task.", show_default=False)] = None,
    data_dir: Annotated[
        str | None, path_flag("--data-dir", help="Grids of fine-tuning: folder of the task's original files.")
    ] = None,
) -> None:
    """Run recorded grids anew, and write their results with the stamp of this machine."""
    from rmbook.evidence.grids import recorded_grids
    from rmbook.evidence.record import record_grid
    from rmbook.sweeps.display import LineListener, LiveListener

    if not names:
        described = {grid: content["description"] for grid, content in recorded_grids().items()}
        for grid, description in (described | {"weights": WEIGHTS}).items():
            typer.echo(f"{grid:<18}{description}")
        return
    given = {"model": model, "task": task, "data_dir": data_dir}
    changes = {setting: value for setting, value in given.items() if value is not None}
    for name in names:
        if name == "weights":
            _record_weights()
            continue
        with LiveListener() if sys.stderr.isatty() else contextlib.nullcontext(LineListener()) as listener:
            path = record_grid(name, output, changes, listener=listener)
        typer.echo(f"written: {path}")


def _record_weights() -> None:
    from rmbook.offline import digits, digits_mlp, tiny_language

    command = "rmbook record weights"
    written = [digits.record_weights(base, command) for base in range(digits.BASES)]
    written += [digits_mlp.record_weights(command)]
    written += [tiny_language.record_weights(kind, command) for kind in tiny_language.WEIGHTS]
    typer.echo(f"written: {', '.join(map(str, written))}")


def claims() -> None:
    """Compute the evidence for the paper's claims from the recorded results, and write the ledger and its page."""
    from rmbook.evidence.claim import STATUSES, claims_folder, write_ledger
    from rmbook.evidence.claims import CLAIMS
    from rmbook.evidence.claims_page import PAGE, claims_page

    written = write_ledger(CLAIMS)
    PAGE.write_text(claims_page(written), "utf-8")
    counts = {status: sum(entry["status"] == status for entry in written) for status in STATUSES}
    told = ", ".join(f"{number} {status}" for status, number in counts.items())
    typer.echo(f"{len(written)} claims in {claims_folder()} and {PAGE}: {told}")

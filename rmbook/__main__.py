"""`python -m rmbook`, and `accelerate launch -m rmbook`."""

from rmbook.cli.app import app

app(prog_name="rmbook")

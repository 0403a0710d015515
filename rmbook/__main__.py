"""`python -m rmbook`, and `accelerate launch -m rmbook`."""

from rmbook.cli import interrupt

interrupt.install()  # before anything else is loaded: Ctrl-C ends in one line from here on

from rmbook.cli.app import app  # noqa: E402

app(prog_name="rmbook")

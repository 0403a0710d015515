"""Calling the command line in this process."""

from typer.testing import CliRunner

from rmbook.cli.app import app


def call(*arguments, **keywords):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **keywords)


def refused(answer, *parts):
    assert answer.exit_code == 2, (answer.exit_code, answer.output, answer.exception)
    assert answer.stdout == "" and answer.stderr.startswith("rmbook: ") and answer.stderr.count("\n") == 1
    for part in parts:
        assert part in answer.stderr, answer.stderr

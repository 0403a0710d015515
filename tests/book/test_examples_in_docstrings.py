"""The examples in the docstrings of the public names are right."""

import doctest
import importlib

import pytest

import rmbook

HOMES = sorted({f"rmbook.{home}" for home in rmbook._HOMES.values()})


@pytest.mark.parametrize("home", HOMES)
def test_examples_give_what_they_say(home):
    failed, _ = doctest.testmod(importlib.import_module(home))
    assert failed == 0


def test_what_can_be_shown_in_a_few_lines_is_shown():
    shown = {name for name in rmbook.__all__ if ">>> " in getattr(rmbook, name).__doc__}
    assert len(shown) >= 12 and {"apply_random_mask", "sample_mask", "apply_method", "save_adapter"} <= shown

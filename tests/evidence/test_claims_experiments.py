"""Each check of the experiments' claims says no in worlds that contradict its claim, and can say yes.

The worlds are tables of runs, as the recorded grids hold them: made here, so that the truth in them is known.
"""

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest

from rmbook.evidence import claim_evidence as evidence
from rmbook.evidence import claim_scores as scores
from rmbook.evidence.claims import CLAIMS

DENSITIES = (1.0, 0.1, 0.01, 0.003, 0.001)
RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def best_rate(density: float | None) -> float:
    """The law: 1e-3 over the density; full fine-tuning's is 1e-3."""
    return 1e-3 / (density or 1.0)


def world(axes, law=best_rate, score=lambda cell: 90.0, distance=lambda cell: cell["law"] * 1e4, bases=5, noise=0.5):
    """A table of runs: accuracy falls by 20 points a decade from the best rate of each method and density.

    Args:
        axes: more than one value of a setting of `PLAIN`.
        law: gives the best rate of a density, None for full fine-tuning.
        score: gives the accuracy at the best rate, from a cell's settings.
        distance: likewise, the distance there.
        bases: pretrained models, two seeds each.
        noise: standard deviation between bases and between runs, in points.
    """
    random, rows = np.random.default_rng(0), []
    axes = {name: [value] for name, value in PLAIN.items()} | axes
    cells = [
        {"method": "mask" if density else "full", "density": density or np.nan, "law": law(density)}
        | dict(zip(axes, values, strict=True))
        for density in (None, *DENSITIES)
        for values in itertools.product(*axes.values())
    ]
    for base in range(bases):
        shift = noise * random.standard_normal()
        for cell in cells:
            for rate in RATES:
                off = abs(np.log10(rate / cell["law"]))
                for seed in (0, 1):
                    right = score(cell) - 20 * off + shift + noise * random.standard_normal()
                    rows.append(
                        cell
                        | {"learning_rate": rate, "base": base, "seed": seed, "scale": 1.0, "status": "completed"}
                        | {"dev_accuracy": right, "test_accuracy": right, "dev_loss": 1 - right / 100}
                        | {"distance": distance(cell) * np.exp(0.1 * random.standard_normal())}
                        | {"ratio": 0.01, "trainable": 10, "seconds": 1.0}
                        | {f"hessian_{when}": (100 * np.nan_to_num(cell["density"], nan=1.0)) for when in WHEN}
                        | {"curve": curve(steps=1600, rise=10.0, random=random, noise=noise)}
                    )
    return pd.DataFrame(rows)


WHEN = ("before", "after")


def curve(steps, rise, random, noise) -> list[float]:
    """Accuracies after each 25 steps: `rise` points more at each doubling, from 100 steps on."""
    passed = np.arange(25, steps + 1, 25)
    return list(50 + rise * np.log2(passed / 100) + noise * random.standard_normal(len(passed)))


PLAIN = {"choice": "entries", "start": "pretrained", "steps": 200, "train_size": 50}


def noise(axes):
    """What was measured has nothing to do with what was run."""
    return _noise(world(axes))


def _noise(table):
    table, random = table.copy(), np.random.default_rng(3)
    right = 70 + 10 * random.standard_normal(len(table))
    table["test_accuracy"] = table["dev_accuracy"] = right
    table["dev_loss"] = 1 - right / 100
    table["distance"] = np.exp(random.standard_normal(len(table)))
    for when in WHEN:
        table[f"hessian_{when}"] = np.exp(random.standard_normal(len(table)))
    table["curve"] = [list(70 + 10 * random.standard_normal(64)) for _ in range(len(table))]
    return table


def shuffled(axes):
    """Each run's numbers belong to another run."""
    table = world(axes)
    order = np.random.default_rng(4).permutation(len(table))
    measured = ["test_accuracy", "dev_accuracy", "dev_loss", "distance", *(f"hessian_{when}" for when in WHEN), "curve"]
    return table.assign(**{name: table[name].to_numpy()[order] for name in measured})


def equal(axes):
    """The density plays no part: as if all masks were the same."""
    flat = world(axes, law=lambda density: 1e-2, distance=lambda cell: 1.0)
    return flat.assign(**{f"hessian_{when}": 100.0 for when in WHEN}, curve=[[70.0] * 64] * len(flat))


def score(where, better, other=70.0):
    """A world in which the cells of `where` score `better`, all others `other`."""
    return lambda axes: world(axes, score=lambda cell: better if where(cell) else other)


def is_mask(cell):
    return cell["method"] == "mask"


def is_full(cell):
    return cell["method"] == "full"


def flat_rate(axes):
    """The learning rate is ignored: all rates score alike."""
    return world(axes).assign(test_accuracy=90.0, dev_accuracy=90.0, dev_loss=0.1)


def one_jump(axes):
    """Accuracy rises in the first hundred steps alone, and falls a little then."""
    flat = world(axes)
    flat["curve"] = [[10.0] * 3 + [90 - 0.1 * step for step in range(61)] for _ in range(len(flat))]
    return flat


def slow_not_worse(axes):
    """New weights are behind after the short run, and level after the long one."""
    return world(axes, score=lambda cell: 50.0 if cell["start"] == "new" and cell["steps"] == 200 else 90.0)


def gains(full, mask):
    """Points that each method gains from more data."""
    return lambda axes: world(
        axes, score=lambda cell: 60 + (cell["train_size"] == 1297) * (full if is_full(cell) else mask)
    )


def level(axes):
    return world(axes, score=lambda cell: 70.0)


def at_the_best_rate(check):
    """A grid whose runs are at the best rates alone, as the Hessian's is."""
    return lambda table: check(table[table["learning_rate"] == table["law"]])


STARTS = {"start": ["pretrained", "shuffled", "new"], "steps": [200, 1000]}
CHOICES = {"choice": ["entries", "columns"]}
SIZES = {"train_size": [50, 1297]}
is_columns, is_pretrained = (lambda cell: cell["choice"] == "columns"), (lambda cell: cell["start"] == "pretrained")
hessian = at_the_best_rate(partial(evidence.hessian_falls, when="before"))
# The check, the axes of its grid, a world in which its claim is true, and worlds in which it is false.
WORLDS = {
    "hessian_falls": (hessian, {}, world, [noise, shuffled, equal]),
    "distance_rises": (evidence.distance_rises, {}, world, [noise, shuffled, equal]),
    "steps_make_up": (evidence.steps_make_up, {}, world, [noise, equal, one_jump]),
    "small_rate_catches_up": (
        lambda table: evidence.small_rate_catches_up(*(table[table["steps"] == steps] for steps in (1600, 200))),
        {"steps": [200, 1600]},
        score(lambda cell: cell["steps"] == 1600, 130.0, 90.0),  # a rate of a hundredth of the best costs 40 points
        [noise, shuffled, level, equal],
    ),
    "structure_costs": (
        scores.structure_costs,
        CHOICES,
        score(is_columns, 60.0),
        [noise, shuffled, level, flat_rate, score(is_columns, 80.0)],
    ),
    "structure_falls_faster": (
        scores.structure_falls_faster,
        CHOICES,
        score(lambda cell: is_columns(cell) and cell["density"] == 0.001, 40.0),
        [noise, shuffled, level, flat_rate, score(is_columns, 60.0)],
    ),
    "pretraining_matters": (
        scores.pretraining_matters,
        STARTS,
        score(is_pretrained, 90.0),
        [noise, shuffled, level, flat_rate, slow_not_worse],
    ),
    "data_helps_full": (
        scores.data_helps_full,
        SIZES,
        gains(20, 10),
        [noise, shuffled, flat_rate, gains(10, 10), gains(10, 20)],
    ),
    "sparse_wins_with_few_data": (
        scores.sparse_wins_with_few_data,
        {},
        score(is_mask, 90.0),
        [noise, shuffled, level, flat_rate, score(is_full, 90.0)],
    ),
    "rates_rise": (evidence.rates_rise, {}, world, [noise, shuffled, equal, flat_rate]),
    "masks_match": (
        partial(scores.masks_match, density=0.1),
        {},
        level,
        [noise, shuffled, score(is_full, 75.0), score(is_mask, 75.0)],
    ),
    "others_break": (partial(scores.others_break, rate=1e-1), {}, world, [noise, shuffled, equal, flat_rate]),
}
CASES = [(name, number) for name, (*_, worlds) in WORLDS.items() for number in range(len(worlds))]


@pytest.mark.parametrize("name", WORLDS)
def test_the_check_says_yes_where_the_claim_is_true(name):
    check, axes, true, _ = WORLDS[name]
    found = check(true(axes))
    assert found.holds and found.unit == "bases" and found.bases == 5 and found.seeds == 2


@pytest.mark.parametrize("name, number", CASES)
def test_the_check_says_no_where_it_is_false(name, number):
    check, axes, _, worlds = WORLDS[name]
    assert not check(worlds[number](axes)).holds


OPPOSITE = {
    "small_rate_catches_up": level,
    "sparse_wins_with_few_data": score(is_full, 90.0),
    "data_helps_full": gains(10, 30),
    "structure_costs": score(is_columns, 90.0),
    "masks_match": score(is_full, 90.0),
    "rates_rise": equal,
}


@pytest.mark.parametrize("name", OPPOSITE)
def test_the_opposite_is_called_contradicted_and_not_merely_unknown(name):
    check, axes, _, _ = WORLDS[name]
    assert check(OPPOSITE[name](axes)).verdict == "contradicted"


@pytest.mark.parametrize("name", WORLDS)
def test_one_run_of_one_base_is_inconclusive_whatever_it_says(name):
    check, axes, true, _ = WORLDS[name]
    assert check(true(axes).query("base == 0 and seed == 0")).verdict == "inconclusive"


def test_every_claim_that_rests_on_recorded_runs_has_its_worlds():
    used = {claim.measure.args[0] for claim in CLAIMS if claim.records}
    assert used == set(WORLDS)

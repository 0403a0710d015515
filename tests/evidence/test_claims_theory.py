"""Each check of the theory's claims says yes in this world, and no in one that contradicts its claim."""

from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from rmbook.evidence import claim_theory as evidence
from rmbook.paper.tables import load_paper_table
from rmbook.theory.bounds import theorem_5_1, theorem_5_1_as_printed
from rmbook.theory.descent import gradient_descent
from rmbook.theory.regression import ColumnMasks


def all_ones(width, densities, seeds):
    """Masks that keep every column, whatever the density."""
    return ColumnMasks(width, np.ones_like(densities), seeds)


def one_coin(p, scaled):
    """One coin for all columns instead of one for each."""
    total = scaled.sum()
    return float(np.logaddexp(np.log(p) + (1 - p) * total, np.log1p(-p) - p * total))


def twice_as_far(p, scaled):
    """Entries of the mask are 0 or 2."""
    return evidence.log_mean_of_coins(p, 2 * scaled)


def every_column(features, targets, masks, *others):
    """Gradient descent that trains all columns, whatever the mask."""
    return gradient_descent(features, targets, all_ones(masks.width, masks.densities, masks.seeds), *others)


def one_rate(features, targets, masks, rate, *others):
    """Gradient descent that ignores its learning rate."""
    return gradient_descent(features, targets, masks, np.full_like(rate, 1e-3), *others)


def no_step(features, targets, masks, rate, *others):
    """Gradient descent that does not move."""
    return gradient_descent(features, targets, masks, np.full_like(rate, 1e-12), *others)


def no_noise(generator, shape):
    return np.zeros(shape)


def half_the_noise(generator, shape):
    return evidence.gaussian(generator, shape) / 2**0.5


def shuffled(column, number):
    """A printed table whose column has lost its order."""
    table = load_paper_table(number)
    table[column] = np.random.default_rng(0).permutation(table[column].to_numpy())
    return table


def same_rates(number):
    """A printed table in which every method has the same rate."""
    return load_paper_table(number).assign(learning_rate=0.1)


def models_exchanged(number):
    """A printed table in which the smallest model has the largest one's scores and the other way round."""
    return load_paper_table(number).replace({"model": {"OPT-125m": "OPT-13b", "OPT-13b": "OPT-125m"}})


def with_places(masking, path):
    """An adapter file that holds each place beside its value."""
    places, values = np.zeros(masking.trainable, np.int64), np.zeros(masking.trainable, np.float32)
    save_file({"places": places, "values": values}, path)


# The claim as it is checked, then the worlds in which it is false.
WORLDS = {
    "eigenvalues_follow_density": (evidence.eigenvalues_follow_density, [{"draw": all_ones}]),
    "theorem_5_1": (evidence.corrected_theorem_holds, [{"draw": all_ones}, {"bound": theorem_5_1_as_printed}]),
    "proposition_5_2": (
        evidence.border_is_sharp,
        [{"descend": every_column}, {"descend": one_rate}, {"descend": no_step}],
    ),
    "proposition_5_3": (
        evidence.distance_bound_holds,
        [{"descend": every_column}, {"descend": no_step}, {"noise": no_noise}, {"noise": half_the_noise}],
    ),
    "lemma_a_1": (evidence.generating_function_is_bounded, [{"log_mean": one_coin}, {"log_mean": twice_as_far}]),
    "table_6_slopes": (partial(evidence.slopes_of, 6), [{"load": partial(shuffled, "learning_rate")}]),
    "table_9_slopes": (partial(evidence.slopes_of, 9), [{"load": partial(shuffled, "learning_rate")}]),
    "table_7_rates": (evidence.baselines_want_small_rates, [{"load": same_rates}]),
    "larger_models_sparser_masks": (
        partial(evidence.printed_averages, 1e-5, 1e-3),
        [{"load": models_exchanged}, {"load": partial(shuffled, "score")}],
    ),
    "stored_compactly": (evidence.stored_compactly, [{"save": with_places}]),
}
CASES = [(name, world) for name, (_, worlds) in WORLDS.items() for world in worlds]


@pytest.mark.parametrize("name", WORLDS)
def test_the_claim_holds_here(name):
    assert WORLDS[name][0]().holds


@pytest.mark.parametrize("name, world", CASES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)])
def test_the_check_says_no_in_a_world_that_contradicts_the_claim(name, world):
    assert not WORLDS[name][0](**world).holds


def test_the_printed_theorem_fails_and_would_hold_without_its_slip():
    """The one claim that is contradicted: its check can say yes."""
    assert not evidence.printed_theorem_fails().holds
    assert evidence.printed_theorem_fails(bound=theorem_5_1).holds


def test_a_constant_that_is_a_little_too_small_is_found():
    """The checks of a bound are sharp: Lemma A.1 to a per cent, Theorem 5.1 where its bound is halved twice."""
    larger = evidence.generating_function_is_bounded(lambda p, a: 1.01 * evidence.log_mean_of_coins(p, a))
    smaller = evidence.corrected_theorem_holds(lambda *sizes: theorem_5_1(*sizes) * 0.4)
    assert not larger.holds and not smaller.holds

"""Masks by a score: counts, and scores against closed forms."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rmbook.engine.masking import apply_random_mask
from rmbook.engine.targets import TargetError
from rmbook.evidence.mask_choices import (
    DRAWN,
    OF_GRADIENTS,
    OF_WEIGHTS,
    choose_masks,
    largest_scores,
    squared_gradients,
)
from rmbook.training.objectives import Objective

densities = st.floats(0, 1)


def test_drawn_masks_depend_on_seed_and_name():
    for choice, draw in DRAWN.items():
        digests = {draw((40, 30), 0.2, seed, name).digest() for seed in (0, 1) for name in ("a", "b")}
        assert len(digests) == 4, choice
        assert draw((40, 30), 0.2, 0, "a").digest() in digests


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), densities)
def test_the_largest_scores_are_chosen(numbers, density):
    scores = torch.tensor([numbers], dtype=torch.float32)
    chosen = largest_scores(scores, density).dense()
    assert chosen.sum() == int(len(numbers) * density)
    if chosen.any() and not chosen.all():
        assert scores[chosen].min() >= scores[~chosen].max()


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="not a number"):
        largest_scores(torch.tensor([[1.0, float("nan")]]), 0.5)


class SquaredError(Objective):
    """Loss of a linear model: examples are pairs (x, y)."""

    def loss(self, model, examples):
        return sum(((model(x) - y) ** 2).sum() / 2 for x, y in examples)


def linear_problem():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 3)}).double()
    model.forward = lambda x: model["first"](x)
    return model, [(torch.randn(4).double(), torch.randn(3).double()) for _ in range(5)]


def test_squared_gradients_have_the_closed_form_of_least_squares():
    model, data = linear_problem()
    model["first"].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    scores = squared_gradients(model, ["first"], SquaredError(), data)["first"]
    weight, bias = model["first"].weight.detach(), model["first"].bias
    expected = sum(torch.outer(weight @ x + bias - y, x) ** 2 for x, y in data) / len(data)
    assert torch.allclose(scores, expected, rtol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model["first"].weight.requires_grad and not model["first"].bias.requires_grad
    assert model["first"].weight.grad is None


@pytest.mark.parametrize("choice", [*DRAWN, *OF_WEIGHTS, *OF_GRADIENTS])
def test_every_choice_gives_about_the_same_count(choice):
    model, data = linear_problem()
    model["second"] = nn.Linear(30, 20).double()
    model.forward = lambda x: model["first"](x) + model["second"](torch.ones(30).double())[:3]
    masks = choose_masks(model, ["first", "second"], choice, 0.3, seed=1, objective=SquaredError(), data=data)
    assert {name: mask.shape for name, mask in masks.items()} == {"first": (3, 4), "second": (20, 30)}
    expected = 0.3 * 600
    assert abs(masks["second"].nnz - expected) <= (5 * (0.7 * expected) ** 0.5 if choice == "entries" else 1)


def test_large_and_small_are_opposite_ends():
    model, data = linear_problem()
    given_ = {"objective": SquaredError(), "data": data}
    magnitude = model["first"].weight.detach().abs()
    large, small = (
        choose_masks(model, ["first"], f"{end}_weights", 0.25)["first"].dense() for end in ("large", "small")
    )
    assert magnitude[large].min() >= magnitude[~large].max() and magnitude[small].max() <= magnitude[~small].min()
    scores = squared_gradients(model, ["first"], SquaredError(), data)["first"]
    steep = choose_masks(model, ["first"], "large_gradients", 0.25, **given_)["first"].dense()
    assert scores[steep].min() >= scores[~steep].max()
    ratio = scores.sqrt() / magnitude
    moved = choose_masks(model, ["first"], "gradient_to_weight", 0.25, **given_)["first"].dense()
    assert ratio[moved].min() >= ratio[~moved].max()


def test_principal_weights_are_the_largest_of_the_low_rank_part():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(32, 16)})  # a rank of 2
    strong, noise = torch.outer(torch.arange(16.0), torch.ones(32)), 5 * torch.randn(16, 32)
    model["first"].weight.data.copy_(strong + noise)
    left, values, right = torch.linalg.svd(model["first"].weight.detach(), full_matrices=False)
    part = ((left[:, :2] * values[:2]) @ right[:2]).abs()
    chosen = choose_masks(model, ["first"], "principal_weights", 0.1)["first"].dense()
    assert part[chosen].min() >= part[~chosen].max()
    assert not torch.equal(chosen, choose_masks(model, ["first"], "large_weights", 0.1)["first"].dense())


def test_entries_are_the_masks_of_apply_random_mask():
    model, _ = linear_problem()
    mask = choose_masks(model, ["first"], "entries", 0.5, seed=3)["first"]
    masking = apply_random_mask(model, ["first"], density=0.5, seed=3)
    assert masking.layers["first"].mask.digest() == mask.digest()


def test_bad_choices_are_named():
    model, _ = linear_problem()
    with pytest.raises(ValueError, match="must be one of entries, columns.*'diagonal'"):
        choose_masks(model, ["first"], "diagonal", 0.5)
    with pytest.raises(ValueError, match="needs an objective and data"):
        choose_masks(model, ["first"], "large_gradients", 0.5)
    with pytest.raises(TargetError):
        choose_masks(model, ["third"], "rows", 0.5)

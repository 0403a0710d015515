"""Logistic regression and two layers under masks: single runs against torch.optim, Hessians against autograd."""

import pytest
import torch

from rmbook.theory.networks import Problem, logistic_regression, masks, sharpness, train_masked, two_layers


@pytest.fixture
def small():
    torch.manual_seed(0)
    inputs, labels = torch.randn(20, 6), (torch.rand(20) < 0.5).float()
    return Problem(lambda weights, given: torch.tanh(given @ weights), inputs, labels, torch.randn(6))


@pytest.mark.parametrize("method", ["descent", "adam"])
def test_every_run_of_a_map_is_the_one_that_torchs_optimiser_makes(small, method):
    densities, rates = [1.0, 0.5], [0.01, 0.3]
    runs = train_masked(small, densities, rates, [0, 2, 7], method=method, seed=3)
    kinds = {"descent": torch.optim.SGD, "adam": torch.optim.Adam}
    for i, rate in enumerate(rates):
        for j, kept in enumerate(masks(small, densities, 3)):
            weights = small.start.clone().requires_grad_()
            optimiser, losses = kinds[method]([weights], lr=rate), []
            for _ in range(8):
                loss = small.loss(weights, small.inputs, small.labels)
                losses.append(loss.item())
                optimiser.zero_grad()
                loss.backward()
                weights.grad *= kept
                if len(losses) < 8:
                    optimiser.step()
            torch.testing.assert_close(runs.losses[i, j], torch.tensor(losses)[[0, 2, 7]], rtol=1e-4, atol=1e-5)
            distance = (weights.detach() - small.start).norm()
            torch.testing.assert_close(runs.distances[i, j], distance, rtol=1e-4, atol=1e-5)


def test_masks_of_a_seed_lie_within_each_other_and_sharpness_is_their_hessians(small):
    nested = masks(logistic_regression(), [0.1, 0.5, 1.0], 0)
    assert (nested.diff(dim=0) >= 0).all() and nested[2].all() and 30 < nested[0].sum() < 75
    hessian = torch.autograd.functional.hessian(lambda w: small.loss(w, small.inputs, small.labels), small.start)
    kept = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    own = torch.linalg.eigvalsh(hessian * kept * kept[:, None])
    assert sharpness(small, kept) == pytest.approx(float(own[own.abs().argmax()]), rel=1e-3)


def test_minibatches_of_all_examples_are_plain_descent_and_diverged_runs_are_infinite(small):
    whole = train_masked(small, [0.5], [0.1], [0, 3])
    parts = train_masked(small, [0.5], [0.1], [0, 3], batch=20)
    torch.testing.assert_close(whole.losses, parts.losses)
    line = Problem(lambda weights, given: (given @ weights) ** 3, small.inputs, small.labels, small.start)
    assert train_masked(line, [1.0], [1e6], [0, 5]).losses[0, 0, -1] == torch.inf
    for wrong in ({"method": "newton"}, {"steps": [1, 2]}, {"steps": [0, 3, 2]}):
        with pytest.raises(ValueError, match="descent or adam"):
            train_masked(small, [1.0], [0.1], **{"steps": [0, 1]} | wrong)


def test_the_network_is_pretrained_upright_and_has_something_to_learn_on_mirrored_digits():
    problem = two_layers()
    upright = logistic_regression().labels
    assert torch.equal(problem.labels, upright)
    mirrored = float(problem.loss(problem.start, problem.inputs, problem.labels))
    flipped = problem.inputs.view(-1, 8, 8).flip(-1).flatten(1)
    assert float(problem.loss(problem.start, flipped, problem.labels)) < mirrored - 0.1

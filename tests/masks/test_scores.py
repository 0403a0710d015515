"""Scores from a weight and its gradient: closed forms, and what does not matter for them."""

import pytest
import torch

from rmbook.masks.scores import gradient_to_weight, principal_weights


def test_principal_weights_are_those_of_the_nearest_matrix_of_the_rank():
    torch.manual_seed(0)
    one, two = torch.outer(torch.randn(6), torch.randn(4)), torch.outer(torch.randn(6), torch.randn(4))
    torch.testing.assert_close(principal_weights(one, 1), one.abs())  # nothing is lost
    torch.testing.assert_close(principal_weights(one + two, 2), (one + two).abs())
    weight = torch.randn(6, 4)
    torch.testing.assert_close(principal_weights(weight, 4), weight.abs())
    lost = [weight.square().sum() - principal_weights(weight, rank).square().sum() for rank in (1, 2, 3)]
    values = torch.linalg.svdvals(weight).square()
    torch.testing.assert_close(torch.stack(lost), torch.stack([values[rank:].sum() for rank in (1, 2, 3)]))
    torch.testing.assert_close(principal_weights(-weight.T, 2), principal_weights(weight, 2).T)


def test_rank_reduction_moves_the_largest_entries():
    weight = 0.1 * torch.ones(8, 8)  # a pattern of rank 1, and one outlier that is none of it
    weight[:, 0] = 0.3
    weight[5, 7] = 0.35
    assert weight.abs().argmax() == 5 * 8 + 7
    assert principal_weights(weight, 1).argmax() % 8 == 0  # in the large column
    for rank in (0, 9, -1):
        with pytest.raises(ValueError, match="rank must be 1"):
            principal_weights(weight, rank)


def test_the_ratio_has_no_number_that_cannot_be_ranked():
    gradient, weight = torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[-4.0, 1.0], [0.0, 0.0]])
    assert gradient_to_weight(gradient, weight).tolist() == [[0.25, 2.0], [0.0, float("inf")]]
    with pytest.raises(ValueError, match="its weight's shape"):
        gradient_to_weight(gradient[0], weight)

"""x S^T alone: equal to a dense product, and taken where the rule and the precision allow it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rmbook import sample_mask
from rmbook.engine import borrowed
from rmbook.engine.sparse_product import cheapest_way, sparse_linear
from rmbook.evidence.recording import load_recorded


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_sparse_product_equals_the_dense_one(tokens, out, width, density, seed):
    mask, generator = sample_mask((out, width), density, seed, "w"), torch.Generator().manual_seed(seed)
    delta = torch.randn(mask.nnz, dtype=torch.float64, generator=generator)
    x = torch.randn(2, tokens, width, dtype=torch.float64, generator=generator)
    dense = torch.zeros(out * width, dtype=torch.float64).index_copy(0, mask.positions.long(), delta)
    wanted = x @ dense.view(out, width).t()
    torch.testing.assert_close(sparse_linear(x, delta, mask.row_starts, mask.columns), wanted, rtol=0, atol=1e-12)


SHAPE = 640, 768  # so large that the rule adds for one token


def one_layer(dtype, bias=True, transposed=False):
    torch.manual_seed(0)
    layer, mask = nn.Linear(SHAPE[1], SHAPE[0], bias=bias, dtype=dtype), sample_mask(SHAPE, 0.1, 0, "w")
    delta = torch.randn(mask.nnz, dtype=torch.promote_types(dtype, torch.float32))
    plain = layer.weight.detach().clone()
    both = plain.view(-1).to(delta.dtype).index_add(0, mask.positions.long(), delta).view(SHAPE)
    if transposed:
        layer.weight = nn.Parameter(plain.t().contiguous())
    return layer, delta, borrowed.BorrowedMask([mask], transposed, "torch"), both


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (3, 1), (2,), (1, 2), (200, 1)])
def test_both_ways_of_a_borrowing_layer_are_the_dense_product(sizes, bias, transposed):
    """Sequences of one token add, if there are few; all others merge."""
    layer, delta, mask, both = one_layer(torch.float64, bias, transposed)
    x, before = torch.randn(*sizes, SHAPE[1], dtype=torch.float64), layer.weight.detach().clone()
    where = mask.positions, mask.row_starts, mask.mask.columns, transposed
    with torch.no_grad():
        outputs = [borrowed.forward(x, layer.weight, layer.bias, delta, *where, way=way) for way in ("merge", "add")]
        outputs.append(borrowed.masked_linear(x, layer, delta, mask))
    for output in outputs:
        torch.testing.assert_close(output, F.linear(x, both, layer.bias), rtol=0, atol=1e-11)
    assert torch.equal(outputs[2], outputs[1 if sizes in ((1,), (3, 1)) else 0])
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(layer.weight, before)


def test_gradients_do_not_depend_on_the_way_forward():
    layer, delta, mask, both = one_layer(torch.float64)
    assert cheapest_way(SHAPE, 2, len(delta), "plain") == "add"
    x, gradient = torch.randn(2, 1, SHAPE[1], dtype=torch.float64), torch.randn(2, 1, SHAPE[0], dtype=torch.float64)
    x.requires_grad_()
    delta.requires_grad_()
    layer.weight.requires_grad_(False)
    found = torch.autograd.grad(borrowed.masked_linear(x, layer, delta, mask), (x, delta, layer.bias), gradient)
    both.requires_grad_()
    wanted = list(torch.autograd.grad(F.linear(x, both, layer.bias), (x, both, layer.bias), gradient))
    wanted[1] = wanted[1].view(-1)[mask.positions]
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-11)


def test_in_16_bits_one_token_sees_the_rounded_weight_that_was_trained():
    layer, delta, mask, both = one_layer(torch.bfloat16)
    x = torch.randn(1, SHAPE[1], dtype=torch.bfloat16)
    with torch.no_grad():
        output = borrowed.masked_linear(x, layer, delta, mask)
        assert torch.equal(output, F.linear(x, both.bfloat16(), layer.bias))


def test_the_rule_names_the_way_that_was_measured_to_be_the_cheaper():
    rows = load_recorded("benchmarks/sparse_product_cpu")["rows"]
    for kind, weight in (("float32", "plain"), ("nf4", "bitsandbytes"), ("torchao", "torchao")):
        times = []
        for row in rows[kind]:
            way = cheapest_way((row["width"], row["width"]), row["tokens"], row["nnz"], weight)
            times.append([row["base"] + cost for cost in (row[way], row["merge"], row["add"])])
        chosen, merged, added = np.log(times).mean(0)
        assert chosen <= np.log([min(t) for t in times]).mean() + 0.05 and chosen <= min(merged, added)
    costs = [cheapest_way((2048, 2048), tokens, 4194, "torchao") for tokens in (1, 10, 100, 1000, 10000)]
    assert costs == sorted(costs) and len(set(costs)) == 2  # "add" for few tokens, then "merge"

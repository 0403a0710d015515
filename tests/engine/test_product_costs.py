"""The rule that chooses a way for the sampled product on a GPU."""

import pytest
import torch

from rmbook.engine.product_costs import GATHER, RATE, cheapest_way, crossover_density, product_seconds
from rmbook.evidence.recording import load_recorded

TOKENS = 4096


@pytest.mark.parametrize("dtype", RATE)
@pytest.mark.parametrize("width", [768, 2048, 5120])
def test_dense_is_chosen_from_the_crossover_on_and_nowhere_below(width, dtype):
    shape, numel = (width, width), width * width
    crossover = round(crossover_density(shape, TOKENS, dtype) * numel)
    chosen = [cheapest_way(shape, TOKENS, k, dtype) for k in (1, crossover - 1, crossover, numel)]
    assert [way == "dense" for way in chosen] == [False, False, True, True]


def test_a_handful_of_entries_is_read_in_place():
    assert cheapest_way((2048, 2048), TOKENS, 42, torch.bfloat16) == "direct"
    assert cheapest_way((2048, 2048), TOKENS, 4200, torch.bfloat16) == "transposed"


@pytest.mark.parametrize("dtype", RATE)
def test_wide_layers_approach_the_crossover_of_bytes_against_operations(dtype):
    limit = 2 * GATHER / (dtype.itemsize * RATE[dtype])
    narrow, wide = (crossover_density((n, n), 2**20, dtype) for n in (768, 65536))  # so many that launches are nothing
    assert abs(wide / limit - 1) < 0.05 and narrow < 0.9 * limit  # narrow ones pay more for the copies


@pytest.mark.parametrize("dtype", RATE)
def test_more_work_never_costs_less(dtype):
    small = product_seconds((768, 512), 100, 30, dtype)
    for larger in (((769, 512), 100, 30), ((768, 513), 100, 30), ((768, 512), 101, 30), ((768, 512), 100, 31)):
        assert all(seconds >= small[way] for way, seconds in product_seconds(*larger, dtype).items())


def test_the_rule_chooses_what_was_fastest_on_a_gpu_and_predicts_its_time():
    rows = load_recorded("benchmarks/products_gpu")["rows"]
    assert len(rows) == 48  # two dtypes, three widths, eight densities
    for row in rows:
        dtype = getattr(torch, row["dtype"].removeprefix("torch."))
        sizes = tuple(row["shape"]), row["tokens"], row["nnz"], dtype
        measured = {way: row["seconds"][way] for way in product_seconds(*sizes) if way in row["seconds"]}
        chosen = cheapest_way(*sizes)
        assert chosen == min(measured, key=measured.get)
        for way in ("transposed", "dense"):  # the border that matters lies between these
            assert 0.7 < product_seconds(*sizes)[way] / measured[way] < 1.4

"""The two ways of a masked layer that does not keep W + S in its weight, without gradients.

`rmbook.engine.sparse_product.cheapest_way` chooses between them.

    python benchmarks/sparse_product.py [--kinds float32 nf4 torchao] [--rounds 15] [--write]

For each width, density and number of tokens, the base alone, the product with W + S ("merge": in the weight, or in a
dequantised copy), and the base's product plus a sparse one ("add") take turns, in the processor time of one thread.
What each way costs beyond the base, in the median over rounds, gives the constants of the rule by a robust fit of
relative errors:

    merge - base = MATRIX * out * in + WRITE * nnz
    add - base   = CALL + nnz * (ENTRY + ADD * tokens) + OUTPUT * tokens * out

Printed are they, and how the way that the rule in the code names compares with the faster one. Needs bitsandbytes and
torchao for their kinds.
"""

import argparse
import itertools
import math
import statistics
import time
from functools import partial

import numpy
import torch
from quantised import library_of, library_versions, make_base
from recorded import write_result
from scipy.optimize import least_squares
from torch import nn

from rmbook import sample_mask
from rmbook.engine import borrowed, quantised_product
from rmbook.engine.quantised import QuantisedLinear
from rmbook.engine.sparse_product import cheapest_way

WIDTHS, DENSITIES, TOKENS = (1024, 2048), (1e-1, 1e-2, 1e-3, 1e-4), (1, 4, 16, 64)


def make_layer(kind: str, width: int) -> nn.Module:
    """The base layer."""
    return nn.Linear(width, width) if kind == "float32" else make_base(kind, width)


def ways_of(kind: str, base: nn.Module, density: float, x: torch.Tensor) -> tuple[dict, int]:
    """The base alone and both ways, as functions; and how many entries the mask has."""
    mask = sample_mask((base.out_features, base.in_features), density, 0, "w")
    delta = torch.randn(mask.nnz).mul_(0.01)
    if kind == "float32":
        given = base.weight, base.bias, delta, mask.positions.long(), mask.row_starts, mask.columns, False
        ways = {way: partial(borrowed.forward, x, *given, way=way) for way in ("merge", "add")}
    else:
        layer = QuantisedLinear.attach(make_base(kind, base.in_features), mask)
        layer.values.data = delta

        def merge():
            copy = quantised_product.merged_copy(layer, x.dtype, delta, layer)
            return nn.functional.linear(x, copy, layer.bias)

        ways = {"merge": merge, "add": lambda: quantised_product.added(x, layer, delta, layer)}
    return {"base": lambda: base(x), **ways}, mask.nnz


@torch.no_grad()
def measure(kind: str, width: int, rounds: int) -> list[dict]:
    """Median seconds of the base, and of both ways beyond it, by density and tokens."""
    base, rows = make_layer(kind, width), []
    for density, tokens in itertools.product(DENSITIES, TOKENS):
        ways, nnz = ways_of(kind, base, density, torch.randn(tokens, width))
        seconds = {"base": [], "merge": [], "add": []}
        for _ in range(rounds + 2):  # the first two warm up
            for name, way in ways.items():
                start = time.process_time()
                way()
                seconds[name].append(time.process_time() - start)
        alone = seconds["base"][2:]
        row = {"kind": kind, "width": width, "density": density, "nnz": nnz, "tokens": tokens}
        row["base"] = statistics.median(alone)
        for name in ("merge", "add"):
            row[name] = statistics.median(own - one for own, one in zip(seconds[name][2:], alone, strict=True))
        print(*(f"{name} {value:.4g}" if name != "kind" else value for name, value in row.items()), flush=True)
        rows.append(row)
    return rows


def fit(rows: list[dict], way: str, terms) -> list[float]:
    """Coefficients, none negative, that give a way's seconds with the least relative errors; outliers count little."""
    # What is lost in the noise of the base's time must not count: a twentieth of the base at least.
    scale = numpy.array([max(abs(row[way]), row["base"] / 20) for row in rows])
    matrix = numpy.array([terms(row) for row in rows]) / scale[:, None]
    size = matrix.max(0)  # the unknowns get sizes around one
    wanted = numpy.array([row[way] for row in rows]) / scale
    solve = partial(least_squares, bounds=(0, numpy.inf), loss="soft_l1", f_scale=0.1)
    found = solve(lambda unknown: matrix / size @ unknown - wanted, numpy.ones(len(size)))
    return (found.x / size).tolist()


def summary(rows: list[dict]) -> dict:
    """The constants by these rows, and how the rule in the code does on them."""
    matrix, write = fit(rows, "merge", lambda row: (row["width"] ** 2, row["nnz"]))
    call, entry, add, output = fit(
        rows, "add", lambda row: (1, row["nnz"], row["nnz"] * row["tokens"], row["tokens"] * row["width"])
    )
    lost = []
    for row in rows:
        way = cheapest_way((row["width"], row["width"]), row["tokens"], row["nnz"], library_of(row["kind"]))
        best = row["base"] + min(row["merge"], row["add"])
        lost.append((row["base"] + row[way]) / best)
    loss = {"mean_time_to_best": math.exp(statistics.mean(map(math.log, lost))), "worst_time_to_best": max(lost)}
    found = {"MATRIX": matrix, "WRITE": write, "CALL": call, "ENTRY": entry, "ADD": add, "OUTPUT": output}
    return found | loss


def main() -> None:
    """Measure, print, and with --write store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["float32", "nf4", "torchao"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = {k: list(itertools.chain(*(measure(k, width, given.rounds) for width in WIDTHS))) for k in given.kinds}
    found = {kind: summary(own) for kind, own in rows.items()}
    print(found)
    if given.write:
        write_result("sparse_product_cpu", {"constants": found, "rows": rows}, **library_versions(given.kinds))


if __name__ == "__main__":
    main()

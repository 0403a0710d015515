"""The two ways of a masked layer on a quantised base, without gradients.

rmbook.engine.quantised_product chooses between them.

    python benchmarks/quantised_rule.py [--kinds nf4 torchao] [--rounds 15] [--write]

For each width, density and number of tokens, the base alone, W + S merged into a dequantised copy ("merge"), and the
base's product and a sparse one ("add") take turns, in the processor time of one thread. What each way costs beyond the
base, in the median over rounds, gives the constants of the rule by a robust fit of relative errors:

    merge - base = DEQUANTISE * out * in + WRITE * nnz        add - base = CALL + nnz * (ENTRY + ADD * tokens)

Printed are they, and how the way that the rule in the code names compares with the faster one. Needs bitsandbytes and
torchao.
"""

import argparse
import itertools
import math
import statistics
import time
from functools import partial

import numpy
import torch
from quantised import library_versions, make_base
from recorded import write_result
from scipy.optimize import least_squares
from torch import nn

from rmbook import sample_mask
from rmbook.engine.quantised import QuantisedLinear
from rmbook.engine.quantised_product import added, cheapest_way, merged_copy

WIDTHS, DENSITIES, TOKENS = (1024, 2048), (1e-2, 1e-3, 1e-4), (1, 4, 16, 64)


def ways_of(layer: QuantisedLinear, base: nn.Module, x: torch.Tensor) -> dict:
    """The base alone and both ways, as functions."""
    return {
        "base": lambda: base(x),
        "merge": lambda: nn.functional.linear(x, merged_copy(layer, x.dtype, layer.delta, layer), layer.bias),
        "add": lambda: added(x, layer, layer.delta, layer),
    }


@torch.no_grad()
def measure(kind: str, width: int, rounds: int) -> list[dict]:
    """Median seconds of the base, and of both ways beyond it, by density and tokens."""
    base, rows = make_base(kind, width), []
    for density, tokens in itertools.product(DENSITIES, TOKENS):
        layer = QuantisedLinear.attach(make_base(kind, width), sample_mask((width, width), density, 0, "w"))
        nn.init.normal_(layer.values, std=0.01)
        seconds = {"base": [], "merge": [], "add": []}
        ways = ways_of(layer, base, torch.randn(tokens, width))
        for _ in range(rounds + 2):  # the first two warm up
            for name, way in ways.items():
                start = time.process_time()
                way()
                seconds[name].append(time.process_time() - start)
        alone = seconds["base"][2:]
        row = {"kind": kind, "width": width, "density": density, "nnz": layer.mask.nnz, "tokens": tokens}
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
    dequantise, write = fit(rows, "merge", lambda row: (row["width"] ** 2, row["nnz"]))
    call, entry, add = fit(rows, "add", lambda row: (1, row["nnz"], row["nnz"] * row["tokens"]))
    lost = []
    for row in rows:
        library = "torchao" if row["kind"] == "torchao" else "bitsandbytes"
        way = cheapest_way((row["width"], row["width"]), row["tokens"], row["nnz"], library)
        best = row["base"] + min(row["merge"], row["add"])
        lost.append((row["base"] + row[way]) / best)
    loss = {"mean_time_to_best": math.exp(statistics.mean(map(math.log, lost))), "worst_time_to_best": max(lost)}
    return {"DEQUANTISE": dequantise, "WRITE": write, "CALL": call, "ENTRY": entry, "ADD": add} | loss


def main() -> None:
    """Measure, print, and with --write store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["nf4", "torchao"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = {k: list(itertools.chain(*(measure(k, width, given.rounds) for width in WIDTHS))) for k in given.kinds}
    found = {kind: summary(own) for kind, own in rows.items()}
    print(found)
    if given.write:
        write_result("quantised_rule_cpu", {"constants": found, "rows": rows}, **library_versions(given.kinds))


if __name__ == "__main__":
    main()

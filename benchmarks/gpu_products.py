"""What each way to compute a sampled product costs on a GPU: the figures behind rmbook/engine/product_costs.py.

    python benchmarks/gpu_products.py [--widths 768 2048 5120] [--tokens 4096] [--tune] [--output products.json]

Every way is captured as a CUDA graph that goes through several sets of operands, together larger than the cache, so
launches from Python are not timed; that the capture succeeds also shows that the way never waits for the GPU. The
graphs take turns. Printed are medians, ratios to one dense product, and the share of two limits: `read` is the time to
read the vectors of all entries once from memory, `inputs` the time to read each operand once. Needs an NVIDIA GPU.
"""

import argparse
import math
import statistics
from pathlib import Path

import torch
from recorded import command_stamp

from rmbook import sample_mask
from rmbook.engine.product_costs import crossover_density, product_seconds
from rmbook.engine.product_torch import expand_rows, sampled_product, sampled_product_reference
from rmbook.files import write_json

DEVICE = "cuda"
HELPERS = "gemm", "gemm32", "copies"  # timed for comparison; they are no ways to get the result
MEMORY = 4.8e12  # bytes a second by an H200's data sheet
OPERANDS = 2**28  # bytes of operands that a graph goes through: several times the second-level cache
DENSITIES = (1e-1, 3e-2, 1e-2, 5e-3, 2e-3, 1e-3, 1e-4, 1e-5)
TUNED = [(e, t, w) for e, t in ((1, 1024), (4, 512), (4, 1024), (8, 512), (16, 256), (32, 128)) for w in (2, 4, 8)]


def captured(call, sets):
    """A function that runs `call` on every set of operands, as a graph; None if it cannot be captured."""
    call(*sets[0])  # compile and load before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for operands in sets:
                call(*operands)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def medians(calls, sets, rounds):
    """Median seconds of each call on one set of operands, all calls taking turns; and which could be captured."""
    runs = {name: captured(call, sets) for name, call in calls.items()}
    graphs = {name: run is not None for name, run in runs.items()}
    runs = {name: run or (lambda call=calls[name]: [call(*o) for o in sets]) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for k in range(rounds + 2):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            if k >= 2:
                times[name].append(start.elapsed_time(end) / 1e3 / len(sets))
    return {name: statistics.median(t) for name, t in times.items()}, graphs


def gather_ways(mask, product_triton):
    """The ways to compute the product at the mask's positions, by name; each takes the two operands."""
    starts, columns, rows = mask.row_starts, mask.columns, expand_rows(mask.row_starts, mask.nnz)
    ways = {
        "gemm": lambda g, x: g.t() @ x,
        "gemm32": lambda g, x: torch.mm(g.t(), x, out_dtype=torch.float32),
        "copies": lambda g, x: product_triton._transpose(g, x, g.shape[0]),
        "direct": lambda g, x: product_triton.sampled_product(g, x, starts, columns, "direct"),
        "transposed": lambda g, x: product_triton.sampled_product(g, x, starts, columns, "transposed"),
        "dense": lambda g, x: product_triton.dense_product(g, x, starts, columns),
        "torch": lambda g, x: sampled_product(g, x, starts, columns),
    }
    if mask.nnz > 20_000:
        del ways["direct"]
    elif mask.nnz < 2_000:
        ways["index_select"] = lambda g, x: (g.index_select(1, rows).float() * x.index_select(1, columns)).sum(0)
    return ways


def measure(shape, tokens, dtype, density, options, product_triton):
    """One row of the table: medians of every way for a layer, checked against the product in double."""
    mask = sample_mask(shape, density, 0, "benchmark").to(DEVICE)
    pair = sum(shape) * tokens * dtype.itemsize
    sets = [
        tuple(torch.randn(tokens, side, device=DEVICE).to(dtype) for side in shape)
        for _ in range(max(2, math.ceil(OPERANDS / pair)))
    ]
    ways = gather_ways(mask, product_triton)
    exact = sampled_product_reference(*(operand.double() for operand in sets[0]), mask.rows, mask.columns)
    errors = {n: float((w(*sets[0]) - exact).norm() / exact.norm()) for n, w in ways.items() if n not in HELPERS}
    seconds, graphs = medians(ways, sets, options.rounds)
    tuned = {}
    if options.tune:
        kept = product_triton.TILES
        for tile in TUNED:
            product_triton.TILES = {0: tile}
            tuned[str(tile)] = medians({"t": ways["transposed"]}, sets, options.rounds)[0]["t"]
        product_triton.TILES = kept
        best = sorted(tuned, key=tuned.get)[:3]
        print("    best (entries, tokens, warps): " + ", ".join(f"{b} {1e6 * tuned[b]:.1f} us" for b in best))
    vector = tokens * dtype.itemsize
    limits = {"read": mask.nnz * vector / MEMORY, "inputs": (pair + 4 * mask.nnz) / MEMORY}
    print(f"  {str(dtype)[6:]:9s} {shape} {density:8.0e} {mask.nnz:9,d}")
    for name, time in seconds.items():
        shares = " ".join(f"{limit / time:8.2f}" for limit in limits.values())
        predicted = product_seconds(mask.shape, tokens, mask.nnz, dtype).get(name)
        print(
            f"    {name:13s} {1e6 * time:9.1f} us {time / seconds['gemm']:7.2f} gemm {shares} of the limits, error "
            f"{errors.get(name, 0):.0e}" + (f", predicted {1e6 * predicted:.1f} us" if predicted else "")
            + ("" if graphs[name] else "  (waits for the GPU: timed with its launches)")
        )  # fmt: skip
    rates = {"copy": 2 * pair / seconds["copies"], "operations": 2 * mask.numel * tokens / seconds["gemm"]}
    rates["gather"] = (
        (mask.nnz + min(mask.nnz, shape[0])) * vector / max(seconds["transposed"] - seconds["copies"], 1e-9)
    )
    print("    rates: " + ", ".join(f"{name} {rate:.2e}" for name, rate in rates.items()))
    row = {"dtype": str(dtype), "shape": shape, "tokens": tokens, "density": density, "nnz": mask.nnz, "tuned": tuned}
    return row | {"seconds": seconds, "captured": graphs, "errors": errors, "limits": limits, "rates": rates}


def main() -> None:
    """Print the table and the crossovers; write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 2048, 5120])
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tune", action="store_true", help="also try other tiles of the transposed way")
    parser.add_argument("--output", type=Path, help="a JSON file for the results, with their stamp")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark times kernels on an NVIDIA GPU, and torch finds none here. Nothing was measured."
        )

    from rmbook.engine import product_triton  # needs Triton

    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for width in options.widths:
            shape = width, width
            some = [measure(shape, options.tokens, dtype, p, options, product_triton) for p in options.densities]
            wins = [r["density"] for r in some if min(("transposed", "dense"), key=r["seconds"].get) == "dense"]
            predicted = crossover_density(shape, options.tokens, dtype)
            measured = min(wins, default="none of these")
            print(f"  {str(dtype)[6:]} {width}: dense wins from density {measured} on, predicted {predicted:.1e}")
            rows += some
    if options.output:
        write_json(options.output, {"stamp": command_stamp(), "rows": rows})


if __name__ == "__main__":
    main()

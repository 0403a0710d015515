"""What drawing all masks of OPT-13b costs: geometric gaps against one uniform number an entry.

    python benchmarks/sampling.py [--layers 80] [--width 5120] [--density 0.001]

The two ways take turns inside one run, so their ratio holds when the machine's speed drifts. torch.rand is timed on a
few matrices and scaled, since 80 of them take long; the ratio compares time a matrix.
"""

import argparse
import statistics
import time
import tracemalloc

import torch

from rmbook import sample_mask


def seconds(function) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print times, their ratio, memory and the exactness of the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shape = (options.width, options.width)

    def gaps():
        return [sample_mask(shape, options.density, 0, f"layers.{k}.weight") for k in range(options.layers)]

    gaps(), torch.rand(shape)  # warm up
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(seconds(gaps) / options.layers)
        theirs.append(seconds(lambda: torch.rand(shape)))
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"{options.layers} matrices of {shape[0]} x {shape[1]}, density {options.density:g}, "
        f"{torch.get_num_threads()} threads, medians of {options.rounds} rounds"
    )
    print(f"  geometric gaps  {1e3 * statistics.median(ours) * options.layers:10.1f} ms")
    print(f"  torch.rand      {1e3 * statistics.median(theirs) * options.layers:10.1f} ms (scaled from one matrix)")
    print(f"  ratio           {ratio:10.0f} (min {min(b / a for a, b in zip(ours, theirs, strict=True)):.0f})")
    tracemalloc.start()  # sees NumPy's draws; torch's tensors are of the same sizes
    nnz = sample_mask(shape, options.density, 0, "w").nnz
    print(
        f"  peak of NumPy's memory {tracemalloc.get_traced_memory()[1] / max(nnz, 1):.0f} bytes an entry drawn, "
        f"{nnz:,} entries; a dense float32 draw is {4 * shape[0] * shape[1]:,} bytes"
    )
    tracemalloc.stop()
    draws = [torch.rand(2**24) for _ in range(8)]  # 134 million float32 draws
    trials = 2**24 * len(draws)
    for density in (1e-6,):
        float32 = sum(int((draw < density).sum()) for draw in draws)
        exact = sum(sample_mask((2**12, 2**12), density, 1, f"{k}").nnz for k in range(8 * 400)) / 400
        print(
            f"  at density {density:g}, {trials:,} trials: expected {trials * density:.1f}, "
            f"gaps {exact:.1f} (mean of 400), float32 comparison {float32}"
        )
        on_grid = -(-density // 2**-24) * 2**-24  # rand is a multiple of 2**-24
        print(f"  float32 comparison's true probability {on_grid:.6g}: {100 * (on_grid / density - 1):+.1f} %")


if __name__ == "__main__":
    main()

"""What the eigenvalues of many masked regressions cost: time and peak memory at each density.

    OMP_NUM_THREADS=1 python benchmarks/theory.py [--n 64] [--d 1000000] [--masks 200] [--density 0.001 0.01 0.1]

The time is that of `rmbook.theory.regression.gram_eigenvalues` for all masks, drawing them included, making X not. The
peak is the process's, X and the imports included; it is never reset, so the last density shows the largest.
"""

import argparse
import resource
import sys
import time

import torch

from rmbook.theory.regression import ColumnMasks, gram_eigenvalues, sample_regression


def main() -> None:
    """Print one line for each density."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--masks", type=int, default=200)
    parser.add_argument("--density", type=float, nargs="+", default=[0.001, 0.01, 0.1])
    parser.add_argument("--rows", action="store_true", help="store X row by row, where taking columns is slower")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unit = 1e6 if sys.platform == "darwin" else 1e3  # of ru_maxrss, in MB
    print(f"import: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:,.0f} MB")
    features = sample_regression(options.n, options.d, 0)[0]
    if options.rows:
        features = features.copy(order="C")
    print(f"X: {options.n} x {options.d:,}, {features.nbytes / 1e6:,.0f} MB, {options.masks} masks a density")
    for density in options.density:
        start = time.perf_counter()
        eigenvalues = gram_eigenvalues(features, ColumnMasks(options.d, density, range(options.masks)))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        print(
            f"  density {density:<7g} {seconds:7.2f} s, peak {peak:,.0f} MB, "
            f"mean lambda_1 {eigenvalues[:, 0].mean():,.1f}"
        )


if __name__ == "__main__":
    main()

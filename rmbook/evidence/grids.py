"""The recorded grids of the chapters of experiments, and how to read them.

Record one again with `python -m rmbook.science NAME`; it can be interrupted and goes on where it stopped.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from itertools import product

import pandas as pd

from rmbook.evidence.experiment import Experiment, run_experiment
from rmbook.evidence.recording import load_recorded, record_runs

SEEDS = (0, 1, 2)
DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001)
MINILM_DENSITIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


def half_decades(low: float, high: float) -> list[float]:
    """Learning rates 1, 3, 10, 30, ... times a power of ten, from low to high, both of them such numbers."""
    rates = [float(f"{digit}e{exponent}") for exponent in range(-8, 3) for digit in (1, 3)]
    return [rate for rate in rates if low <= rate <= high]


def _vit_grid() -> list[Experiment]:
    """Figures 3 and 4c: densities and other methods by learning rates."""
    methods = [({"method": "full"}, half_decades(1e-5, 1e-2)), ({"method": "lora"}, half_decades(1e-4, 1e-1))]
    methods += [({"density": density}, half_decades(1e-4, 10.0)) for density in DENSITIES]
    return [Experiment(rate, seed=seed, **method) for method, rates in methods for rate in rates for seed in SEEDS]


def _vit_scaled() -> list[Experiment]:
    """The law: the same with S = values / density."""
    cells = product(DENSITIES[:-1], half_decades(1e-5, 1e-1), SEEDS)
    return [Experiment(rate, density=density, seed=seed, scale="inverse_density") for density, rate, seed in cells]


def _minilm_grid() -> list[Experiment]:
    """The law on a real model, without and with S = values / density; for "full" its best rates alone."""
    seeds = SEEDS[:2]  # a run takes ten seconds
    runs = [Experiment(rate, "full", None, seed, "minilm") for rate in half_decades(1e-5, 1e-3) for seed in seeds]
    for density, seed in product(MINILM_DENSITIES, seeds):
        low = 1e-4 if density > 0.1 else 3e-4 if density > 0.01 else 1e-3
        runs += [Experiment(rate, density=density, seed=seed, backbone="minilm") for rate in half_decades(low, 1.0)[:7]]
        runs += [
            Experiment(rate, density=density, seed=seed, backbone="minilm", scale="inverse_density")
            for rate in half_decades(1e-5, 1e-2)
        ]
    return runs


def _best(grid: str, **fixed) -> list[tuple[dict, float]]:
    """Methods of a recorded grid, each with its best learning rate."""
    table = best_cells(load_runs(grid).query("scale == 1.0"), ["method", "density"])
    rows = table.reset_index()[["method", "density", "learning_rate"]].itertuples(index=False)
    return [({"method": m, "density": None if pd.isna(d) else d} | fixed, rate) for m, d, rate in rows]


def _hessian() -> list[Experiment]:
    """Figure 4a: the Hessian's norm before and after training, each method at its best learning rate."""
    return [Experiment(rate, seed=s, hessian=True, **method) for method, rate in _best("vit_grid") for s in SEEDS]


def _hessian_minilm() -> list[Experiment]:
    """Figure 9: the same on MiniLM, for three densities."""
    best = [pair for pair in _best("minilm_grid", backbone="minilm") if pair[0]["density"] in (1.0, 0.1, 0.01)]
    return [Experiment(rate, seed=seed, hessian=True, **method) for method, rate in best for seed in SEEDS[:2]]


def _vit_steps() -> list[Experiment]:
    """Figures 4b and 10: small learning rates and many steps; the curve of a run holds all shorter ones."""
    cells = [(0.1, 1e-4), (0.1, 1e-3), (0.01, 1e-3), (0.01, 3e-3), (0.01, 3e-2), (0.001, 1e-2)]
    return [Experiment(rate, density=density, seed=seed, steps=3200) for density, rate in cells for seed in SEEDS]


def _vit_choices() -> list[Experiment]:
    """Figure 5, tables 8 and 9: which entries are trained, at equal count."""
    rates = {0.1: (1e-3, 3e-2), 0.03: (3e-3, 1e-1), 0.01: (3e-3, 3e-1), 0.003: (1e-2, 1.0), 0.001: (3e-2, 10.0)}
    choices = ("entries", "columns", "rows", "blocks", "large_weights", "small_weights", "large_gradients")
    return [
        Experiment(rate, density=density, seed=seed, choice=choice)
        for choice, (density, ends), seed in product(choices, rates.items(), SEEDS)
        for rate in half_decades(*ends)
    ]


def _vit_sizes() -> list[Experiment]:
    """Table 3: numbers of training examples."""
    methods = [({"method": "full"}, half_decades(3e-5, 1e-3)), ({"method": "lora"}, half_decades(1e-3, 3e-2))]
    methods += [({"density": 0.1}, half_decades(3e-3, 1e-1)), ({"density": 0.01}, half_decades(1e-2, 3e-1))]
    methods += [({"density": 0.001}, half_decades(3e-2, 1.0))]
    cells = product((50, 100, 400, 1297), methods, SEEDS)
    return [
        Experiment(rate, seed=seed, train_size=size, steps=400, **method)
        for size, (method, rates), seed in cells
        for rate in rates
    ]


def _vit_starts() -> list[Experiment]:
    """Methods on pretrained, shuffled and new weights with 200 steps; full and density 0.01 with 1,000, too."""
    methods = [({"method": "full"}, half_decades(1e-5, 3e-3)), ({"density": 0.1}, half_decades(1e-4, 3e-2))]
    methods += [({"density": 0.01}, half_decades(1e-3, 3e-1)), ({"density": 0.001}, half_decades(3e-3, 3.0))]
    return [
        Experiment(rate, seed=seed, start=start, steps=steps, **method)
        for steps, seeds, of in ((200, SEEDS, methods), (1000, SEEDS[:2], methods[:1] + methods[2:3]))
        for start, (method, rates), seed in product(("pretrained", "shuffled", "new"), of, seeds)
        for rate in rates
    ]


def _vit_masks() -> list[Experiment]:
    """Twenty masks of one density, each with three orders of the examples, at the grid's best learning rate."""
    best = {method["density"]: rate for method, rate in _best("vit_grid")}
    cells = product((0.01, 0.001), range(100, 120), SEEDS)
    return [Experiment(best[density], density=density, seed=s, mask_seed=mask) for density, mask, s in cells]


GRIDS: dict[str, Callable[[], list[Experiment]]] = {
    "vit_grid": _vit_grid,
    "vit_scaled": _vit_scaled,
    "vit_steps": _vit_steps,
    "vit_choices": _vit_choices,
    "vit_sizes": _vit_sizes,
    "vit_starts": _vit_starts,
    "vit_masks": _vit_masks,
    "minilm_grid": _minilm_grid,
    "hessian": _hessian,
    "hessian_minilm": _hessian_minilm,
}


def record(name: str) -> dict:
    """Run a grid of `GRIDS` and write its stamped record."""
    cells = [dataclasses.asdict(experiment) for experiment in GRIDS[name]()]
    return record_runs(
        f"science/{name}",
        f"python -m rmbook.science {name}",
        cells,
        lambda cell: run_experiment(Experiment(**cell)),
        lambda runs: {"about": (GRIDS[name].__doc__ or "").strip(), "runs": runs},
    )


def load_runs(name: str) -> pd.DataFrame:
    """The runs of a recorded grid, one row each, all settings filled in; `.attrs["record"]` is the whole record.

    A run that diverged before the first epoch ended has the dev accuracy 0, so that means over seeds count it.

    Raises:
        FileNotFoundError: there is no such record.
    """
    content = load_recorded(f"science/{name}")
    table = to_table(content["runs"])
    table.attrs["record"] = {key: value for key, value in content.items() if key != "runs"}
    return table


def to_table(runs: Sequence[dict]) -> pd.DataFrame:
    """Results of `run_experiment`, one row each, with the settings that are their defaults filled in."""
    table = pd.DataFrame(runs)
    for entry in dataclasses.fields(Experiment):
        if entry.default is not dataclasses.MISSING and entry.default is not None:
            column = table[entry.name] if entry.name in table else pd.Series(index=table.index, dtype=object)
            table[entry.name] = column.where(column.notna(), entry.default)
    table["density"] = table["density"].astype(float) if "density" in table else float("nan")
    return table.assign(dev_accuracy=table["dev_accuracy"].fillna(0.0)).infer_objects()


def best_cells(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The best learning rate of each group, by mean dev accuracy over seeds, and what it gives.

    Args:
        table: of `load_runs` or `to_table`.
        by: columns that make a group, such as ["method", "density"].

    Returns:
        One row a group: learning_rate, dev, test (mean accuracies in percent), test_sd (over seeds), distance (mean),
        trainable, runs, at_edge (whether it is the smallest or largest rate that was tried).
    """
    cells = table.groupby([*by, "learning_rate"], sort=False, dropna=False).agg(
        dev=("dev_accuracy", "mean"),
        test=("test_accuracy", "mean"),
        test_sd=("test_accuracy", "std"),
        distance=("distance", "mean"),
        trainable=("trainable", "mean"),
        runs=("seed", "count"),
    )
    cells = cells.reset_index()
    groups = cells.groupby(list(by), sort=False, dropna=False)
    rates = groups["learning_rate"]
    ends = rates.transform("min"), rates.transform("max")
    cells["at_edge"] = (cells["learning_rate"] == ends[0]) | (cells["learning_rate"] == ends[1])
    return cells.loc[groups["dev"].idxmax()].set_index(list(by))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record a grid of the chapters of experiments.")
    parser.add_argument("names", nargs="+", choices=GRIDS, metavar="NAME", help=f"of a grid: {', '.join(GRIDS)}")
    for name in parser.parse_args(arguments).names:
        written = record(name)
        print(f"{len(written['runs'])} runs in results/science/{name}.json", file=sys.stderr)


if __name__ == "__main__":
    main()

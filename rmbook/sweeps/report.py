"""Summary of a sweep: the best learning rate of each method by its dev score, and the test scores at that rate.

A group is all runs that differ in nothing but learning rate and seed. A rate takes part in the choice when every seed
of the group is finished at it. `rmbook.sweeps.best_rate` has the rule of the choice. Test scores are looked up after
that, and decide nothing.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rmbook.runs.result import RunError
from rmbook.sweeps.best_rate import DIVERGED, best_rate, edge, mean_score
from rmbook.sweeps.folder import COUNTED, SweepFolder
from rmbook.sweeps.ledger import STOPPED
from rmbook.sweeps.state import read_rows
from rmbook.sweeps.table import SHARES, is_fine_tuning, sweep_table
from rmbook.tasks.catalog import find_task

CELL = ("model", "task", "method", "ratio", "density")
FINISHED = ("done", "diverged")
_VARIED = ("learning_rate", "seed", "revision")  # the weights say which revision it was
_RESULTS = ("state", *COUNTED, *SHARES, "run")


def read_runs(sweep: str) -> tuple[pd.DataFrame, list[dict]]:
    """Return the runs of a sweep with what a report needs of them.

    Args:
        sweep: its folder.

    Returns:
        (runs, stamps): the columns of `rmbook.sweeps.table.sweep_table`; note, why a run is not finished; train_records
            and test_records, how many its result counts; local, whether the model is a folder. One stamp a result.

    Raises:
        RunError: there is no sweep in the folder, or no run in the sweep, or its runs are not fine-tuning.
    """
    place = SweepFolder(sweep)
    rows = read_rows(place)
    if not rows:
        raise RunError(f"the sweep in {sweep} has no runs.")
    if not all(is_fine_tuning(row["config"]) for row in rows):
        raise RunError(f"the runs in {sweep} are of another kind than fine-tuning; only those have a report.")
    runs = sweep_table(rows)
    results = {row["key"]: place.result(row["key"]) for row in rows if row["state"] in FINISHED}
    gone = [key for key, result in results.items() if result is None]
    runs.loc[runs["run"].isin(gone), "state"] = "lost"  # the next `rmbook sweep run` makes it again
    runs["note"] = runs["run"].map({row["key"]: row["error"] or "" for row in rows})
    runs["local"] = runs["run"].map({row["key"]: Path(row["config"]["model"]).is_absolute() for row in rows})
    found = {key: result for key, result in results.items() if result}
    for part in ("train", "test"):
        counts = {key: result.get("records", {}).get(part) for key, result in found.items()}
        runs[f"{part}_records"] = runs["run"].map(counts).astype("Int64")
    return runs, [found[key]["stamp"] for key in sorted(found) if "stamp" in found[key]]


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Find the best learning rate of each group, and the test scores there.

    Args:
        runs: from `read_runs`, or with these columns: all settings, state, dev_loss, dev_accuracy, accuracy, f1, note,
            train_records, test_records, local.

    Returns:
        One row a group, in the order of model, task, method and share. Columns: model, task, method, ratio, density;
            extra, other settings that tell it from others of the same name; learning_rate, the best one, empty where no
            rate can take part; edge ("lowest", "highest", "only one", "" inside the grid); ties, how many rates share
            the best dev score; dev_accuracy, dev_loss, means over seeds; score, deviation, mean and standard deviation
            (n - 1) over seeds of the test score in percent; seeds, how many; rates, runs, finished, diverged, counts in
            the group; missing, what is not finished and why, empty for a complete group; total, trained_ratio;
            config, the settings that all its runs share, as a dict; train_records, test_records, local.
    """
    settings = [name for name in runs.columns if name not in (*_VARIED, *_RESULTS)]
    settings = [name for name in settings if name not in ("note", "local", "train_records", "test_records")]
    plain = runs[settings].astype(object).where(runs[settings].notna(), None)
    groups: dict[tuple, list[int]] = {}
    for place, values in enumerate(plain.itertuples(index=False, name=None)):
        groups.setdefault(values, []).append(place)
    rows = []
    for values, places in groups.items():
        config = dict(zip(settings, values, strict=True))
        rows.append({name: config.get(name) for name in CELL} | {"config": config} | _group(runs.iloc[places]))
    for row, extra in zip(rows, _extras([row["config"] for row in rows]), strict=True):
        row["extra"] = extra
    table = pd.DataFrame(rows)
    for name in ("ratio", "density"):
        table[name] = table[name].astype("float64")
    order = ["model", "task", "method", "ratio", "density", "extra"]
    return table.sort_values(order, kind="stable", na_position="first", ignore_index=True)


def _group(runs: pd.DataFrame) -> dict:
    task, seeds = find_task(runs["task"].iloc[0]), set(runs["seed"])
    scores, finished = {}, {}
    for rate, part in runs.groupby("learning_rate"):
        if set(part["seed"]) == seeds and len(part) == len(seeds) and part["state"].isin(FINISHED).all():
            finished[rate], rows = part, part[["state", "dev_accuracy", "dev_loss"]].itertuples(index=False)
            scores[rate] = [DIVERGED if state == "diverged" else score for state, *score in rows]
    rates = sorted(set(runs["learning_rate"]))
    row: dict[str, Any] = {"rates": len(rates), "runs": len(runs), "finished": int(runs["state"].isin(FINISHED).sum())}
    row |= {"diverged": int((runs["state"] == "diverged").sum()), "missing": _missing(runs, seeds)}
    row |= {"learning_rate": math.nan, "edge": "", "ties": 0, "dev_accuracy": math.nan, "dev_loss": math.nan}
    row |= {"score": math.nan, "deviation": math.nan, "seeds": len(seeds), "total": None, "trained_ratio": math.nan}
    row |= {"local": bool(runs["local"].iloc[0]), "train_records": None, "test_records": None}
    if (best := best_rate(scores)) is None:
        return row
    part, test = finished[best], 100 * finished[best][task.metric]
    means: list[tuple[Any, ...]] = [mean for mean in map(mean_score, scores.values()) if math.isfinite(mean[1])]
    which = int(any(accuracy is None for accuracy, _ in means))  # accuracy decides first, or else the loss
    measure: Any = mean_score(scores[best])[which]
    row |= {"learning_rate": best, "edge": edge(best, rates)}
    row |= {"ties": sum(math.isclose(mean[which], measure, abs_tol=1e-12) for mean in means)}
    row |= {"dev_accuracy": part["dev_accuracy"].mean(), "dev_loss": part["dev_loss"].mean()}
    row |= {"score": test.mean(), "deviation": test.std(ddof=1)}  # NaN for one seed
    row |= {name: part[name].iloc[0] for name in ("total", "train_records", "test_records")}
    return row | {"trained_ratio": part["trained_ratio"].mean()}


def _missing(runs: pd.DataFrame, seeds: set) -> str:
    """Say what keeps a group from being complete; "" if nothing does."""
    stopped = runs["note"].str.startswith(STOPPED).fillna(False) & (runs["state"] == "pending")
    kinds = {"stopped early": stopped}
    kinds |= {state: (runs["state"] == state) & ~stopped for state in ("pending", "leased", "failed")}
    kinds["with its result lost: run the sweep again"] = runs["state"] == "lost"
    told = [
        f"{number} {kind} (at {_rates(runs['learning_rate'][which])})"
        for kind, which in kinds.items()
        if (number := int(which.sum()))
    ]
    planned = runs.groupby("learning_rate")["seed"].agg(set)
    if fewer := [rate for rate, there in planned.items() if there != seeds]:
        told.append(f"not all seeds planned (at {_rates(fewer)})")
    return "; ".join(told)


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(set(rates)))


def _extras(configs: list[dict]) -> list[str]:
    """Name, for each group, the settings in which it differs from others of the same model, task, method and share."""
    alike: dict[tuple, list[dict]] = {}
    for config in configs:
        alike.setdefault(tuple(config.get(name) for name in CELL), []).append(config)
    texts = []
    for config in configs:
        others = alike[tuple(config.get(name) for name in CELL)]
        names = [n for n in config if n not in CELL and any(other[n] != config[n] for other in others)]
        texts.append(", ".join(f"{name} {_short(config[name])}" for name in names))
    return texts


def _short(value: object) -> str:
    """Return a setting as a label has it: the end of a fingerprint."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return text if len(text) <= 24 else f"...{text[-8:]}"

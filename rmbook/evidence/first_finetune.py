"""The book's first experiment: full fine-tuning, LoRA and random masks on MiniLM, each over learning rates and seeds.

Record it again with `python -m rmbook.first_finetune`; it can be interrupted and goes on where it stopped.
"""

import copy
import dataclasses
import sys
from functools import lru_cache

import pandas as pd
import torch

from rmbook.engine.masking import apply_random_mask
from rmbook.evidence.recording import record_runs
from rmbook.methods.apply import full_finetuning, lora
from rmbook.offline.minilm import PromptClassifier, load_minilm
from rmbook.offline.sentences import sentiment_sentences
from rmbook.training.config import TrainingConfig
from rmbook.training.evaluation import evaluate
from rmbook.training.objectives import Classification
from rmbook.training.train import train

TARGETS = ("query", "value")
COUNTS = {"train": 256, "dev": 200, "test": 500}
SEEDS = (0, 1, 2)
# Half-decade steps around each method's best; wide enough that the best is not at an edge (a test checks it).
LEARNING_RATES = {
    "full": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "lora": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "density 0.1": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "density 0.01": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "density 0.001": (1e-2, 3e-2, 1e-1, 3e-1, 1e0),
}


@lru_cache(maxsize=1)
def data() -> dict[str, list[tuple[str, int]]]:
    """(sentence, label) pairs by split; the splits share no adjective and no noun."""
    return {split: list(zip(*sentiment_sentences(split, count), strict=True)) for split, count in COUNTS.items()}


@lru_cache(maxsize=1)
def base_model() -> PromptClassifier:
    """The pretrained model; runs work on copies of it."""
    return load_minilm()


def score(model: PromptClassifier, split: str) -> float:
    """Accuracy in percent on a split."""
    return 100 * evaluate(model, data()[split], Classification(model.collate))[1]


def prepare(model: PromptClassifier, method: str, seed: int) -> PromptClassifier:
    """Apply a method by its name: "full", "lora" or "density D"; in place.

    Full fine-tuning leaves the embedding tables alone: held-out words must keep the meaning that they came with.
    """
    if method == "full":
        return full_finetuning(model, exclude=("embeddings",))
    if method == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return lora(model, TARGETS)
    kind, _, density = method.partition(" ")
    if kind != "density":
        raise ValueError(f'method must be "full", "lora" or "density D", got {method!r}.')
    apply_random_mask(model, TARGETS, density=float(density), seed=seed)
    return model


def run(method: str, learning_rate: float, seed: int, progress: bool = True) -> dict:
    """One fine-tuning run: 160 steps, the best of 5 epochs by dev loss.

    Returns:
        A record: method, learning_rate, seed, dev_accuracy and test_accuracy in percent, status and the like.
    """
    model = prepare(copy.deepcopy(base_model()), method, seed)
    config = TrainingConfig(learning_rate=learning_rate, seed=seed)
    result = train(model, data()["train"], data()["dev"], config, collate=model.collate, progress=progress)
    record = dataclasses.asdict(result)
    del record["history"], record["config"]
    record["dev_accuracy"] *= 100
    return {
        "method": method,
        "learning_rate": learning_rate,
        "seed": seed,
        **record,
        "test_accuracy": score(model, "test"),
    }


def summary(runs: list[dict]) -> pd.DataFrame:
    """Mean and spread over seeds at each method's best learning rate, which is chosen by mean dev accuracy.

    Returns:
        One row a method: learning_rate, dev, test (mean accuracy in percent), test_sd, trainable, runs.
    """
    cells = (
        pd.DataFrame(runs)
        .groupby(["method", "learning_rate"], sort=False)
        .agg(
            dev=("dev_accuracy", "mean"),
            test=("test_accuracy", "mean"),
            test_sd=("test_accuracy", "std"),
            trainable=("trainable", "mean"),
            runs=("seed", "count"),
        )
        .reset_index()
    )
    best = cells.loc[cells.groupby("method", sort=False)["dev"].idxmax()]
    return best.set_index("method")


def record() -> None:
    """Run the whole grid and write the stamped record."""
    cells = [(method, rate, seed) for method, rates in LEARNING_RATES.items() for rate in rates for seed in SEEDS]
    zero_shot = {split: score(base_model(), split) for split in ("dev", "test")}
    written = record_runs(
        "first_finetune",
        "python -m rmbook.first_finetune",
        cells,
        lambda cell: run(*cell, progress=False),
        lambda runs: {"seeds": SEEDS, "counts": COUNTS, "zero_shot": zero_shot, "runs": runs},
    )
    print(summary(written["runs"]).round(1).to_string(), file=sys.stderr)


if __name__ == "__main__":
    record()

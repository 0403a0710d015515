"""How far a training run is, and what that may look like in the files of a run."""

from dataclasses import dataclass, field

from rmbook.json_files import count, each, fields, number, optional


@dataclass
class TrainingState:
    """Progress of a run; fit for JSON.

    Attributes:
        status: "completed" unless it diverged.
        epoch: the one that is under way, from 1.
        batch: batches of it that are done.
        step: optimiser steps taken.
        losses: of this epoch's steps.
        history: one row a finished epoch.
        best_epoch: the one with the lowest dev loss; 0 if none is finished.
        seconds: wall time.
    """

    status: str = "completed"
    epoch: int = 1
    batch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0


def _written(value) -> bool:
    return type(value) in (int, float)  # not finite where a run diverged


# A finished epoch, in metrics.jsonl and result.json; and what a checkpoint says of the state.
EPOCH = {"epoch": count, "step": count} | dict.fromkeys(("train_loss", "dev_loss", "dev_accuracy"), optional(number))
STATE = {
    "status": lambda value: value in ("completed", "diverged"),
    **dict.fromkeys(("batch", "step", "best_epoch"), count),
    "epoch": lambda value: count(value) and value > 0,
    "losses": each(_written),
    "history": each(fields(dict.fromkeys(EPOCH, _written), tuple(EPOCH))),
    "seconds": number,
}

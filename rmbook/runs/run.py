"""One fine-tuning run from its settings to its result, in a folder from which it can be resumed at any moment.

A run's folder holds config.json (all settings), inputs.json (fingerprints of examples and base weights), metrics.jsonl
(a line a step and a line an epoch), adapter.safetensors (what was trained, at the best epoch) and result.json, which is
written last; and while it is under way checkpoint.safetensors.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rmbook.engine.product_spops import check_spops
from rmbook.files import write_json
from rmbook.methods.saved import save_trained
from rmbook.models.reuse import BaseModels
from rmbook.offline.made import resolve
from rmbook.runs.config import RunConfig
from rmbook.runs.fingerprints import describe_inputs
from rmbook.runs.folder import MetricsFile, check_inputs, finite, first_process, run_config
from rmbook.runs.memory import explaining_memory
from rmbook.runs.prepare import PreparedRun, prepare_run, score_examples
from rmbook.runs.result import RunError, read_result
from rmbook.stamps import peak_memory, stamp
from rmbook.training.accelerator import shards_base
from rmbook.training.checkpoint import Checkpoint, TrainingInterrupted
from rmbook.training.config import TrainingResult
from rmbook.training.train import train


def start_run(
    config: RunConfig,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    bases: BaseModels | None = None,
    after_epoch: Callable[[dict[str, Any]], bool] | None = None,
    accelerator: Accelerator | None = None,
) -> dict[str, Any]:
    """Run from the beginning; the folder is made when everything is loaded and checked.

    Args:
        config: the settings.
        folder: a new or empty one; `config.default_folder()` if None.
        progress: show progress bars on standard error.
        bases: where the model may be loaded already; it is put back there at the end.
        after_epoch: called with each finished epoch's row of metrics.jsonl; True asks for a stop, like Ctrl-C.
        accelerator: as for `prepare_run`.

    Returns:
        What is in result.json.

    Raises:
        RunError: the folder has content.
        MemoryShortage: says which settings to change.
        TrainingInterrupted: Ctrl-C, SIGTERM or `after_epoch`; `resume_run` resumes the run.
        Also what `prepare_run` raises.
    """
    folder = Path(folder or config.default_folder())
    config = replace(config, model=_lasting(config.model), data_dir=config.data_dir and _lasting(config.data_dir))
    if first_process() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists: resume it with `rmbook train --resume {folder}`, or name another --output.")
    _check_place(folder)
    if config.settings.get("backend") == "spops":
        check_spops()
    with explaining_memory(config), ThreadPoolExecutor(1) as beside:
        inputs = beside.submit(describe_inputs, config)  # it hashes files: that needs no interpreter
        prepared = prepare_run(config, bases, accelerator)
    described = inputs.result()
    if prepared.accelerator.is_main_process:
        _begin_folder(folder, config, described)
    prepared.accelerator.wait_for_everyone()
    return _run(prepared, folder, progress, after_epoch)


def resume_run(
    folder: str | os.PathLike[str],
    progress: bool = True,
    bases: BaseModels | None = None,
    after_epoch: Callable[[dict[str, Any]], bool] | None = None,
    accelerator: Accelerator | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Resume a run that was interrupted; of a finished one, give the result.

    Args:
        folder: of the run.
        changes: of micro_batch_size and gradient_checkpointing, which change the memory and not the outcome; of model
            and data_dir, if they were moved: what is there must be the same.
        progress: show progress bars on standard error.
        bases, after_epoch, accelerator: as for `start_run`.

    Raises:
        RunError: there is no run in the folder, or its examples or its base model have changed since it began.
        CheckpointError: its checkpoint is damaged.
        Also what `prepare_run` raises.
    """
    folder = Path(folder)
    config = run_config(folder)
    if result := read_result(folder):
        return result
    config = replace(config, **changes)
    config = replace(config, model=_lasting(config.model), data_dir=config.data_dir and _lasting(config.data_dir))
    check_inputs(folder, describe_inputs(config), config.data_dir, config.model)
    if first_process():
        _remove_leftovers(folder)
    with explaining_memory(config):
        prepared = prepare_run(config, bases, accelerator)
    return _run(prepared, folder, progress, after_epoch)


def _check_place(folder: Path) -> None:
    """Raise OSError where a run could not write its files, before anything is loaded."""
    longest = folder / ".checkpoint.safetensors.12345678"
    with suppress(FileNotFoundError):
        longest.lstat()  # a name that is too long, or below a file
    nearest = next(path for path in folder.absolute().parents if path.exists())
    if not os.access(folder if folder.exists() else nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be made: no permission to write in {nearest}; name another --output.")


def _begin_folder(folder: Path, config: RunConfig, inputs: dict[str, str]) -> None:
    """Make the folder with config.json and inputs.json in it, or leave nothing."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "inputs.json", inputs)
        write_json(folder / "config.json", config.to_dict())
    except BaseException:
        (folder / "inputs.json").unlink(missing_ok=True)
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


def _remove_leftovers(folder: Path) -> None:
    """Remove what a kill left of files that were being written: `rmbook.files.replacing` names them so."""
    for name in ("checkpoint.safetensors", "adapter.safetensors", "metrics.jsonl", "result.json"):
        for rest in folder.glob(f".{name}.*"):
            rest.unlink(missing_ok=True)


def _lasting(name: str) -> str:
    """A folder's name that holds when the run is resumed from elsewhere; that of what is made here ("made:opt")."""
    name = resolve(name)
    return os.path.abspath(name) if os.path.isdir(name) else name


def _run(
    prepared: PreparedRun, folder: Path, progress: bool, after_epoch: Callable[[dict[str, Any]], bool] | None = None
) -> dict[str, Any]:
    config, accelerator = prepared.config, prepared.accelerator
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", writes=accelerator.is_main_process)
    metrics = MetricsFile(folder / "metrics.jsonl", *checkpoint.progress(), writes=accelerator.is_main_process)
    with explaining_memory(config, folder):
        with metrics as log, checkpoint.catching_signals(), _saying_how_to_go_on(folder):
            outcome = train(
                prepared.model,
                prepared.encoded["train"],
                prepared.encoded["dev"],
                config.training(),
                objective=prepared.objective,
                method=prepared.method,
                accelerator=accelerator,
                checkpoint=checkpoint,
                log=_asking(log, checkpoint, after_epoch) if after_epoch else log,
                progress=progress,
            )
        trained = outcome.best_epoch > 0  # else it diverged at once: there is nothing to keep
        test, distance = _score_and_save(prepared, folder, progress) if trained else (None, None)
    if accelerator.is_main_process:
        write_json(folder / "result.json", _result(prepared, outcome, test, distance, metrics))
        checkpoint.path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    if prepared.bases:
        prepared.bases.put_back(prepared.method)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def _score_and_save(prepared: PreparedRun, folder: Path, progress: bool) -> tuple[dict[str, float], float | None]:
    """Score the test examples and write adapter.safetensors; return the score and the distance from the start.

    The adapter holds a hash of the whole base, which is made while the examples are scored. Processes that share a
    model in shards do one after the other, as both of them talk to each other.
    """
    accelerator, method = prepared.accelerator, prepared.method

    def save() -> None:
        save_trained(method, folder / "adapter.safetensors", prepared.fingerprint)

    def score() -> tuple[dict[str, float], float | None]:
        return score_examples(prepared, prepared.splits.test, progress), method.distance

    if shards_base(accelerator):
        scored = score()
        save()
        return scored
    with ThreadPoolExecutor(1) as beside:
        saving = beside.submit(save) if accelerator.is_main_process else None
        scored = score()
    if saving:
        saving.result()
    return scored


def _result(
    prepared: PreparedRun,
    outcome: TrainingResult,
    test: dict[str, Any] | None,
    distance: float | None,
    metrics: MetricsFile,
) -> dict[str, Any]:
    steps = [row for row in metrics.rows() if "tokens" in row]
    tokens, seconds = sum(row["tokens"] for row in steps), sum(row["seconds"] for row in steps)
    examples = [example for part in prepared.encoded.values() for example in part]
    options = [option for example in examples for option in getattr(example, "options", ())]  # images have none
    return {
        "status": outcome.status,
        "config": prepared.config.to_dict(),
        "trainable": prepared.method.trainable,
        "total": prepared.method.total,
        "ratio": prepared.method.ratio,
        "records": {name: len(getattr(prepared.splits, name)) for name in ("train", "dev", "test")},
        "max_length": prepared.max_length,
        "cut_prompts": sum(option.cut > 0 for option in options),
        "steps": outcome.steps,
        "best_epoch": outcome.best_epoch,
        "history": [finite(row) for row in outcome.history],
        "distance": distance,
        "test": test,
        "seconds": round(outcome.seconds, 3),
        "tokens_per_second": round(tokens / seconds) if seconds else None,
        "peak_memory": peak_memory(prepared.accelerator.device),
        "processes": prepared.accelerator.num_processes,
        "stamp": stamp(f"rmbook train --config {metrics.path.with_name('config.json')}"),
    }


def _asking(
    log: Callable[[dict[str, Any]], None], checkpoint: Checkpoint, after_epoch: Callable[[dict[str, Any]], bool]
) -> Callable[[dict[str, Any]], None]:
    """Log rows; at the end of an epoch ask whether to go on, unless the run is asked to stop already."""

    def note(row: dict[str, Any]) -> None:
        log(row)
        if "dev_loss" in row and not checkpoint.stop_requested and after_epoch(row):
            checkpoint.stop_requested = True

    return note


@contextmanager
def _saying_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except TrainingInterrupted as error:
        raise TrainingInterrupted(f"{error} To go on: rmbook train --resume {folder}") from None

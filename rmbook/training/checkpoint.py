"""A training run on disk: all that is needed to go on as if it had not been stopped, in one safetensors file."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from rmbook.engine.shards import spread
from rmbook.errors import RmbookError
from rmbook.files import UnreadableFileError
from rmbook.json_files import count
from rmbook.tensor_files import digest_tensors, read_safetensors, write_safetensors

FORMAT = "rmbook-checkpoint-1"
ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW keeps of a parameter


class TrainingInterrupted(RmbookError):
    """The run was asked to stop; its checkpoint is written."""

    exit_code = 130


class CheckpointError(RmbookError):
    """A checkpoint is damaged or belongs to another run."""


class Checkpoint:
    """The place of a run's state, written at the end of each epoch, when asked to stop, and in between.

    Args:
        path: the file; replaced in one step, so that a kill at any moment leaves the older one or the newer one.
        every: seconds between two writings within an epoch.
        writes: False in all processes of a distributed run but the first.
    """

    def __init__(self, path: Path, every: float = 300.0, writes: bool = True):
        self.path, self.every, self.writes = Path(path), every, writes
        self.stop_requested = False
        self._written = time.monotonic()
        self._found: tuple[dict, dict[str, torch.Tensor]] | None = None  # read, and not yet asked for

    def due(self) -> bool:
        """Return whether the last writing is long enough ago."""
        return time.monotonic() - self._written >= self.every

    def save(self, info: dict, tensors: dict[str, torch.Tensor]) -> None:
        """Write a state: `info` must be fit for JSON."""
        self._written = time.monotonic()
        if not self.writes:
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(info)
        metadata = {"format": FORMAT, "info": text, "content": digest_tensors(tensors, text)}
        write_safetensors(self.path, tensors, metadata)

    def progress(self) -> tuple[int, int]:
        """Steps and finished epochs of the last state; (0, 0) if there is none. `load` does not read it again.

        Raises:
            CheckpointError: the file is damaged.
        """
        self._found = self.load()
        return (self._found[0]["state"]["step"], len(self._found[0]["state"]["history"])) if self._found else (0, 0)

    def load(self) -> tuple[dict, dict[str, torch.Tensor]] | None:
        """The last state; None if there is none yet.

        Raises:
            CheckpointError: the file is damaged.
        """
        if self._found:
            found, self._found = self._found, None
            return found
        if not self.path.exists():
            return None
        try:
            metadata, tensors = read_safetensors(self.path)
        except UnreadableFileError as error:
            raise CheckpointError(f"{error} Remove it to start this run from the beginning.") from None
        try:
            sound = metadata["format"] == FORMAT and metadata["content"] == digest_tensors(tensors, metadata["info"])
            info = json.loads(metadata["info"])
            sound = sound and count(info["state"]["step"]) and isinstance(info["state"]["history"], list)
        except (KeyError, RecursionError, TypeError, ValueError):
            sound = False
        if not sound:
            raise CheckpointError(
                f"{self.path} is damaged or of another version: remove it to start from the beginning."
            )
        return info, tensors

    def catching_signals(self) -> AbstractContextManager[None]:
        """Within it, Ctrl-C and SIGTERM ask for a stop at the next step; a second Ctrl-C stops at once."""

        def ask(number, frame):
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True

        return handling(ask, signal.SIGINT, signal.SIGTERM)


@contextmanager
def handling(handler: Any, *numbers: int) -> Iterator[None]:
    """Within it, these signals call a handler.

    In a thread other than the main one nothing changes: Python gives signals to the main one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state by parameter number and name of the quantity, for `restore_optimizer`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}:{name}": tensor for number, entry in state.items() for name, tensor in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` took.

    Raises:
        ValueError: it is not the state of AdamW for these parameters.
    """
    state, trained = {}, [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        number, _, name = key.partition(":")
        parameter = trained[int(number)]
        if tensor.shape != (() if name == "step" else parameter.shape):
            raise ValueError(f"{key} has the shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}.")
        state.setdefault(int(number), {})[name] = spread(tensor, parameter) if tensor.dim() else tensor
    if any(set(entry) != ADAM_STATE for entry in state.values()):
        raise ValueError(f"each trained parameter needs {', '.join(sorted(ADAM_STATE))}.")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

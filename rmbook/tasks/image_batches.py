"""Batches of images, decoded, resized and cut by worker processes while the model computes.

A worker sends 8 bits a colour; the model's device makes normalised numbers of them. What comes out does not depend on
whether workers are used, nor on how many.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from rmbook.errors import TaskError
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.models.device import model_device
from rmbook.tasks.image_example import ImageExample
from rmbook.training.objectives import Classification

EVALUATION_IMAGES = 128  # in memory at once
MOST_WORKERS = 16
PIECE = 8  # images that a worker sends at once: a whole batch, 19 MB, would wait long for the pipe
LEAST_IMAGES = 512  # in a pass, for which processes are started: that takes some tenths of a second


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An example whose pixels are ready.

    Attributes:
        gold: as of `ImageExample`.
        pixels: (height, width, 3), uint8; see `rmbook.models.clip_preprocessing.Preprocessing.pixels`.
    """

    gold: tuple[int]
    pixels: np.ndarray


class ImageClassification(Classification):
    """The mean loss of a model of images, whose examples are prepared ahead.

    Args:
        preprocessing: of the model.
        workers: processes; None for one a thread of torch's, at most 16, and none for few images or one thread.
    """

    def __init__(self, preprocessing: Preprocessing, workers: int | None = None):
        super().__init__()
        self.preprocessing, self.workers = preprocessing, workers

    @override
    def ahead(self, batches, number=0, count=1):
        return prepare_ahead(self.preprocessing, list(batches), number, count, self.workers)

    @override
    def _batch(self, model, examples):
        return make_batch(self.preprocessing, examples, model_device(model))


def make_batch(
    preprocessing: Preprocessing, examples: Sequence[ImageExample | PreparedImage], device: torch.device
) -> dict[str, torch.Tensor]:
    """pixel_values (examples, 3, height, width), float32, and labels (examples,), int64, on a device.

    Raises:
        TaskError: an image is damaged, or too thin.
    """
    pixels = np.stack([_prepared(preprocessing, example).pixels for example in examples])
    labels = torch.tensor([example.gold[0] for example in examples], device=device)
    return {"pixel_values": preprocessing.normalise(torch.from_numpy(pixels).to(device)), "labels": labels}


def prepare_ahead(
    preprocessing: Preprocessing, batches: Sequence[list], number: int = 0, count: int = 1, workers: int | None = None
) -> Iterator[list]:
    """Yield the batches in their order, with the examples number, number + count, ... of each prepared.

    Args:
        preprocessing: of the model.
        batches: lists of `ImageExample`.
        number, count: of this process among those that share a batch.
        workers: as for `ImageClassification`.

    Raises:
        TaskError: an image is damaged, or too thin.
    """
    if workers is None:
        few = sum(map(len, batches)) < LEAST_IMAGES * count
        workers = 0 if few or torch.get_num_threads() == 1 else min(torch.get_num_threads(), MOST_WORKERS)
    if not batches:
        return
    if multiprocessing.current_process().daemon:  # such a process may have no others
        workers = 0
    shares = [batch[number::count] for batch in batches]
    pieces = [share[start : start + PIECE] for share in shares for start in range(0, len(share), PIECE)]
    workers = min(workers, len(pieces))
    found = iter(
        DataLoader(
            _Pieces(preprocessing, pieces),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=2 * -(-max(map(len, shares)) // PIECE) if workers else None,  # two batches for each worker
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # else it would draw from the stream of dropout
        )
    )
    for batch, share in zip(batches, shares, strict=True):
        prepared, own = list(batch), []
        for start in range(0, len(share), PIECE):
            if isinstance(content := next(found), str):  # an exception would come with the other process's stack
                raise TaskError(content)
            pixels = np.frombuffer(content, np.uint8).reshape(-1, *preprocessing.crop, 3)
            part = zip(share[start : start + PIECE], pixels, strict=True)
            own += [PreparedImage(example.gold, array) for example, array in part]
        prepared[number::count] = own
        yield prepared


@torch.no_grad()
def predict_classes(
    model: nn.Module,
    preprocessing: Preprocessing,
    examples: list[ImageExample],
    advance: Callable[[int], None] | None = None,
) -> list[int]:
    """Return the likeliest class of each image; see `rmbook.tasks.task.Task.predict`.

    Raises:
        TaskError: an image is damaged, or too thin.
    """
    model.eval()
    device, answers = model_device(model), []
    starts = range(0, len(examples), EVALUATION_IMAGES)
    for batch in prepare_ahead(preprocessing, [examples[start : start + EVALUATION_IMAGES] for start in starts]):
        pixels = make_batch(preprocessing, batch, device)["pixel_values"]
        answers += model(pixels).logits.argmax(-1).tolist()
        if advance:
            advance(len(batch))
    return answers


class _Pieces(Dataset):
    def __init__(self, preprocessing: Preprocessing, pieces: Sequence[list]):
        self.preprocessing, self.pieces = preprocessing, pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> bytes | str:
        """Return the pixels of a piece as one string of bytes, which goes through a pipe as it is; arrays are slower.

        Shared memory would be faster still, but containers have little of it.
        """
        try:
            return b"".join(_prepared(self.preprocessing, example).pixels for example in self.pieces[index])
        except TaskError as error:
            return str(error)


def _prepared(preprocessing: Preprocessing, example: ImageExample | PreparedImage) -> PreparedImage:
    if isinstance(example, PreparedImage):
        return example
    image = example.read()
    try:
        return PreparedImage(example.gold, preprocessing.pixels(image))
    except TaskError as error:
        raise TaskError(f"{example.where}: {error}") from None


def _unchanged(found: Iterable) -> Iterable:
    return found


def _begin_worker(number: int) -> None:
    # Ctrl-C reaches all processes of a terminal: the main one ends its step, for which it may need these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

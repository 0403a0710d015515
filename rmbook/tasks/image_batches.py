"""Batches of images, decoded, resized and cut by worker processes while the model computes.

A worker sends 8 bits a colour; the model's device makes normalised numbers of them. What comes out does not depend on
whether workers are used, nor on how many.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from rmbook.errors import TaskError
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.tasks.image_example import ImageExample
from rmbook.training.objectives import Classification

MOST_WORKERS = 16
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
        return make_batch(self.preprocessing, examples, next(model.parameters()).device)


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
    if multiprocessing.current_process().daemon:  # such a process may have no others
        workers = 0
    loader = DataLoader(
        _Batches(preprocessing, batches, number, count),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=min(workers, len(batches)),
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it would draw from the stream of dropout
    )
    for batch, found in zip(batches, loader, strict=True):
        if isinstance(found, str):  # an exception would come with the other process's stack
            raise TaskError(found)
        prepared = list(batch)
        arrays = np.frombuffer(found, np.uint8).reshape(-1, *preprocessing.crop, 3)
        own = zip(batch[number::count], arrays, strict=True)
        prepared[number::count] = [PreparedImage(example.gold, pixels) for example, pixels in own]
        yield prepared


class _Batches(Dataset):
    def __init__(self, preprocessing: Preprocessing, batches: Sequence[list], number: int, count: int):
        self.preprocessing, self.batches, self.number, self.count = preprocessing, batches, number, count

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> bytes | str:
        try:
            own = self.batches[index][self.number :: self.count]
            # One string of bytes: arrays would take as long to pickle as a fifth of all the rest. It goes through a
            # pipe, since containers have little shared memory.
            return b"".join(_prepared(self.preprocessing, example).pixels for example in own)
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

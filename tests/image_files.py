"""A tiny CLIP without pretraining, and small image sets in the original formats, real ones where ../shared is there."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from rmbook.offline.tiny_clip import make_tiny_clip

T10K = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


@pytest.fixture(scope="module", name="clip")
def clip_fixture(tmp_path_factory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip", pretrain_steps=0)


def read_idx(path: Path) -> np.ndarray:
    """MNIST's format once more, for 1 and 3 dimensions."""
    content = gzip.open(path).read()
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    return np.array(list(content[4 + 4 * len(sizes) :]), np.uint8).reshape(sizes)


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def small_mnist(folder: Path, shared: Path, train: int = 60, test: int = 40) -> Path:
    """Real digits: the first of MNIST's test images to train on, the next ones to test on."""
    content = gzip.open(shared / "data/mnist" / T10K[0]).read()
    pixels = np.frombuffer(content, np.uint8, (train + test) * 28 * 28, 16).reshape(-1, 28, 28)
    labels = np.frombuffer(gzip.open(shared / "data/mnist" / T10K[1]).read(), np.uint8, train + test, 8)
    folder.mkdir(exist_ok=True)
    for prefix, part in (("train", slice(0, train)), ("t10k", slice(train, train + test))):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels[part])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels[part])
    return folder


def small_cifar10(folder: Path, shared: Path) -> Path:
    """Kaggle's files to train on, folders of classes to test on."""
    shutil.copytree(shared / "data/cifar10/kaggle_png", folder)
    shutil.copytree(shared / "data/cifar10/jpg/test", folder / "test")
    return folder

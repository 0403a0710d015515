"""Labelled images of the paper's five sets, from original files or from the hub, each decoded when it is needed.

Original files are MNIST's idx.gz; Kaggle's CIFAR-10 (train/ and trainLabels.csv); GTSRB's ppm images with GT-*.csv; and
for all sets folders named after the classes, or after their numbers: train/CLASS/ and test/CLASS/. CIFAR-10's "python"
batches are pickles, which can run code when they are read, and are refused.
"""

import csv
import functools
import gzip
import io
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageOps

from rmbook.errors import TaskError, shown
from rmbook.tasks.hub import hub_table
from rmbook.tasks.task import Task, plain_name

ENDINGS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF")  # all else that PIL reads, whatever a file is called, is refused
FOLDERS = {"train": "train", "validation": "test"}  # what runs call validation is the standard test split
LARGEST_IDX = 10**9  # bytes; MNIST has 47 million
IDX = {"train": "train", "validation": "t10k"}
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises on damaged files


@dataclass(frozen=True, eq=False)
class ImageExample:
    """One labelled image.

    Attributes:
        task: name of the task.
        gold: the number of its class, alone.
        where: file, or place in a file, for messages.
        open: gives the image, of any mode.
    """

    task: str
    gold: tuple[int]
    where: str
    open: Callable[[], Image.Image]
    answers: ClassVar[tuple] = ()  # as examples of language have them

    def read(self) -> Image.Image:
        """The image in RGB, upright as its EXIF data say; raises TaskError if it is damaged or of an unknown range."""
        try:
            with self.open() as image:
                return _eight_bits(ImageOps.exif_transpose(image), image.format).convert("RGB")
        except UNREADABLE as error:
            raise _damaged(self.where, error) from None


def load_images(task: Task, split: str, data_dir: str | os.PathLike | None = None) -> list[ImageExample]:
    """All images of a split, by class and name or in the order of the original's list; none is decoded yet.

    Args:
        task: which set.
        split: "train", or "validation", which is the standard test split.
        data_dir: folder with original files, or one that holds them in a folder of the task's name; None reads the hub.

    Raises:
        TaskError: no such files, pickles, a file that is no image, unknown labels, an empty split, no hub.
    """
    if split not in FOLDERS:
        raise TaskError(f"split must be train or validation, got {split!r}.")
    if data_dir is None:
        return list(_hub_examples(task, split))
    _, files, pairs = _find(task, split, Path(data_dir))
    if pairs is None:
        return _idx_examples(task, *files)
    examples = []
    for path, label in pairs:
        try:
            with open_image(path) as image:  # its head only: what cannot be read should be named before a run begins
                _check_range(image.mode, image.format)
        except UNREADABLE as error:
            raise _damaged(path, error) from None
        gold = (_class_number(task, label, path),)
        examples.append(ImageExample(task.name, gold, str(path), functools.partial(open_image, path)))
    return examples


def list_files(task: Task, split: str, data_dir: str | os.PathLike) -> dict[str, Path]:
    """All files that a run reads of a split, by their place in the set's folder; raises TaskError as `load_images`."""
    base, files, pairs = _find(task, split, Path(data_dir))
    return {os.path.relpath(path, base): path for path in [*files, *(path for path, _ in pairs or ())]}


def _find(task: Task, split: str, data_dir: Path) -> tuple[Path, list[Path], list[tuple[Path, str]] | None]:
    """The set's folder; files that list or hold images; images with labels, None where those files hold them."""
    for base in (data_dir, data_dir / task.name):
        idx = [base / f"{IDX[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        if task.name == "MNIST" and idx[0].is_file():
            return base, idx, None
        if task.name == "CIFAR10" and split == "train" and (base / "trainLabels.csv").is_file():
            rows = _table(base / "trainLabels.csv", ",", "id", "label")
            pairs = [(_inside(base / "train", f"{name}.png"), label) for name, label in rows]
            return base, [base / "trainLabels.csv"], pairs
        if task.name == "GTSRB" and (lists := _gtsrb_lists(base, split)):
            rows = [(folder, row) for file, folder in lists for row in _table(file, ";", "Filename", "ClassId")]
            return base, [file for file, _ in lists], [(_inside(folder, name), label) for folder, (name, label) in rows]
        if pairs := _class_folders(base / FOLDERS[split]):
            return base, [], pairs
        if any(base.glob("data_batch_*")) or any(base.glob("cifar-10-batches-py/*")):
            raise TaskError(
                f"{base} holds CIFAR-10's python batches, pickles, which can run code when they are read: "
                "get it as PNG files (Kaggle's, or a folder a class), or leave data_dir out to read the hub's parquet."
            )
    other = {"MNIST": f"{idx[0].name}, ", "GTSRB": "Final_Training/ and Final_Test/, "}.get(task.name, "")
    other = "trainLabels.csv with train/, " if (task.name, split) == ("CIFAR10", "train") else other
    raise TaskError(
        f"{task.name} has no {FOLDERS[split]} images in {data_dir}: expected {other}or {FOLDERS[split]}/CLASS/ with "
        f"{', '.join(ENDINGS[:4])} files."
    )


def _gtsrb_lists(base: Path, split: str) -> list[tuple[Path, Path]]:
    """The lists of labels, and the folder that each one's names are in."""
    if split == "train":
        return [(file, file.parent) for file in sorted((base / "Final_Training/Images").glob("*/GT-*.csv"))]
    images = base / "Final_Test/Images"  # the list of labels came later, in an archive of its own
    places = (base / "Final_Test", images, base, base.parent)
    return [(place / "GT-final_test.csv", images) for place in places if (place / "GT-final_test.csv").is_file()][:1]


def _class_folders(folder: Path) -> list[tuple[Path, str]]:
    if not folder.is_dir():
        return []
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [
        (path, found.name) for found in classes for path in sorted(found.iterdir()) if path.suffix.lower() in ENDINGS
    ]


def _inside(folder: Path, name: str) -> Path:
    """A file that a list names, in the list's own folder and nowhere else."""
    if name != Path(name).name:
        raise TaskError(f"a list of {folder} names {name!r}: expected the name of a file in that folder.")
    return folder / name


def open_image(file) -> Image.Image:
    """An image from a path or an open file, of the formats that are read here; its pixels are decoded later.

    Raises:
        OSError: it is no such image, or no file at all, such as a pipe, which would be waited for.
    """
    if isinstance(file, str | os.PathLike) and not Path(file).is_file():
        raise OSError("there is no such file")
    return Image.open(file, formats=FORMATS)


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """The image with 8 bits a channel; PIL's own conversion would cut off whatever is above 255."""
    _check_range(image.mode, kind)
    if image.mode.startswith("I"):  # white is 65535
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    return image


def _check_range(mode: str, kind: str | None) -> None:
    """Raise ValueError for numbers of which nothing says how large white is: 32 bits, but not PIL's form of 16."""
    if mode == "F" or (mode == "I" and kind not in ("PNG", "PPM")):
        raise ValueError(f"mode {mode}, 32 bits a pixel: save it with 8 or 16 bits")


def _table(path: Path, delimiter: str, *columns: str) -> Iterator[tuple[str, ...]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} is no table of text ({' '.join(str(error).split())}): get it again.") from None
    for number, row in enumerate(rows, 2):
        if not all(row.get(column) for column in columns):
            raise TaskError(
                f"{path}, line {number}: expected {' and '.join(columns)} between {delimiter!r}, got {row}."
            )
        yield tuple(row[column] for column in columns)


def _class_number(task: Task, label: str, where: object) -> int:
    """The number of a class that is called by its name, whatever the capitals, spaces and signs, or by its number."""
    numbers = _class_numbers(task)
    if plain_name(label) in numbers:
        return numbers[plain_name(label)]
    if label.isdecimal() and len(label) < 10 and int(label) < len(numbers):
        return int(label)
    known = ", ".join(task.classes[:3])
    raise TaskError(
        f"{where}: label {shown(label)} is unknown: {task.name}'s are {known} ..., or 0 to {len(numbers) - 1}."
    )


@functools.cache
def _class_numbers(task: Task) -> dict[str, int]:
    return {plain_name(name): number for number, name in enumerate(task.classes)}


def _idx_examples(task: Task, images_path: Path, labels_path: Path) -> list[ImageExample]:
    images, labels = _idx(images_path, 3), _idx(labels_path, 1)
    if len(images) != len(labels) or len(labels) == 0:
        raise TaskError(f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels: get both.")
    if labels.max() >= len(task.classes):
        raise TaskError(f"{labels_path}: label {labels.max()} is out of range: {task.name} has 0 to 9.")
    return [
        ImageExample(
            task.name, (int(label),), f"{images_path}, image {number}", functools.partial(Image.fromarray, image)
        )
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in one of MNIST's files: zero, zero, 8 for uint8, number of dimensions; their sizes; the data."""
    try:
        with gzip.open(path) as file:  # not more than the file's own head promises: little can unpack to very much
            content = file.read(4 + 4 * dimensions)
            sizes = np.frombuffer(content[4:], ">u4").tolist() if len(content) == 4 + 4 * dimensions else []
            if math.prod(sizes) <= LARGEST_IDX:
                content += file.read(math.prod(sizes) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read ({type(error).__name__}: {error}): get it again.") from None
    head = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != head + math.prod(sizes):
        raise TaskError(f"{path} is no whole idx{dimensions}-ubyte file: get it again.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)


def _hub_examples(task: Task, split: str) -> Iterator[ImageExample]:
    source, table = hub_table(task, FOLDERS[split], "image files")
    column, label = task.columns
    table = _undecoded(table, column)
    numbers, names = table[label], [plain_name(name) for name in getattr(table.features[label], "names", None) or ()]
    classes = _class_numbers(task)
    # Labels of the same names in another order are put in order; other names, such as GTSRB's, are known by number.
    order = [classes[name] for name in names] if set(names) == set(classes) else range(len(classes))
    for index, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(classes):
            raise TaskError(f"{source}, row {index}: label {number!r} is not 0 to {len(classes) - 1} of {task.name}.")
        where = f"{source}, row {index}"
        yield ImageExample(task.name, (order[number],), where, functools.partial(_from_table, table, index, column))


def _undecoded(table, column: str):
    """The table with the images' files as bytes, so that they are decoded as those of folders are."""
    import datasets

    return table.cast_column(column, datasets.Image(decode=False))


def _from_table(table, index: int, column: str) -> Image.Image:
    content = (table[index][column] or {}).get("bytes")
    if content is None:  # a path instead would be one on this machine, which a table from elsewhere cannot know
        raise ValueError("the row holds no image")
    return open_image(io.BytesIO(content))


def _damaged(where: object, error: Exception) -> TaskError:
    return TaskError(f"{where} is no image that can be read ({' '.join(str(error).split())[:120]}): get it again.")

"""Labelled images of the paper's five sets, from original files or from the hub, each decoded when it is needed.

Original files are MNIST's idx.gz; Kaggle's CIFAR-10 (train/ and trainLabels.csv); GTSRB's ppm images with GT-*.csv;
SVHN's *_32x32.mat; RESISC45's one folder of classes; and for all sets folders named after the classes, or after their
numbers: train/CLASS/ and test/CLASS/. CIFAR-10's "python" batches are pickles, which can run code when they are read,
and are refused.
"""

import csv
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rmbook.errors import TaskError, shown
from rmbook.tasks.hub import hub_table
from rmbook.tasks.idx_files import read_idx, write_idx
from rmbook.tasks.image_example import UNREADABLE, ImageExample, check_range, damaged, open_image
from rmbook.tasks.image_folders import ENDINGS, class_folders, report_passed, split_one_folder
from rmbook.tasks.mat_files import read_mat
from rmbook.tasks.task import Task, plain_name

FOLDERS = {"train": "train", "validation": "test"}  # what runs call validation is the standard test split
IDX = {"train": "train", "validation": "t10k"}


def write_idx_split(folder: str | os.PathLike, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write a split as MNIST's two files: images, (n, height, width) in [0, 1], and labels, (n,)."""
    for kind, array in (("images-idx3", (images * 255).round()), ("labels-idx1", labels)):
        write_idx(Path(folder) / f"{IDX[split]}-{kind}-ubyte.gz", array)


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
    base, files, pairs = _find(task, split, Path(data_dir))
    if pairs is None:
        arrays = read_mat(*files) if task.name == "SVHN" else _read_mnist(task, *files)
        return _array_examples(task, *arrays, files[0])
    examples = []
    for path, label in pairs:
        try:
            with open_image(path) as image:  # its head only: what cannot be read should be named before a run begins
                check_range(image.mode, image.format)
        except UNREADABLE as error:
            raise damaged(path, error) from None
        gold = (_class_number(task, label, path),)
        examples.append(ImageExample(task.name, gold, str(path), functools.partial(open_image, path)))
    if not examples:
        raise TaskError(f"{files[0]} lists no {FOLDERS[split]} images of {task.name}: get it again.")
    if not files:  # folders of classes
        there = {example.gold[0] for example in examples}
        absent = [name for number, name in enumerate(task.classes) if number not in there]
        report_passed(base / FOLDERS[split], absent)
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
        if task.name == "SVHN" and (mat := base / f"{FOLDERS[split]}_32x32.mat").is_file():
            return base, [mat], None
        if task.name == "CIFAR10" and split == "train" and (base / "trainLabels.csv").is_file():
            rows = _table(base / "trainLabels.csv", ",", "id", "label")
            pairs = [(_inside(base / "train", f"{name}.png"), label) for name, label in rows]
            return base, [base / "trainLabels.csv"], pairs
        if task.name == "GTSRB" and (lists := _gtsrb_lists(base, split)):
            rows = [(folder, row) for file, folder in lists for row in _table(file, ";", "Filename", "ClassId")]
            return base, [file for file, _ in lists], [(_inside(folder, name), label) for folder, (name, label) in rows]
        if pairs := class_folders(base / FOLDERS[split]).images:
            return base, [], pairs
        if task.name == "RESISC45" and (pairs := _one_folder(task, base, FOLDERS[split])):
            return base, [], pairs
        if any(base.glob("data_batch_*")) or any(base.glob("cifar-10-batches-py/*")):
            raise TaskError(
                f"{base} holds CIFAR-10's python batches, pickles, which can run code when they are read: "
                "get it as PNG files (Kaggle's, or a folder a class), or leave data_dir out to read the hub's parquet."
            )
        if found := _other_form(task, base):
            raise TaskError(
                f"{base} holds {found}: save the images as train/CLASS/ and test/CLASS/, or leave data_dir out to read "
                "the hub's parquet."
            )
    others = {"MNIST": f"{idx[0].name}, ", "GTSRB": "Final_Training/ and Final_Test/, "}
    others |= {"SVHN": f"{FOLDERS[split]}_32x32.mat, ", "RESISC45": "NWPU-RESISC45/CLASS/, "}
    other = others.get(task.name, "")
    other = "trainLabels.csv with train/, " if (task.name, split) == ("CIFAR10", "train") else other
    note = class_folders(data_dir / FOLDERS[split]).note()
    raise TaskError(
        f"{task.name} has no {FOLDERS[split]} images in {data_dir}{f' ({note})' if note else ''}: expected {other}"
        f"{'or ' if other else ''}{FOLDERS[split]}/CLASS/ with {', '.join(ENDINGS[:4])} files."
    )


def _one_folder(task: Task, base: Path, split: str) -> list[tuple[Path, str]]:
    """RESISC45's images of a split where all classes lie in one folder; empty if there is none."""
    for folder in (base / "NWPU-RESISC45", base):
        if _holds_classes(task, folder):
            return split_one_folder(folder, split)
    return []


def _holds_classes(task: Task, folder: Path) -> bool:
    return any(plain_name(place.name) in _class_numbers(task) for place in folder.glob("*/"))


def _other_form(task: Task, base: Path) -> str | None:
    """The form of a set that is not read here, in words: a file of MATLAB, or folders that are not split."""
    if any(base.glob("*.mat")):
        return "files of MATLAB (.mat) that are not SVHN's train_32x32.mat and test_32x32.mat"
    return f"folders of classes that are not split into train and test ({base})" if _holds_classes(task, base) else None


def _gtsrb_lists(base: Path, split: str) -> list[tuple[Path, Path]]:
    """The lists of labels, and the folder that each one's names are in."""
    if split == "train":
        return [(file, file.parent) for file in sorted((base / "Final_Training/Images").glob("*/GT-*.csv"))]
    images = base / "Final_Test/Images"  # the list of labels came later, in an archive of its own
    places = (base / "Final_Test", images, base, base.parent)
    return [(place / "GT-final_test.csv", images) for place in places if (place / "GT-final_test.csv").is_file()][:1]


def _inside(folder: Path, name: str) -> Path:
    """A file that a list names, in the list's own folder and nowhere else."""
    if name != Path(name).name:
        raise TaskError(f"a list of {folder} names {shown(name)}: expected the name of a file in that folder.")
    path = folder / name
    if not os.path.exists(path):  # 00001.PPM, where the list says 00001.ppm; no error for a name that is too long
        capitals = [path.with_suffix(path.suffix.upper()), path.with_suffix(path.suffix.lower())]
        return next((other for other in capitals if os.path.exists(other)), path)
    return path


def _table(path: Path, delimiter: str, *columns: str) -> Iterator[tuple[str, ...]]:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise csv.Error("it is no file")
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path} is no table of text ({' '.join(str(error).split())}): get it again.") from None
    for number, row in enumerate(rows, 2):
        if not all(row.get(column) for column in columns):
            raise TaskError(
                f"{path}, line {number}: expected {' and '.join(columns)} between {delimiter!r}, got {shown(row)}."
            )
        yield tuple(row[column] for column in columns)


def _class_number(task: Task, label: str, where: object) -> int:
    """The number of a class that is called by its name, whatever the capitals, spaces and signs, or by its number."""
    numbers = _class_numbers(task)
    if plain_name(label) in numbers:
        return numbers[plain_name(label)]
    number = int(label) if label.isdecimal() and len(label) < 10 else -1
    if task.name == "SVHN" and number == 10:  # so its authors write the digit 0
        return 0
    if 0 <= number < len(numbers):
        return number
    some = ", ".join(task.classes[:3])
    raise TaskError(
        f"{where}: label {shown(label)} is unknown: {task.name}'s are {some} ..., or 0 to {len(numbers) - 1}."
    )


@functools.cache
def _class_numbers(task: Task) -> dict[str, int]:
    return {plain_name(name): number for number, name in enumerate(task.classes)}


def _read_mnist(task: Task, images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels) or images.size == 0:
        raise TaskError(f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels: get both.")
    if labels.max() >= len(task.classes):
        raise TaskError(f"{labels_path}: label {labels.max()} is out of range: {task.name} has 0 to 9.")
    return images, labels


def _array_examples(task: Task, images: np.ndarray, labels: np.ndarray, path: Path) -> list[ImageExample]:
    """Examples from a file that holds all images; SVHN's label 10 is the digit 0."""
    return [
        ImageExample(
            task.name, (int(label) % 10,), f"{path}, image {number}", functools.partial(_from_array, images, number)
        )
        for number, label in enumerate(labels)
    ]


def _from_array(images: np.ndarray, number: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(images[number]))


def _hub_examples(task: Task, split: str) -> Iterator[ImageExample]:
    source, table = hub_table(task, FOLDERS[split], "image files")
    column, label = task.columns
    table = _undecoded(table, column)
    if (empty := _first_empty(table, column)) is not None:
        raise TaskError(f"{source}, row {empty} holds no image: expected the bytes of a file.")
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


def _first_empty(table, column: str) -> int | None:
    """The first row without an image; a path instead would be one on this machine, which no other one can know."""
    import pyarrow.compute

    content = pyarrow.compute.struct_field(table.data.column(column), "bytes")
    row = pyarrow.compute.index(content.is_null(), True).as_py()
    return None if row < 0 else row


def _from_table(table, index: int, column: str) -> Image.Image:
    return open_image(io.BytesIO(table[index][column]["bytes"]))

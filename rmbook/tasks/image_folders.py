"""Images in folders that are named after their classes: what is an image there, and what is passed over, in words."""

import itertools
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rmbook.files import read_bytes

LOG = logging.getLogger(__name__)
ENDINGS = (".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".tif", ".tiff")
LONGEST_LIST = 10**7  # bytes
NOT_CLASSES = ("__MACOSX",)  # what macOS adds to archives, beside files that begin with a dot


@dataclass
class ClassFolders:
    """What a folder of classes holds.

    Attributes:
        images: files with the names of their folders, by class and name.
        passed: numbers of things that are not read, by kind: an ending, "folders in folders", "files beside them".
        empty: names of folders without an image.
    """

    images: list[tuple[Path, str]] = field(default_factory=list)
    passed: Counter = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)

    def note(self) -> str:
        """Return what is passed over, with counts; empty if nothing is."""
        parts = [f"{count} {kind}" for kind, count in sorted(self.passed.items())]
        parts = [f"not read: {', '.join(parts)}"] if parts else []
        more = f" and {len(self.empty) - 3} more" if len(self.empty) > 3 else ""
        parts += [f"no image in {', '.join(self.empty[:3])}{more}"] if self.empty else []
        return "; ".join(parts)


def class_folders(folder: Path) -> ClassFolders:
    """Look into a folder of classes, which need not be there; hidden files and folders do not count."""
    found = ClassFolders()
    for place in _visible(folder):
        if not place.is_dir():
            found.passed["files beside the folders of classes"] += 1
            continue
        before = len(found.images)
        for path in _visible(place):
            if path.suffix.lower() in ENDINGS:
                found.images.append((path, place.name))
            else:
                folders = path.is_dir()
                found.passed["folders within those of classes" if folders else f"files {path.suffix or path.name}"] += 1
        found.empty += [place.name] if len(found.images) == before else []
    return found


def report_passed(folder: Path, absent: list[str]) -> None:
    """Log what is passed over in a folder of classes, and which classes of the task have no image."""
    note = class_folders(folder).note()
    some = f"{len(absent)} classes have no image, such as {absent[0]}" if absent else ""
    if note or some:
        LOG.warning("%s: %s.", folder, "; ".join(filter(None, (note, some))))


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name not in NOT_CLASSES)


def split_one_folder(folder: Path, split: str) -> list[tuple[Path, str]]:
    """RESISC45's images of a split from its one folder of classes, such as NWPU-RESISC45/airplane/airplane_001.jpg.

    The lists resisc45-train.txt and resisc45-test.txt, by which the hub's copy is split, are used if they lie beside
    the folders of classes. Without them the first 60 % of each class by name are to train on and the last 20 % to test
    on: as many as in the lists, 420 and 140 of 700, but not the same ones. The 20 % between, those of the lists'
    validation, are in neither.

    Args:
        folder: of the classes.
        split: "train" or "test".
    """
    listed = folder / f"resisc45-{split}.txt"
    found = class_folders(folder).images
    if listed.is_file():
        names = set(read_bytes(listed, LONGEST_LIST).decode("utf-8", "replace").split())
        return [(path, label) for path, label in found if path.name in names]
    chosen = []
    for _, group in itertools.groupby(found, key=lambda pair: pair[1]):
        images = list(group)
        chosen += images[: len(images) * 3 // 5] if split == "train" else images[len(images) - len(images) // 5 :]
    return chosen

"""One labelled image, decoded when it is needed, of the formats that are read here and no others."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageOps

from rmbook.errors import TaskError, reason

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF")  # all else that PIL reads, whatever a file is called, is refused
# What PIL raises on damaged files, and warns of where an image has more than 89 million pixels.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


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
            raise damaged(self.where, error) from None


def open_image(file) -> Image.Image:
    """An image from a path or an open file, of the formats that are read here; its pixels are decoded later.

    Raises:
        OSError: it is no such image, or no file at all, such as a pipe, which would be waited for.
    """
    if isinstance(file, str | os.PathLike) and not Path(file).is_file():
        raise OSError("there is no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(file, formats=FORMATS)


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """The image with 8 bits a channel; PIL's own conversion would cut off whatever is above 255."""
    check_range(image.mode, kind)
    if image.mode.startswith("I"):  # white is 65535
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    return image


def check_range(mode: str, kind: str | None) -> None:
    """Raise ValueError for numbers of which nothing says how large white is: 32 bits, but not PIL's form of 16."""
    if mode == "F" or (mode == "I" and kind not in ("PNG", "PPM")):
        raise ValueError(f"mode {mode}, 32 bits a pixel: save it with 8 or 16 bits")


def damaged(where: object, error: Exception) -> TaskError:
    """Return the error of an image that cannot be read, as one line."""
    return TaskError(f"{where} is no image that can be read ({reason(error)}): get it again.")

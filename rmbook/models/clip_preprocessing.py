"""CLIP's preprocessing: an image's shorter side resized, its middle cut out, its colours normalised.

The numbers come from the checkpoint's preprocessor_config.json (Radford et al., 2021, resize by bicubic interpolation).
What comes out is what transformers' `CLIPImageProcessor` makes of PIL images. From transformers 5 on that one is called
`CLIPImageProcessorPil`; it needs no torchvision either, but versions before do not have it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rmbook.errors import TaskError, first_line
from rmbook.files import UnreadableFileError
from rmbook.json_files import read_json
from rmbook.models.files import PREPROCESSING, ModelError

LARGEST_FILE = 10**6  # bytes
BICUBIC = 3  # PIL's number for it, as in the file
LARGEST_RESIZED = 50_000_000  # pixels; what has more, before its middle is cut out, is thinner than any photo


@dataclass(frozen=True)
class Preprocessing:
    """Settings of the preprocessing, and the preprocessing itself: call it with an image.

    Attributes:
        size: of the shorter side, in pixels.
        crop: height and width of what is cut out.
        mean, std: of red, green and blue, of values from 0 to 1.
    """

    size: int
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """A tensor (3, height, width), float32, of an image in RGB.

        Raises:
            TaskError: the image is so thin that it would fill the memory.
        """
        return self.normalise(torch.from_numpy(self.pixels(image).copy()))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The resized and cut image, (height, width, 3), uint8 as PIL holds it: little to do, and to send.

        Raises:
            TaskError: the image is so thin that it would fill the memory.
        """
        shorter = min(image.size)
        width, height = (int(self.size * side / shorter) if side != shorter else self.size for side in image.size)
        left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
        if width * height > LARGEST_RESIZED:
            found = f"{image.width} x {image.height} pixels"
            raise TaskError(f"{found} are too thin: resized, they would be {width * height:,}.")
        resized = image.resize((width, height), Image.Resampling.BICUBIC)  # outside of it PIL's crop is black
        return np.asarray(resized.crop((left, top, left + self.crop[1], top + self.crop[0])))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Colours first, (3, height, width), float32 of about mean 0 and deviation 1; same device, also for a batch."""
        mean, std = (torch.tensor(numbers, device=pixels.device).view(3, 1, 1) for numbers in (self.mean, self.std))
        colours = pixels.movedim(-1, -3)
        found = torch.empty(colours.shape, device=pixels.device)  # not in the order of the pixels' memory
        return found.copy_(colours).div_(255).sub_(mean).div_(std)


def read_preprocessing(name: str, folder: Path, image_size: int) -> Preprocessing:
    """Read the preprocessing from the file in a checkpoint's folder.

    Args:
        name: of the model, for messages.
        folder: of its files.
        image_size: what the model takes, in pixels.

    Raises:
        ModelError: no such file, or it does not say what CLIP's does.
    """
    if not (folder / PREPROCESSING).exists():
        raise ModelError(f"{name}: there is no {PREPROCESSING}, which says how images are prepared: get it, too.")
    try:
        found = read_json(folder / PREPROCESSING, LARGEST_FILE)
        size, crop = found["size"], found["crop_size"]  # plain numbers in older files
        size = size if isinstance(size, int) else size["shortest_edge"]
        crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        mean, std = ([float(value) for value in found[key]] for key in ("image_mean", "image_std"))
        known = len(mean) == len(std) == 3 and found.get("resample", BICUBIC) == BICUBIC
    except (UnreadableFileError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name}: {PREPROCESSING} is damaged, or not one of CLIP's ({first_line(error)}): get it again."
        ) from None
    if not known or crop != (image_size, image_size):
        raise ModelError(
            f"{name}: {PREPROCESSING} must ask for bicubic resizing (3), three colours and {image_size} x {image_size} "
            f"pixels, got {found.get('resample', BICUBIC)}, {len(mean)} and {crop[0]} x {crop[1]}: get its own."
        )
    return Preprocessing(size, crop, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))

"""The paper's five image sets (section 4.1, table 2): where their images are, and what their classes are called.

An image is classified by CLIP's image encoder with a head that stays fixed: the text features of the class names, put
into some sentences, and averaged (Radford et al., 2021; Ilharco et al., 2022). The sentences here are written for this
package in the manner of CLIP's. The paper does not print its own, so its zero-shot heads were somewhat others.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from rmbook.errors import TaskError
from rmbook.models.clip import load_image_classifier
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.tasks.image_files import ImageExample, list_files, load_images
from rmbook.tasks.task import SPLITS, Task
from rmbook.training.objectives import Classification

EVALUATION_IMAGES = 128  # in memory at once


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """One set of images, whose validation split is the set's standard test split.

    Attributes:
        classes: their names in sentences, in the order of the labels.
        templates: sentences with {} in the place of a class name.
        dev_size: a tenth of the hub's training split, at most 5,000, as in Ilharco et al.'s code. The paper gives no
            number.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    has_prompts: bool = False

    @override
    def load_examples(self, split: str, data_dir: str | os.PathLike | None = None) -> list[ImageExample]:
        """All images of a split, by class and name or in the order of the original's list; none is decoded yet."""
        return load_images(self, split, data_dir)

    @override
    def original_files(self, data_dir):
        found = {split: list_files(self, split, data_dir) for split in SPLITS}
        return {f"{split}/{name}": path for split in SPLITS for name, path in found[split].items()}

    @override
    def load_model(self, name, *, dtype=torch.float32, device=None, revision=None):
        """CLIP's image encoder with the task's head, and its preprocessing."""
        return load_image_classifier(
            self.classes, self.templates, name, dtype=dtype, device=device, revision=revision
        )

    @override
    def prompt_limit(self, model, wanted=None):
        return None

    @override
    def encode(self, examples, model, preparation, max_length=None):
        return list(examples)  # a batch's images are decoded when it is made

    @override
    def objective(self, preparation):
        return Classification(lambda examples: collate(preparation, examples))

    @override
    @torch.no_grad()
    def predict(self, model, preparation, examples, max_length=None, advance=None):
        model.eval()
        device, answers = next(model.parameters()).device, []
        for start in range(0, len(examples), EVALUATION_IMAGES):
            batch = collate(preparation, examples[start : start + EVALUATION_IMAGES])
            answers += model(batch["pixel_values"].to(device)).logits.argmax(-1).tolist()
            if advance:
                advance(len(batch["labels"]))
        return answers


def collate(preprocessing: Preprocessing, examples: Sequence[ImageExample]) -> dict[str, torch.Tensor]:
    """pixel_values (examples, 3, height, width), float32, and labels (examples,), int64.

    Raises:
        TaskError: an image is damaged, or too thin.
    """
    images = torch.stack([_prepared(preprocessing, example) for example in examples])
    return {"pixel_values": images, "labels": torch.tensor([example.gold[0] for example in examples])}


def _prepared(preprocessing: Preprocessing, example: ImageExample) -> torch.Tensor:
    image = example.read()
    try:
        return preprocessing(image)
    except TaskError as error:
        raise TaskError(f"{example.where}: {error}") from None


_OBJECTS = ("a photo of a {}.", "a small, blurry photo of a {}.", "a picture that shows a {}.", "one {} in a photo.")
_DIGITS = ("the number {}.", 'a picture of the number "{}".', "the digit {}.", 'a photo of the digit "{}".')
_SIGNS = ('a photo of a "{}" traffic sign.', 'a close-up of a "{}" road sign.', 'the traffic sign "{}" by the road.')
_SIGHTS = ("a satellite image of a {}.", "an aerial photo of a {}.", "a {} seen from above.")

_GTSRB = """
20 km/h speed limit; 30 km/h speed limit; 50 km/h speed limit; 60 km/h speed limit; 70 km/h speed limit;
80 km/h speed limit; end of 80 km/h speed limit; 100 km/h speed limit; 120 km/h speed limit; no passing;
no passing for vehicles over 3.5 tons; right of way at the next intersection; priority road; yield; stop; no vehicles;
no vehicles over 3.5 tons; no entry; general caution; dangerous curve to the left; dangerous curve to the right;
double curve; bumpy road; slippery road; road narrows on the right; road work; traffic signals; pedestrians;
children crossing; bicycles crossing; beware of ice and snow; wild animals crossing; end of all limits;
turn right ahead; turn left ahead; ahead only; straight ahead or right; straight ahead or left; keep right; keep left;
roundabout mandatory; end of no passing; end of no passing for vehicles over 3.5 tons
"""
_RESISC45 = """
airplane; airport; baseball diamond; basketball court; beach; bridge; chaparral; church; circular farmland; cloud;
commercial area; dense residential; desert; forest; freeway; golf course; ground track field; harbor; industrial area;
intersection; island; lake; meadow; medium residential; mobile home park; mountain; overpass; palace; parking lot;
railway; railway station; rectangular farmland; river; roundabout; runway; sea ice; ship; snowberg;
sparse residential; stadium; storage tank; tennis court; terrace; thermal power station; wetland
"""


def _listed(names: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in names.split(";"))


# The commits are those that public code pins for these repositories; they were not fetched when this was written.
_TASKS = (
    ImageTask(
        name="CIFAR10",
        repository="uoft-cs/cifar10",
        revision="0b2714987fa478483af9968de7c934580d0bb9a2",
        columns=("img", "label"),
        classes=_listed("airplane; automobile; bird; cat; deer; dog; frog; horse; ship; truck"),
        templates=_OBJECTS,
        dev_size=5000,
    ),
    ImageTask(
        name="GTSRB",  # the 26,640 training images of the competition, not the 39,209 of the final set
        repository="tanganke/gtsrb",
        revision="ea889fff70dda7b09e94a4b207dded438deca549",
        columns=("image", "label"),
        classes=_listed(_GTSRB),
        templates=_SIGNS,
        dev_size=2664,
    ),
    ImageTask(
        name="MNIST",
        repository="ylecun/mnist",
        revision="77f3279092a1c1579b2250db8eafed0ad422088c",
        columns=("image", "label"),
        classes=tuple("0123456789"),
        templates=_DIGITS,
        dev_size=5000,
    ),
    ImageTask(
        name="SVHN",
        repository="ufldl-stanford/svhn",
        configuration="cropped_digits",
        revision="f9e1717d73324ebbc1ece84267ccd80d0aca0690",
        columns=("image", "label"),
        classes=tuple("0123456789"),
        templates=_DIGITS,
        dev_size=5000,
    ),
    ImageTask(
        name="RESISC45",  # split as by Ilharco et al.: 18,900 + 6,300; the original has one part
        repository="tanganke/resisc45",
        revision="5c484982a196dcb501b8e79c6cf4680dc6f2ccdf",
        columns=("image", "label"),
        classes=_listed(_RESISC45),
        templates=_SIGHTS,
        dev_size=1890,
    ),
)
IMAGE_TASKS = {task.name: task for task in _TASKS}

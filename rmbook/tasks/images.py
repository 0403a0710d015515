"""The paper's five image sets (section 4.1, table 2): where their images are, and what their classes are called.

An image is classified by CLIP's image encoder with a head that stays fixed: the text features of the class names, put
into some sentences, and averaged (Radford et al., 2021; Ilharco et al., 2022). The sentences in images.yaml are written
for this package in the manner of CLIP's. The paper does not print its own, so its zero-shot heads were somewhat others.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from rmbook.tasks.image_example import ImageExample
from rmbook.tasks.image_files import list_files, load_images
from rmbook.tasks.task import SPLITS, Task, read_tasks


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
    def load_model(self, name, **settings):
        """CLIP's image encoder with the task's head, and its preprocessing."""
        from rmbook.models.clip import load_image_classifier

        return load_image_classifier(self.classes, self.templates, name, **settings)

    @override
    def prompt_limit(self, model, wanted=None):
        return None

    @override
    def encode(self, examples, model, preparation, max_length=None):
        return list(examples)  # a batch's images are decoded when it is made

    @override
    def objective(self, preparation):
        from rmbook.tasks.image_batches import ImageClassification

        return ImageClassification(preparation)

    @override
    def predict(self, model, preparation, examples, max_length=None, advance=None):
        from rmbook.tasks.image_batches import predict_classes

        return predict_classes(model, preparation, list(examples), advance)


TABLE = Path(__file__).with_suffix(".yaml")
IMAGE_TASKS = read_tasks(ImageTask, TABLE)

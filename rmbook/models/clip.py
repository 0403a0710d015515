"""CLIP as the paper fine-tunes it: the image encoder is trained, and the head made of class names stays fixed.

The logits of an image are exp(logit scale) times the cosines of its features and the classes' (Radford et al., 2021).
A class's features are those of sentences with its name, each normalised, then their normalised mean (Ilharco et al.,
2022). They are computed once, when the model is loaded, and the text encoder is let go.
"""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection, PreTrainedTokenizerBase
from transformers.modeling_outputs import ImageClassifierOutput

from rmbook.models.clip_preprocessing import Preprocessing, read_preprocessing
from rmbook.models.configuration import read_config
from rmbook.models.encoding import Encoding, check_tokens
from rmbook.models.files import ModelError, find_model
from rmbook.models.reading import read_model, read_tokenizer


class ClipClassifier(CLIPVisionModelWithProjection):
    """CLIP's image encoder with its projection, under transformers' own names, and a head that is never trained.

    Of CLIP ViT-B/16 that is 86,192,640 parameters, of which `ratio` is a share: the head is no parameter, and the text
    encoder does not count. The paper does not say what its own shares count.

    Attributes:
        head: (classes, projection width), the classes' features times exp(logit scale); a buffer that no file keeps.
    """

    def set_head(self, head: torch.Tensor) -> None:
        """Give the head, in float32, or float64 for a float64 model."""
        self.register_buffer("head", head, persistent=False)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        """Logits (images, classes) in the head's dtype and, with labels (images,), the mean cross-entropy.

        Args:
            pixel_values: (images, 3, height, width), of any floating dtype.
            labels: numbers of classes.
        """
        features = super().forward(pixel_values=pixel_values, return_dict=True).image_embeds
        with torch.autocast(features.device.type, enabled=False):  # logits of up to 100 want more than 8 bits
            logits = F.normalize(features.to(self.head.dtype), dim=-1) @ self.head.T
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def load_image_classifier(
    classes: Sequence[str],
    templates: Sequence[str],
    name: str | os.PathLike,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> tuple[ClipClassifier, Preprocessing]:
    """A CLIP model as a classifier of images, in evaluation mode, and how it wants the images prepared.

    Args:
        classes, templates: names of classes, and sentences with {} in the place of a name; they make the head.
        name: a folder that `save_pretrained` wrote, or a repository such as "openai/clip-vit-base-patch16".
        dtype: of the parameters.
        device: the CPU if None.
        revision: branch, tag or commit of a repository of the hub.

    Raises:
        ModelError: no such model, files that are incomplete or damaged, or no CLIP model.
    """
    name, folder, device = find_model(name, revision, device)
    config = check_clip(name, read_config(name, folder), "a task of images was asked for")
    preprocessing = read_preprocessing(name, folder, config.vision_config.image_size)
    tokenizer = read_tokenizer(name, folder)
    clip = read_model(name, folder, CLIPModel, "a CLIP model", config=config, dtype=dtype, use_safetensors=True)
    clip = clip.to(device)
    head = zero_shot_head(clip, tokenizer, classes, templates)
    model = classifier_without_weights(config)
    model.vision_model, model.visual_projection = clip.vision_model, clip.visual_projection
    model.set_head(head)
    return model.eval(), preprocessing


def classifier_without_weights(config: CLIPConfig) -> ClipClassifier:
    """The image encoder on the meta device, without a head: every shape, no numbers."""
    with torch.device("meta"):
        return ClipClassifier(config.vision_config)


def check_clip(name: str, config, why: str) -> CLIPConfig:
    """The configuration, if it is CLIP's; raises ModelError, which begins with what the model is, and says why not."""
    if not isinstance(config, CLIPConfig):
        raise ModelError(
            f"{name} is of type {config.model_type!r}, but {why}: give a CLIP model, such as "
            "openai/clip-vit-base-patch16."
        )
    return config


@torch.no_grad()
def zero_shot_head(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str], templates: Sequence[str]
) -> torch.Tensor:
    """The head (classes, projection width) that makes logits of normalised image features; float32, or float64.

    Args:
        clip: the whole model.
        tokenizer: its own.
        classes: their names.
        templates: sentences with {} in the place of a name.

    Raises:
        ModelError: a sentence has more tokens than the model takes.
    """
    rows, limit = [], clip.config.text_config.max_position_embeddings
    for name in classes:
        batch = tokenizer([template.format(name) for template in templates], padding=True, return_tensors="pt")
        if batch["input_ids"].shape[1] > limit:
            raise ModelError(f"the class name {name!r} has no room in the {limit} tokens that the text encoder takes.")
        check_tokens([Encoding(ids, 0) for ids in batch["input_ids"].tolist()], clip.config.text_config.vocab_size)
        batch = {key: batch[key].to(clip.device) for key in ("input_ids", "attention_mask")}
        pooled = clip.text_model(**batch, return_dict=True).pooler_output
        features = clip.text_projection(pooled)
        rows.append(F.normalize(features.to(_wide(features.dtype)), dim=-1).mean(0))
    head = F.normalize(torch.stack(rows), dim=-1)
    return clip.logit_scale.to(head.dtype).exp() * head


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

"""A CLIP of 2 + 2 layers that needs no network, made and pretrained here, and digits to fine-tune it on.

The architecture is the genuine one, and so is the code that it goes through: tokenizer, class names, preprocessing,
head. What it learns is scikit-learn's upright digits beside their names; the downstream task is mirrored digits, as for
the tiny transformer of `rmbook.offline.digits`. These are written as MNIST's own files, in 8 x 8 pixels.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from rmbook.files import replacing_folder
from rmbook.models.files import quiet, share
from rmbook.offline.digits import Digits
from rmbook.offline.store import one_thread
from rmbook.tasks.image_files import write_idx_split
from rmbook.tasks.images import IMAGE_TASKS

START, END = "<|startoftext|>", "<|endoftext|>"
PIXELS, POSITIONS, WIDTH, PROJECTION = 8, 64, 64, 32
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def make_tiny_clip(folder: str | os.PathLike, *, seed: int = 0, pretrain_steps: int = 300) -> Path:
    """Write a checkpoint, as `save_pretrained` does, with its tokenizer and preprocessor_config.json; float32.

    The image encoder has 2 layers, 64 wide, for 8 x 8 pixels in patches of 2 x 2; about 110,000 parameters with its
    projection. By default some 10 s on one core. The same arguments give the same bytes on the same machine. The
    caller's random state is left alone.

    Args:
        folder: a new or empty one.
        seed: of the first weights and of the batches.
        pretrain_steps: on upright digits; 0 leaves the weights random.

    Raises:
        FileExistsError, FileNotFoundError: see `rmbook.files.replacing_folder`.
    """
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = CLIPModel(_config(tokenizer)).eval()
        _pretrain(model, tokenizer, pretrain_steps, torch.Generator().manual_seed(seed))
    preparation = {"size": {"shortest_edge": PIXELS}, "crop_size": {"height": PIXELS, "width": PIXELS}, "resample": 3}
    with replacing_folder(folder) as temporary:
        with quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        text = json.dumps(preparation | {"image_mean": MEAN, "image_std": STD}, indent=2)
        (temporary / "preprocessor_config.json").write_text(text + "\n")
        share(temporary)
    return Path(folder)


def write_digits(folder: str | os.PathLike, view: str = "mirrored") -> Path:
    """Write scikit-learn's digits, 700 to train on and 300 to test on, as MNIST's four files.

    Args:
        folder: that exists.
        view: one of `rmbook.offline.digits.VIEWS`.
    """
    parts = {split: [Digits(name, view) for name in names]
             for split, names in (("train", ("train", "dev")), ("validation", ("test",)))}  # fmt: skip
    for split, found in parts.items():
        images = torch.cat([part.images for part in found])[:, 0]
        labels = torch.cat([part.labels for part in found])
        write_idx_split(folder, split, images.numpy(), labels.numpy())
    return Path(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in small letters between CLIP's two special tokens, trained on the class names of all tasks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=768, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, model_max_length=POSITIONS
    )


def _sentences() -> Iterator[str]:
    for task in IMAGE_TASKS.values():
        yield from (template.format(name) for name in task.classes for template in task.templates)


def _config(tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": PROJECTION}
    text = {"hidden_size": PROJECTION, "intermediate_size": 4 * PROJECTION, "vocab_size": len(tokenizer)}
    text |= {"max_position_embeddings": POSITIONS, "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "image_size": PIXELS, "patch_size": 2}
    return CLIPConfig(text_config=text | layers, vision_config=vision | layers, projection_dim=PROJECTION)


def _pretrain(model: CLIPModel, tokenizer, steps: int, chooser: torch.Generator) -> None:
    """Cross-entropy over the names of the digits, each in one of MNIST's sentences; both encoders are trained."""
    if steps == 0:
        return
    task, data = IMAGE_TASKS["MNIST"], Digits("pretrain", "upright")
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    sentences = [[template.format(name) for name in task.classes] for template in task.templates]
    texts = [tokenizer(part, padding=True, return_tensors="pt") for part in sentences]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        batch = torch.randint(0, len(data), (64,), generator=chooser)
        images = (data.images[batch].expand(-1, 3, -1, -1) - mean) / std
        text = texts[step % len(texts)]
        output = model(input_ids=text["input_ids"], attention_mask=text["attention_mask"], pixel_values=images)
        loss = F.cross_entropy(output.logits_per_image, data.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

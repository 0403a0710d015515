"""Real images that need no network: scikit-learn's digits, and a tiny vision transformer pretrained on them here.

The transformer learns upright digits; the downstream task is mirrored digits with the head fixed. That is the paper's
CLIP setting in miniature (section 4.1): masks in the MLP layers, zero-shot head untouched.

The pretrained weights come with the package, since every machine would make slightly different ones: the recorded
results began from these. There are `BASES` of them, each from its own seed and its own division of the digits, so that
a result can state its spread between pretrained models. `record_weights` makes one again, with its stamp in the file's
metadata.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from rmbook.offline.store import kept, one_thread
from rmbook.stamps import stamp
from rmbook.tensor_files import write_safetensors

MLP_TARGETS = ("mlp.fc1", "mlp.fc2")
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # of images, (..., 8, 8)
    "upright": lambda images: images,
    "mirrored": lambda images: images.flip(-1),
    "upside_down": lambda images: images.flip(-2),
    "turned": lambda images: images.rot90(1, (-2, -1)),  # a quarter, to the left
    "negative": lambda images: 1 - images,
}
BASES = 5  # pretrained transformers that come with the package
FILE = "model.safetensors"  # of another one, in its kept folder
SPLITS = {"pretrain": (0, 797), "train": (797, 1297), "dev": (1297, 1497), "test": (1497, 1797)}


class SmallImages(Dataset):
    """Images and labels of one split, as dicts for `rmbook.train`.

    Attributes:
        images: (examples, 1, 8, 8) float32 in [0, 1].
        labels: (examples,) int64, 0 to 9.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class Digits(SmallImages):
    """The digits of scikit-learn in one of the `VIEWS`."""

    def __init__(self, split: str, view: str, division: int = 0):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
        from sklearn.datasets import load_digits  # half a second, which no command but those on digits should take

        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(1234 + division))
        chosen = order[slice(*SPLITS[split])]
        images = torch.tensor(digits.images, dtype=torch.float32)[chosen, None] / 16
        self.images = VIEWS[view](images)
        self.labels = torch.tensor(digits.target)[chosen]


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings that a tiny transformer is pretrained with; the cache is keyed by them."""

    hidden_size: int = 64
    layers: int = 4
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    division: int = 0  # of the digits into splits


def new_vit(config: PretrainingConfig = PretrainingConfig()) -> ViTForImageClassification:
    """The untrained network: 8 x 8 image in patches of 2 x 2, 202,186 parameters by default, no dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.layers,
                num_attention_heads=4,
                intermediate_size=4 * config.hidden_size,
                image_size=8,
                patch_size=2,
                num_channels=1,
                num_labels=10,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )


def base_config(base: int) -> PretrainingConfig:
    """Return the settings of one of the packaged transformers: seeds far apart, as new weights take the next ones.

    Raises:
        ValueError: there is no such base.
    """
    if base not in range(BASES):
        raise ValueError(f"base must be between 0 and {BASES - 1}, got {base!r}.")
    return PretrainingConfig(seed=100 * base, division=base)


def weights_path(base: int = 0) -> Path:
    """Return the file of a packaged transformer's weights."""
    return Path(__file__).with_name(f"digits_vit_{base}.safetensors")


def load_vit(config: PretrainingConfig = PretrainingConfig(), progress: bool = True) -> ViTForImageClassification:
    """The tiny transformer pretrained on upright digits, in evaluation mode.

    Those of `base_config` come with the package. Another is pretrained here, about a minute on a CPU, and kept.
    """
    model = new_vit(config)
    for base in range(BASES):
        if config == base_config(base):
            stored = safetensors.torch.load_file(weights_path(base))
            model.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
            return model.eval()
    folder = kept("digits-vit", lambda folder: _write(folder / FILE, new_vit(config), config, progress), (config,))
    model.load_state_dict(safetensors.torch.load_file(folder / FILE))
    return model.eval()


def pretrain_vit(model: ViTForImageClassification, config: PretrainingConfig, progress: bool = True) -> None:
    """Train the network on upright digits, in place; the same bits each time on one kind of processor."""
    with one_thread():
        _pretrain(model, config, progress)


def _pretrain(model, config: PretrainingConfig, progress: bool) -> None:
    data = Digits("pretrain", "upright", config.division)
    chooser = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps)
    model.train()
    for _ in tqdm(range(config.steps), "pretraining once", unit="step", leave=False, disable=not progress):
        batch = torch.randint(0, len(data), (config.batch_size,), generator=chooser)
        images = _augment(data.images[batch], chooser)
        loss = model(pixel_values=images, labels=data.labels[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to one pixel, change the contrast, add noise; (examples, 1, 8, 8)."""
    count = len(images)
    padded = F.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, count, 1), generator=generator)
    pixel = torch.arange(8)
    shifted = padded[torch.arange(count)[:, None, None], 0, (down + pixel)[:, :, None], (right + pixel)[:, None, :]]
    contrast = 0.7 + 0.6 * torch.rand(count, 1, 1, generator=generator)
    return (shifted * contrast + 0.1 * torch.randn(shifted.shape, generator=generator)).unsqueeze(1)


def record_weights(base: int, command: str, path: Path | None = None) -> Path:
    """Make a packaged transformer again, some other bits on another kind of processor; about a minute.

    Args:
        base: which one. The first is kept in float32, the others in bfloat16, half as large.
        command: that is being carried out, for the stamp in the file's metadata.
        path: the file; the packaged one if None.

    Returns:
        The file.
    """
    made, config, path = stamp(command), base_config(base), path or weights_path(base)
    dtype = torch.bfloat16 if base else torch.float32
    _write(path, new_vit(config), config, True, {"stamp": json.dumps(made)}, dtype)
    return path


def _write(
    path: Path, model, config: PretrainingConfig, progress: bool, metadata: dict | None = None, dtype=torch.float32
) -> None:
    pretrain_vit(model, config, progress)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    write_safetensors(path, tensors, {"config": json.dumps(asdict(config))} | (metadata or {}))

"""Real images that need no network: scikit-learn's digits, and a tiny vision transformer pretrained on them here.

The transformer learns upright digits; the downstream task is mirrored digits with the head fixed. That is the paper's
CLIP setting in miniature (section 4.1): masks in the MLP layers, zero-shot head untouched.

The pretrained weights come with the package, since every machine would make slightly different ones: the recorded
results began from these. `record_weights` makes them again, with its stamp in the file's metadata.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from rmbook.files import write_safetensors
from rmbook.offline.store import kept, one_thread
from rmbook.stamps import stamp

MLP_TARGETS = ("mlp.fc1", "mlp.fc2")
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # of images, (..., 8, 8)
    "upright": lambda images: images,
    "mirrored": lambda images: images.flip(-1),
    "upside_down": lambda images: images.flip(-2),
    "turned": lambda images: images.rot90(1, (-2, -1)),  # a quarter, to the left
    "negative": lambda images: 1 - images,
}
WEIGHTS = Path(__file__).with_name("digits_vit.safetensors")
FILE = "model.safetensors"  # of another one, in its kept folder
SPLITS = {"pretrain": (0, 797), "train": (797, 1297), "dev": (1297, 1497), "test": (1497, 1797)}


class Digits(Dataset):
    """Images and labels of one split in one of the `VIEWS`, as dicts for `rmbook.train`.

    Attributes:
        images: (examples, 1, 8, 8) float32 in [0, 1].
        labels: (examples,) int64, 0 to 9.
    """

    def __init__(self, split: str, view: str):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}.")
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(1234))
        chosen = order[slice(*SPLITS[split])]
        images = torch.tensor(digits.images, dtype=torch.float32)[chosen, None] / 16
        self.images = VIEWS[view](images)
        self.labels = torch.tensor(digits.target)[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


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


def load_vit(config: PretrainingConfig = PretrainingConfig(), progress: bool = True) -> ViTForImageClassification:
    """The tiny transformer pretrained on upright digits, in evaluation mode.

    The default one comes with the package. Another is pretrained here, about a minute on a CPU, and kept.
    """
    model = new_vit(config)
    if config == PretrainingConfig():
        model.load_state_dict(safetensors.torch.load_file(WEIGHTS))
        return model.eval()
    folder = kept("digits-vit", lambda folder: _write(folder / FILE, new_vit(config), config, progress), (config,))
    model.load_state_dict(safetensors.torch.load_file(folder / FILE))
    return model.eval()


def pretrain_vit(model: ViTForImageClassification, config: PretrainingConfig, progress: bool = True) -> None:
    """Train the network on upright digits, in place; the same bits each time on one kind of processor."""
    with one_thread():
        _pretrain(model, config, progress)


def _pretrain(model, config: PretrainingConfig, progress: bool) -> None:
    data = Digits("pretrain", "upright")
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


def record_weights(command: str, path: Path = WEIGHTS) -> None:
    """Make the packaged weights again, some other bits on another kind of processor; about a minute.

    Args:
        command: that is being carried out, for the stamp in the file's metadata.
        path: the file.
    """
    made = stamp(command)
    _write(path, new_vit(), PretrainingConfig(), True, {"stamp": json.dumps(made)})


def _write(path: Path, model, config: PretrainingConfig, progress: bool, metadata: dict | None = None) -> None:
    pretrain_vit(model, config, progress)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_safetensors(path, tensors, {"config": json.dumps(asdict(config))} | (metadata or {}))

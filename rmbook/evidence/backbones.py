"""The models that the chapters of experiments run on: one that is tiny, one that is real, and any language model.

Each comes with its data, the layers that are masked and the paper's protocol, so that the same cells run on all of
them. "vit" (mirrored digits, pretrained on upright ones here in a minute) and "minilm" (genuine weights, generated
sentences) need neither a network nor a GPU. Any other name is a language model, with SST-2's examples.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from rmbook.evidence.tiers import find_source
from rmbook.models.language import load_language_model
from rmbook.offline.digits import MLP_TARGETS, Digits, PretrainingConfig, base_config, load_vit, new_vit
from rmbook.offline.made import resolve
from rmbook.offline.minilm import load_minilm
from rmbook.offline.sentences import sentiment_sentences
from rmbook.tasks.catalog import find_task
from rmbook.tasks.splits import draw_splits
from rmbook.tensor_files import digest_tensors
from rmbook.training.objectives import Classification, Objective

STARTS = ("pretrained", "shuffled", "new")


@dataclass(frozen=True)
class Backbone:
    """A model with its data and protocol.

    Attributes:
        name: "vit", "minilm", or the name or folder of a language model.
        targets: names of the layers that are masked.
        fixed: parts of names of parameters that full fine-tuning leaves alone: the head, the embeddings.
        objective: what is minimised.
        data: examples by split: "train", "dev", "test".
        train_size: examples that an ordinary run trains on, the first ones.
        batch_size: examples a step.
        steps: optimiser steps of an ordinary run.
    """

    name: str
    targets: tuple[str, ...]
    fixed: tuple[str, ...]
    objective: Objective
    data: dict[str, Sequence]
    train_size: int
    batch_size: int
    steps: int
    _base: nn.Module = field(repr=False)
    _new: Callable[[int], nn.Module] | None = field(repr=False, default=None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, and of a language model's examples; other examples are made by the code."""
        questions = "" if isinstance(self.objective, Classification) else repr(self.data)
        return digest_tensors({name: value.cpu() for name, value in self._base.state_dict().items()}, questions)

    def model(self, start: str = "pretrained", seed: int = 0) -> nn.Module:
        """Return a fresh copy of the model, in evaluation mode.

        Args:
            start: "pretrained"; "shuffled", where the entries of each matrix outside the fixed parts have changed
                places, so that all the pretrained numbers are there and nothing that they knew; "new", at random, with
                the fixed parts of the pretrained model.
            seed: of the shuffle, or of the new weights.

        Raises:
            ValueError: an unknown start, or "new" for a model that cannot be made anew.
        """
        if start not in STARTS or (start == "new" and self._new is None):
            known = STARTS if self._new else STARTS[:2]
            raise ValueError(f"start must be one of {', '.join(known)} for {self.name}, got {start!r}.")
        model = copy.deepcopy(self._base)
        others = {n: p for n, p in model.named_parameters() if not any(part in n for part in self.fixed)}
        fresh = dict(self._new(seed).named_parameters()) if start == "new" else {}
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in others.items():
                if start == "new":
                    parameter.copy_(fresh[name])
                elif start == "shuffled" and parameter.dim() == 2:
                    order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))
        return model.eval()

    def train_data(self, size: int | None = None) -> Sequence:
        """Return the first `size` training examples, `train_size` of them if None.

        Raises:
            ValueError: there are not so many.
        """
        data, size = self.data["train"], self.train_size if size is None else size
        if not 0 < size <= len(data):
            raise ValueError(f"train_size must be between 1 and {len(data)} for {self.name}, got {size}.")
        return Subset(data, range(size))


@cache
def load_backbone(name: str = "vit", base: int = 0) -> Backbone:
    """Return a backbone by its name; kept, so that it is loaded once a process.

    Args:
        name: "vit" (mirrored digits; "vit:turned" and the like for other `rmbook.offline.digits.VIEWS`), "minilm", or a
            folder or a name of a language model, such as "made:smollm2" or, on the hub, "facebook/opt-1.3b": it goes to
            a GPU if there is one, and its examples are SST-2's, from where `rmbook.evidence.tiers.find_source` finds
            them.
        base: which of the pretrained transformers, for "vit": below `rmbook.offline.digits.BASES`. Each has its own
            division of the digits into splits.

    Raises:
        ValueError: an unknown view of the digits, or a base that there is not.
        ModelError: MiniLM's weights are not at hand.
        ModelError, TaskError: the language model or its examples cannot be had.
    """
    if name == "vit" or name.startswith("vit:"):
        view = name.removeprefix("vit").removeprefix(":") or "mirrored"
        config = base_config(base)
        digits = partial(Digits, view=view, division=config.division)
        data = {split: digits(split) for split in ("dev", "test")}
        # First images that the model has not seen, then, for experiments with more data, those it has seen upright.
        data["train"] = ConcatDataset([digits(split) for split in ("train", "pretrain")])
        model = load_vit(config, progress=False)
        new = partial(_new_vit, config)
        return Backbone(name, MLP_TARGETS, ("classifier",), Classification(), data, 400, 16, 200, model, new)
    if base:
        raise ValueError(f"{name} has one base, 0: got base {base!r}.")
    if name == "minilm":
        model, counts = load_minilm(), {"train": 256, "dev": 200, "test": 500}
        data = {s: list(zip(*sentiment_sentences(s, count), strict=True)) for s, count in counts.items()}
        objective = Classification(model.collate)
        return Backbone(name, ("query", "value"), ("embeddings",), objective, data, 256, 8, 160, model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_language_model(os.path.expanduser(resolve(name)), device=device)
    source, data_dir = find_source()
    data_dir = resolve("made:sentences") if source == "generated" else data_dir
    task = find_task("SST-2")
    splits = draw_splits(task, data_dir, 0)
    data = {split: task.encode(getattr(splits, split), model, tokenizer) for split in ("train", "dev", "test")}
    return Backbone(name, ("q_proj", "v_proj"), ("embed",), task.objective(tokenizer), data, 1000, 8, 625, model)


def _new_vit(config: PretrainingConfig, seed: int) -> nn.Module:
    return new_vit(replace(config, seed=config.seed + seed + 1))  # without the seed that the pretrained one began with

"""A base model that stays loaded from one run to the next, and is given out only as it was when it was loaded."""

import copy
import logging
import os
from collections.abc import Callable

import torch
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rmbook.methods.applied_method import AppliedMethod
from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.tensor_files import digest_tensors

LOG = logging.getLogger(__name__)


class BaseModels:
    """Loads base models for one run after the other, and keeps the last one, so that the next run need not load it.

    `take` gives the model away: a run that fails or is interrupted does not put it back, and the next one loads it
    anew. So does the next one after full fine-tuning, which changes all weights: a second copy of them, to restore them
    from, would double the memory.

    Attributes:
        loads: how often a model was read from its files.
    """

    def __init__(self):
        self.loads = 0
        self._kept, self._given = None, None

    def take(
        self,
        load: Callable[..., tuple],
        name: str | os.PathLike,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        revision: str | None = None,
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | Preprocessing]:
        """The model and what prepares its examples, as `load(name, dtype=, device=, revision=)` gives them.

        Args:
            load: such as `rmbook.models.language.load_language_model`, or a task's `load_model`; another one means
                another model.
            name, dtype, device, revision: of the model.
        """
        key = (load, os.fspath(name), dtype, str(torch.device(device or "cpu")), revision)
        kept, self._kept, self._given = self._kept, None, None
        if not kept or kept.key != key:
            del kept  # before another one needs the memory
            self.loads += 1
            kept = _Kept(key, *load(name, dtype=dtype, device=device, revision=revision))
        self._given = kept
        return kept.model, kept.tokenizer

    def put_back(self, method: AppliedMethod) -> None:
        """Keep the model of a run that has ended, if it can be made what it was.

        Args:
            method: what was applied to the model that `take` gave; it is removed.
        """
        given, self._given = self._given, None
        if method.name == "full" or given is None or given.model is not method.model:
            return
        try:
            method.remove()
            given.restore()
            same = given.checksum == checksum(given.model)
        except Exception as error:  # noqa: BLE001 - the run itself is done, and a new model is as good
            same = f"{type(error).__name__}: {error}"
        if same is True:
            self._kept = given
        else:
            LOG.warning(
                "%s is not what it was before a run with %s%s: the next run loads it anew.",
                given.key[1],
                method.name,
                f" ({same})" if same else "",
            )


def checksum(model: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all parameters and buffers, those that no file has included.

    Reads everything once, as `rmbook.adapters.adapter_file.base_fingerprint` does: about a second a gigabyte.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    return digest_tensors(tensors, "")


class _Kept:
    """A loaded model, its checksum, and all else that it is made of.

    A method's own way back restores numbers. Everything that is no number comes back whoever has changed it: classes of
    modules, their parts, training mode, probabilities of dropout, hooks, gradient checkpointing, flags and settings.
    """

    def __init__(self, key: tuple, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | Preprocessing):
        self.key, self.model, self.tokenizer, self.checksum = key, model, tokenizer, checksum(model)
        self._modules = [(module, type(module), _copied(vars(module))) for module in model.modules()]
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._settings = [(settings, _deep(vars(settings))) for settings in _settings_in(model)]

    def restore(self) -> None:
        """Put everything back but the numbers in tensors."""
        for module, kind, attributes in self._modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(_copied(attributes))
        for parameter, flag in self._flags:
            parameter.grad = None  # a run that diverged leaves its last one
            parameter.requires_grad_(flag)
        for settings, values in self._settings:
            vars(settings).clear()
            vars(settings).update(_deep(values))


SETTINGS = (PretrainedConfig, GenerationConfig)


def _settings_in(model: nn.Module) -> list:
    """The objects in which the model and its modules have their settings, and those within these, each once."""
    found, waiting = {}, [value for module in model.modules() for value in vars(module).values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, SETTINGS) and id(value) not in found:
            found[id(value)] = value
            waiting += vars(value).values()
    return list(found.values())


def _copied(attributes: dict) -> dict:
    """The attributes, and those that are collections copied, too: of hooks, parameters, submodules."""
    return {n: copy.copy(v) if isinstance(v, dict | list | set) else v for n, v in attributes.items()}


def _deep(values: dict) -> dict:
    """The values copied, but for settings within them, which modules have, too, and which are restored themselves."""
    return {name: v if isinstance(v, SETTINGS) else copy.deepcopy(v) for name, v in values.items()}

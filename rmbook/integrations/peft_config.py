"""`RandomMaskConfig`: random masks as a method of `peft`. Importing this module registers the method.

    from peft import get_peft_model
    from rmbook import RandomMaskConfig

    model = get_peft_model(base, RandomMaskConfig(target_modules=["q_proj", "v_proj"], ratio=1e-3))

peft has no way to find a method of another package by itself: `import rmbook` and this name must come before such an
adapter is loaded in a new process, or peft stops with KeyError: 'RMBOOK'.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, peft_types

from rmbook.adapters.adapter_header import LARGEST_SEED
from rmbook.adapters.errors import AdapterCorruptError
from rmbook.adapters.shira_folder import PREFIX
from rmbook.checks import check_density, check_seed, scale_factor
from rmbook.engine.backends import BACKENDS
from rmbook.errors import ConfigError, closest, shown
from rmbook.files import UnreadableFileError
from rmbook.integrations.peft_checks import VALUES
from rmbook.integrations.peft_tuner import DensityOfRatio, RandomMaskModel
from rmbook.masks.recipe import STRUCTURES
from rmbook.tensor_files import Layout, read_header
from rmbook.version import __version__

NAME = "rmbook"  # transformers finds the tensors of an adapter by its type's name in lower case


@dataclass
class RandomMaskConfig(PeftConfig):
    """Which entries of which layers `peft` trains.

    Args:
        target_modules: names, a regular expression, or "all-linear"; if None, those of LoRA for this kind of model.
        exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as for LoRA.
        ratio: wanted trainable entries / all parameters of the model. Give this or density; 1e-3 if neither is given.
        density: probability that an entry of a target matrix is trained. A model fills in what a ratio comes to there,
            which is saved; another model with the same configuration starts from the ratio again.
        seed: of the masks; each layer's mask depends on it and on the layer's name alone.
        structure: "entries", "leading_columns" or "random_columns"; see `rmbook.masks.recipe.MaskRecipe`.
        scale: S = scale * values; "inverse_density" is 1 / density, as for `rmbook.apply_random_mask`.
        backend: who computes the values' gradient; see `rmbook.engine.backends.choose_backend`.
        store_positions: save the positions too, four bytes each: for readers whose modules have other names.
        init_weights: False draws values instead of zeros, for tests.
        rmbook_version: which version saved it.

    Raises:
        ConfigError: both ratio and density, a value out of range, or one of another type; a ValueError.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    ratio: float | None = None
    density: float | None = None
    seed: int = 0
    structure: str = "entries"
    scale: float | str = 1.0
    backend: str = "auto"
    store_positions: bool = False
    init_weights: bool = True
    rmbook_version: str | None = None

    stored = None  # layouts of the values in the file that this was read with, by layer, to be checked before drawing

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_types.PeftType[NAME.upper()]
        if self.ratio is not None and isinstance(self.density, DensityOfRatio):
            self.density = None  # of the model for which `dataclasses.replace` found it
        if self.ratio is not None and self.density is not None:
            raise ConfigError(
                f"give either ratio (share of all parameters) or density (probability inside a target matrix), got "
                f"ratio={shown(self.ratio)}, density={shown(self.density)}."
            )
        try:
            self.density = None if self.density is None else check_density(self.density)
            self.seed = check_seed(self.seed)
            self.scale = self.scale if self.scale == "inverse_density" else scale_factor(self.scale, 1.0)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        sound = isinstance(self.ratio, Real) and not isinstance(self.ratio, bool) and 0 <= self.ratio <= 1
        _require(sound or self.ratio is None, "ratio", self.ratio, "a number in [0, 1]")
        self.ratio = None if self.ratio is None else float(self.ratio)
        _require(abs(self.seed) < LARGEST_SEED, "seed", self.seed, "an integer of at most 256 bits")
        for field, known in (("structure", STRUCTURES), ("backend", BACKENDS)):
            value = getattr(self, field)
            _require(type(value) is str and value in known, field, value, f"one of its names: {closest(value, known)}")
        for field in ("store_positions", "init_weights", "inference_mode"):
            _require(type(getattr(self, field)) is bool, field, getattr(self, field), "true or false")
        for field in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            value = getattr(self, field)
            text = isinstance(value, str) and field != "modules_to_save"
            names = isinstance(value, list | tuple | set) and all(isinstance(name, str) for name in value)
            _require(value is None or text or names, field, value, "names of modules")
            setattr(self, field, set(value) if names and field.endswith("_modules") else value)  # as in peft
        layers: Any = self.layers_to_transform
        several = isinstance(layers, Iterable) and not isinstance(layers, str | bytes | Mapping)
        numbers = list(layers) if several else [] if layers is None else [layers]
        sound = all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers)
        _require(sound, "layers_to_transform", layers, "a number of a layer, or a list of them")
        numbers = [int(number) for number in numbers]  # as JSON has them
        self.layers_to_transform = numbers if several else numbers[0] if numbers else None
        self._check_layers()

    def _check_layers(self) -> None:
        for field in ("layers_to_transform", "layers_pattern") if isinstance(self.target_modules, str) else ():
            value = getattr(self, field)
            _require(value is None, field, value, "left out, or target_modules a list of names and no string")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern says where the numbers of layers_to_transform stand: give both.")

    def factor(self) -> float:
        """Return the scale as a number; the density must be known."""
        return scale_factor(self.scale, self.density)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved: the density that a ratio came to, as the ratio depends on the model's size."""
        saved: dict[str, Any] = super().to_dict()
        saved |= {name: sorted(value) for name, value in saved.items() if isinstance(value, set)}
        saved["ratio"] = self.ratio if self.density is None else None
        return saved | {"rmbook_version": __version__}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """Read a configuration, as peft does, and with it the sizes of the values, which are loaded later.

        Raises:
            AdapterCorruptError: the values' file is damaged.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        weights = os.path.join(pretrained_model_name_or_path, subfolder or "", SAFETENSORS_WEIGHTS_NAME)
        if not os.path.isdir(pretrained_model_name_or_path):  # peft loads it from the hub or the cache afterwards
            place = {"subfolder": subfolder} | cls._split_kwargs(kwargs)[0]
            with contextlib.suppress(HfHubHTTPError, OSError, ValueError):
                weights = hf_hub_download(pretrained_model_name_or_path, SAFETENSORS_WEIGHTS_NAME, **place)
        if os.path.isfile(weights):
            config.stored = _stored_values(weights)
        return config


def _stored_values(path: str) -> dict[str, Layout]:
    try:
        _, layouts = read_header(path)
    except UnreadableFileError as error:
        raise AdapterCorruptError(str(error)) from None
    parts = ((key.removeprefix(PREFIX).partition(f".{VALUES}"), layout) for key, layout in layouts.items())
    return {name: layout for (name, part, _), layout in parts if part}


def _require(sound: bool, field: str, value: Any, expected: str) -> None:
    if not sound:
        raise ConfigError(f"{field} must be {expected.rstrip('.')}, got {shown(value)}.")


def _register() -> None:
    # register_peft_method refuses a name that its enumeration does not have, and offers no way to add one.
    kinds, name = peft_types.PeftType, NAME.upper()
    if name in kinds.__members__:
        return
    member = str.__new__(kinds, name)
    member._name_, member._value_, member.__objclass__ = name, name, kinds
    member._sort_order_ = len(kinds.__members__)
    type.__setattr__(kinds, name, member)
    kinds._member_names_.append(name)
    kinds._member_map_[name] = kinds._value2member_map_[name] = member
    peft_types.register_peft_method(
        name=NAME, config_cls=RandomMaskConfig, model_cls=RandomMaskModel, prefix=RandomMaskModel.prefix
    )


_register()

"""The header of an adapter file, checked before anything is read, drawn or allocated by what it says.

Files come from strangers. So every field has a type, a range and a size here, and the tensors' layouts must follow
from them.
"""

import json
import math
import os
import string
from dataclasses import dataclass
from typing import Any

import torch

from rmbook.adapters.errors import AdapterCorruptError
from rmbook.errors import reason
from rmbook.files import UnreadableFileError
from rmbook.masks.recipe import MaskRecipe
from rmbook.tensor_files import FLOATS, Layout, read_header

ADAPTER_FORMAT = "rmbook-adapter-3"
FIELDS = ("format", "rmbook_version", "base_fingerprint", "recipe", "scale", "layers")
BUFFERS = "buffers"  # one more field, in files of models with buffers that training changes
QUANTISED = "quantised"  # one more, in files of quantised bases: how their weights are
LARGEST_SEED = 2**256


@dataclass(frozen=True)
class AdapterHeader:
    """The description that an adapter file has of itself.

    Attributes:
        metadata: all fields, as they are stored.
        recipe: how the masks were drawn; None if they were given.
        scale: S = scale * values.
        shapes: (out, in) by layer name.
        digests: of the masks, by layer name.
        values: layout of each layer's values, by layer name.
        positions: whether the file holds the masks' positions.
        buffers: names of the model's buffers that the file holds.
    """

    metadata: dict[str, str]
    recipe: MaskRecipe | None
    scale: float
    shapes: dict[str, tuple[int, int]]
    digests: dict[str, str]
    values: dict[str, Layout]
    positions: bool
    buffers: tuple[str, ...]

    @property
    def quantised(self) -> str:
        """How the base's weights are quantised; an empty string if they are not."""
        return self.metadata.get(QUANTISED, "")

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the base model; see `rmbook.adapters.base.base_fingerprint`."""
        return self.metadata["base_fingerprint"]


def read_adapter_header(path: str | os.PathLike[str]) -> AdapterHeader:
    """Read and check the header of an adapter file, in a few megabytes of memory.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterCorruptError: it is no adapter file, or its header contradicts itself.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no adapter file at {path}.")
    try:
        metadata, layouts = read_header(path)
    except UnreadableFileError as error:
        raise AdapterCorruptError(str(error)) from None
    if metadata.get("format") != ADAPTER_FORMAT or {*metadata} - {BUFFERS, QUANTISED} != {*FIELDS, "content"}:
        raise AdapterCorruptError(
            f"{path} is no rmbook adapter: its format is {str(metadata.get('format'))[:40]!r}, expected "
            f"{ADAPTER_FORMAT!r}."
        )
    try:
        return _parsed(metadata, layouts)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise AdapterCorruptError(f"{path} does not describe an adapter: {reason(error)}.") from None


def parse_recipe(data: Any) -> MaskRecipe | None:
    """Return the recipe that JSON describes, None for null; raise ValueError if it describes none."""
    if data is None:
        return None
    _require(isinstance(data, dict) and set(data) == {"targets", "density", "seed", "structure"}, "recipe", data)
    targets, density, seed = data["targets"], data["density"], data["seed"]
    _require(isinstance(targets, list) and targets and all(type(t) is str and 0 < len(t) < 1000 for t in targets),
             "targets", targets)  # fmt: skip
    _require(type(density) in (int, float) and 0 <= density <= 1, "density", density)
    _require(type(seed) is int and abs(seed) < LARGEST_SEED, "seed", seed)
    _require(type(data["structure"]) is str, "structure", data["structure"])
    return MaskRecipe(tuple(targets), density, seed, data["structure"])


def is_hash(text: Any) -> bool:
    """Tell whether `text` is a SHA-256 in hexadecimal."""
    return type(text) is str and len(text) == 64 and set(text) <= set(string.hexdigits)


def _parsed(metadata: dict[str, str], layouts: dict[str, Layout]) -> AdapterHeader:
    recipe = parse_recipe(json.loads(metadata["recipe"]))
    scale, layers = json.loads(metadata["scale"]), json.loads(metadata["layers"])
    buffers = json.loads(metadata.get(BUFFERS, "[]"))
    _require(is_hash(metadata["base_fingerprint"]), "base_fingerprint", metadata["base_fingerprint"])
    _require(len(metadata.get(QUANTISED, "")) < 1000, QUANTISED, metadata.get(QUANTISED))
    _require(len(metadata["rmbook_version"]) < 40, "rmbook_version", metadata["rmbook_version"])
    _require(type(scale) is float and 0 < scale < math.inf, "scale", scale)
    _require(isinstance(layers, dict) and layers, "layers", layers)
    _require(isinstance(buffers, list) and all(type(name) is str for name in buffers), BUFFERS, buffers)
    stored = [name for name in layers if f"{name}.positions" in layouts]
    _require(len(stored) in (0, len(layers)) and (stored or recipe), "positions of some layers alone", stored)
    shapes, digests, values = {}, {}, {}
    for name, layer in layers.items():
        _require(isinstance(layer, dict) and set(layer) == {"shape", "digest"}, name, layer)
        shape, digests[name], values[name] = layer["shape"], layer["digest"], layouts[f"{name}.values"]
        _require(isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 2**31 for n in shape),
                 f"shape of {name}", shape)  # fmt: skip
        _require(is_hash(digests[name]), f"digest of {name}", digests[name])
        shapes[name] = shape[0], shape[1]
        _check_values(name, shapes[name], values[name], layouts.get(f"{name}.positions"), recipe)
    expected = {f"{name}.{part}" for name in layers for part in ("values", *(("positions",) if stored else ()))}
    expected |= {f"{BUFFERS}:{name}" for name in buffers}
    _require(expected == set(layouts), "tensors", sorted(expected ^ set(layouts))[:3])
    return AdapterHeader(metadata, recipe, scale, shapes, digests, values, bool(stored), tuple(buffers))


def _check_values(
    name: str, shape: tuple[int, int], values: Layout, positions: Layout | None, recipe: MaskRecipe | None
) -> None:
    count, numel = math.prod(values.shape), shape[0] * shape[1]
    _require(len(values.shape) == 1 and values.dtype in FLOATS and count <= numel, f"values of {name}", values)
    if positions is not None:
        _require(positions.shape == values.shape and positions.dtype in (torch.int32, torch.int64),
                 f"positions of {name}", positions)  # fmt: skip
        return
    _require(recipe is not None and plausible_count(count, shape, recipe), f"number of values of {name}", count)


def plausible_count(count: int, shape: tuple[int, int], recipe: MaskRecipe) -> bool:
    """Tell whether a recipe can draw so many positions in a matrix (out, in), without drawing them.

    So that drawing for a file costs no more than the values that it has: ten standard deviations, or the exact count.
    """
    expected = math.prod(shape) * recipe.density
    if recipe.structure != "entries" or recipe.density in (0, 1):
        return count == int(expected)
    return abs(count - expected) <= 10 * math.sqrt(expected * (1 - recipe.density)) + 10


def _require(sound: Any, field: str, value: Any) -> None:
    if not sound:
        raise ValueError(f"{field[:60]} is {str(value)[:50]!r}")

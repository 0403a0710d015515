"""The recipe of a model's masks: from targets, a density, a seed and a structure to one mask for each layer."""

from collections.abc import Callable
from dataclasses import dataclass

from rmbook.checks import check_density, check_seed
from rmbook.masks.sample import Mask, sample_mask
from rmbook.masks.structured import leading_columns, random_columns

STRUCTURES: dict[str, Callable[[tuple[int, int], float, int, str], Mask]] = {
    "entries": sample_mask,
    "random_columns": random_columns,
    "leading_columns": lambda shape, density, seed, name: leading_columns(shape, density),
}


@dataclass(frozen=True)
class MaskRecipe:
    """Recipe by which the masks of a model are drawn; a stored recipe draws the same ones again.

    Attributes:
        targets: names of the target layers, as given.
        density: probability that an entry of a target matrix is trained.
        seed: each layer's mask depends on it and on the parameter's name alone.
        structure: "entries" (each on its own, the paper's random masking), "leading_columns" (the paper's structured
            masking) or "random_columns".
    """

    targets: tuple[str, ...]
    density: float
    seed: int
    structure: str = "entries"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_seed(self.seed)
        if self.structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {', '.join(STRUCTURES)}, got {self.structure!r}.")

    def draw(self, shapes: dict[str, tuple[int, int]]) -> dict[str, Mask]:
        """Draw the masks of layers of these shapes, by layer name."""
        sample = STRUCTURES[self.structure]
        return {name: sample(shape, self.density, self.seed, f"{name}.weight") for name, shape in shapes.items()}

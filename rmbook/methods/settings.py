"""The settings of each method, declared once: for the checks, the help, `rmbook describe` and the record of a run."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from rmbook.errors import ConfigError, closest, shown
from rmbook.settings import check_settings, help_text, setting, wanted

PRESETS = ("qv", "attention", "o_proj", "mlp", "all_linear")
STRUCTURES = ("entries", "leading_columns", "random_columns")
BACKENDS = ("auto", "torch", "triton", "spops", "dense")
WIDEST = 2**14  # a rank, a width or a prefix beyond it is a slip


class MethodError(ConfigError):
    """A method is unknown, cannot be applied to this model, or does not take a setting."""


@dataclass(frozen=True)
class MethodSettings:
    """Settings of a method; checked when made.

    Attributes:
        takes: which settings of the run the method takes: "targets", "ratio", "density" and "seed".
    """

    takes: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True)
class MaskSettings(MethodSettings):
    """Settings of random masking."""

    takes = ("targets", "ratio", "density", "seed")
    structure: str = setting("What is drawn", "entries", choices=STRUCTURES)
    backend: str = setting("Who computes the gradient of the values", "auto", choices=BACKENDS)
    scale: float | str = setting(
        "S = scale * values; inverse_density is 1 / density", 1.0, above=0, most=1e30, choices=("inverse_density",)
    )

    unused: str = setting(
        "What happens if the first step gives some masked layers no gradient", "error", choices=("error", "warn")
    )


@dataclass(frozen=True)
class StructuredMaskSettings(MaskSettings):
    """Settings of structured masking."""

    structure: str = setting("What is drawn", "leading_columns", choices=STRUCTURES)


@dataclass(frozen=True)
class LoraSettings(MethodSettings):
    """Settings of LoRA."""

    takes = ("targets", "seed")
    rank: int = setting("Columns of the factors", 8, least=1, most=WIDEST)
    alpha: float = setting("Updates are scaled by alpha / rank", 16.0, above=0, most=1e30)


@dataclass(frozen=True)
class AdaLoraSettings(MethodSettings):
    """Settings of AdaLoRA; see `rmbook.methods.adalora.AdaLora`."""

    takes = ("targets", "seed")
    rank: int = setting("Mean number of directions of a matrix at the end", 8, least=1, most=WIDEST)
    initial_rank: int | None = setting(
        "Directions of each matrix at the start", None, least=1, most=WIDEST, unset="the rank: none is dropped"
    )
    alpha: float = setting("Updates are scaled by alpha / initial_rank", 16.0, above=0, most=1e30)
    total_steps: int | None = setting(
        "Steps of the schedule that drops directions", None, least=1, most=10**9, unset="those of the run"
    )
    warmup_steps: int | None = setting(
        "Steps before the first direction is dropped", None, least=0, most=10**9, unset="a tenth of the run"
    )
    final_steps: int | None = setting(
        "Steps at the end after the last is dropped", None, least=0, most=10**9, unset="three tenths of the run"
    )
    interval: int = setting("Steps from one choice of directions to the next", 10, least=1, most=10**9)
    orthogonality: float = setting("Weight of the penalty on factors that are not orthogonal", 0.5, least=0, most=1e30)

    @property
    def drops(self) -> bool:
        """Return whether directions are dropped over the run."""
        return (self.initial_rank or self.rank) > self.rank

    def __post_init__(self):
        super().__post_init__()
        if self.initial_rank is not None and self.rank > self.initial_rank:
            raise ConfigError(
                f"rank must be at least 1 and at most initial_rank, got {self.rank} and {self.initial_rank}."
            )
        given = [name for name in ("total_steps", "warmup_steps", "final_steps") if getattr(self, name) is not None]
        if given and not self.drops:
            raise ConfigError(
                f"{given[0]} is of the schedule that drops directions, and none is dropped: give an initial_rank above "
                f"the rank {self.rank}, or leave {given[0]} out."
            )
        if self.total_steps is not None:
            self.schedule(self.total_steps)

    def schedule(self, total_steps: int) -> tuple[int, int]:
        """Steps before the first direction is dropped and after the last, in a run of so many.

        Raises:
            ConfigError: none is left in between.
        """
        warmup_steps = total_steps // 10 if self.warmup_steps is None else self.warmup_steps
        final_steps = total_steps * 3 // 10 if self.final_steps is None else self.final_steps
        if warmup_steps >= total_steps - final_steps:
            raise ConfigError(
                f"no step is left for dropping directions: warmup_steps {warmup_steps} and final_steps {final_steps} "
                f"must sum to less than total_steps {total_steps}."
            )
        return warmup_steps, final_steps


@dataclass(frozen=True)
class AdapterSettings(MethodSettings):
    """Settings of Houlsby adapters; see `rmbook.methods.houlsby.add_adapters`."""

    takes = ("seed",)
    width: int = setting("Features of a bottleneck", 8, least=1, most=WIDEST)
    bias: bool = setting("Give the bottlenecks biases", False)
    train_norms: bool = setting("Train the layer norms of the blocks, too", True)


@dataclass(frozen=True)
class PrefixSettings(MethodSettings):
    """Settings of prefix tuning; see `rmbook.methods.prefix.add_prefix`."""

    takes = ("seed",)
    length: int = setting("Positions of the prefix", 5, least=1, most=WIDEST)
    words: tuple[int, ...] | None = setting(
        "Token ids to start from, as many as length says", None, least=0, most=10**9, unset="random ones"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.words is not None and len(self.words) != self.length:
            raise ConfigError(f"the prefix has {self.length} positions, but {len(self.words)} words were given.")


@dataclass(frozen=True)
class BitfitSettings(MethodSettings):
    """Settings of BitFit."""

    norms: bool = setting("Train the biases of layer norms, too", False)


METHOD_SETTINGS = {
    "full": MethodSettings,
    "random_masking": MaskSettings,
    "structured_masking": StructuredMaskSettings,
    "lora": LoraSettings,
    "adalora": AdaLoraSettings,
    "adapter": AdapterSettings,
    "prefix": PrefixSettings,
    "bitfit": BitfitSettings,
}


def method_settings(name: str, values: dict) -> MethodSettings:
    """The settings of a method from names and values, checked, with the method's defaults.

    Raises:
        MethodError: the method is unknown, or does not take a setting.
        ConfigError: a value is of another type, or out of range.
    """
    if name not in METHOD_SETTINGS:
        raise MethodError(f"unknown method {shown(name)}: {closest(name, METHOD_SETTINGS)}")
    kind = METHOD_SETTINGS[name]
    known = {entry.name for entry in dataclasses.fields(kind)}
    refuse_settings(name, [key for key in values if key not in known])
    return kind(**values)


def refuse_settings(name: str, unknown: list) -> None:
    """Raise MethodError if there are names that a method does not take."""
    if unknown:
        kind = METHOD_SETTINGS[name]
        known = ", ".join([*kind.takes, *(entry.name for entry in dataclasses.fields(kind))])
        raise MethodError(
            f"{name} does not take {', '.join(shown(key) for key in unknown[:3])}; it takes {known or 'no settings'}."
        )


def describe_settings(name: str) -> str:
    """One line for each setting of a method.

    Raises:
        MethodError: the method is unknown.
    """
    settings = method_settings(name, {})
    lines = [f"  {e.name}, {wanted(e)}: {help_text(e)}" for e in dataclasses.fields(settings)]
    takes = [f"--{part}" for part in settings.takes if part != "seed"]
    where = f", beside {' and '.join(takes)}" if takes else ""
    return "\n".join([f"{name} takes {'by --set' if lines else 'no settings'}{where}{':' if lines else '.'}", *lines])

"""accelerate's `Accelerator` for a run: what other code of the process or the environment has set plays no part.

accelerate keeps one state a process. An earlier Accelerator, or variables such as ACCELERATE_MIXED_PRECISION and
ACCELERATE_GRADIENT_ACCUMULATION_STEPS, would change the numbers of a run that does not mention them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin

from rmbook.errors import ConfigError

STATES = (AcceleratorState, GradientState)


def new_accelerator(mixed_precision: str = "no") -> Accelerator:
    """Return an Accelerator of its own state; earlier ones are of no more use, unless `keeping_state` is around it.

    Args:
        mixed_precision: "no", "bf16" or "fp16".

    Raises:
        ConfigError: the environment, which `accelerate launch` sets, asks for FSDP1.
    """
    for state in STATES:
        state._shared_state.clear()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    refuse_fsdp1(accelerator)
    return accelerator


def refuse_fsdp1(accelerator: Accelerator) -> None:
    """Raise ConfigError if an Accelerator is to shard the model by FSDP1."""
    if shards_base(accelerator) and not accelerator.is_fsdp2:
        raise ConfigError(
            "FSDP1 is not supported: use fsdp_version: 2 in accelerate's configuration (accelerate config), or plain "
            "data parallel training."
        )


def shards_base(accelerator: Accelerator) -> bool:
    """Tell whether FSDP shards the model: then all processes have to call it equally often."""
    return accelerator.distributed_type == DistributedType.FSDP


@contextmanager
def keeping_state() -> Iterator[None]:
    """Give earlier Accelerators of the process their state back afterwards."""
    kept = [dict(state._shared_state) for state in STATES]
    try:
        yield
    finally:
        for state, entries in zip(STATES, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(entries)

"""AdaLoRA through `peft`: low-rank updates P diag(E) Q whose directions compete for a shrinking budget.

Zhang et al. (2023), "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning". Two things must be done besides
the usual training step, and neither happens by itself: a penalty is added to the loss, and after each step directions
of little importance are set to zero.
"""

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmbook.engine.targets import find_targets
from rmbook.errors import ConfigError
from rmbook.methods.settings import AdaLoraSettings

ADAPTER = "default"


def widen_factors(model: nn.Module) -> None:
    """Hold the factors that peft added in float32 where it took a shorter dtype from the layer: updates are small."""
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


class AdaLora:
    """Low-rank updates with a budget of directions; a frozen model gets them in place.

    With `initial_rank` equal to `rank` no direction is dropped: what remains of AdaLoRA is the product of three factors
    and the penalty. That is the reading under which the paper's tables count its parameters. AdaLoRA's authors start
    from 1.5 times the final rank: `rank=8, initial_rank=12` ends with the same number of directions.

    Args:
        model: any model whose targets `peft` supports.
        targets: names of the target layers.
        settings: see `rmbook.methods.settings.AdaLoraSettings`; with total_steps if directions are to be dropped.

    Raises:
        TargetError: if a target matches nothing.
        ConfigError: directions are to be dropped and total_steps is missing, or leaves no step for it.
    """

    def __init__(self, model: nn.Module, targets: tuple[str, ...], settings: AdaLoraSettings):
        self.drops, first = settings.drops, settings.initial_rank or settings.rank
        total = settings.total_steps
        if self.drops and total is None:
            raise ConfigError("adalora drops directions over the run: give total_steps, its number of optimiser steps.")
        warmup_steps, final_steps = settings.schedule(total) if self.drops and total else (0, 0)
        layers = find_targets(model, targets)
        config = AdaLoraConfig(
            target_r=settings.rank,
            init_r=first,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules=list(targets),
            tinit=warmup_steps,
            tfinal=final_steps,
            deltaT=settings.interval,
            total_step=total or 1,  # peft wants a number
            orth_reg_weight=settings.orthogonality,
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        )
        self.tuner = AdaLoraModel(model, config, ADAPTER)
        widen_factors(model)
        for name, parameter in model.named_parameters():
            if f"ranknum.{ADAPTER}" in name:  # a constant; peft makes it trainable on the meta device
                parameter.requires_grad_(False)

    def penalty(self) -> torch.Tensor:
        """orthogonality * mean over all P and Q of |P'P - I|, |QQ' - I| (Frobenius norms): add it to the loss."""
        parts = []
        for name, factor in self.tuner.model.named_parameters():
            if f"lora_A.{ADAPTER}" in name or f"lora_B.{ADAPTER}" in name:
                gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
                parts.append((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm())
        return self.tuner.peft_config[ADAPTER].orth_reg_weight * torch.stack(parts).mean()

    def after_step(self, step: int) -> None:
        """Note how important each direction is and drop some; after `optimizer.step()`, before `zero_grad()`.

        Args:
            step: optimiser steps taken so far, this one included: 1 after the first.
        """
        if self.drops:
            self.tuner.update_and_allocate(step)

    def state(self) -> dict[str, torch.Tensor]:
        """State of the choice of directions, by name; the factors themselves are parameters of the model."""
        allocator, kept = self.tuner.rankallocator, self.tuner.peft_config[ADAPTER].rank_pattern or {}
        state = {
            f"{kind}:{name}": tensor.detach().clone()
            for kind in ("exp_avg_ipt", "exp_avg_unc", "ipt")
            for name, tensor in getattr(allocator, kind).items()
        }
        return state | {f"kept:{name}": torch.tensor(kept[name]) for name in kept}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave."""
        allocator, kept = self.tuner.rankallocator, {}
        allocator.reset_ipt()
        for key, tensor in state.items():
            kind, _, name = key.partition(":")
            if kind == "kept":
                kept[name] = tensor.tolist()
            else:
                parameter = self.tuner.model.get_parameter(name)
                getattr(allocator, kind)[name] = tensor.to(parameter.device, copy=True)
        self.tuner.peft_config[ADAPTER].rank_pattern = kept or None

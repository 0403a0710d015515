"""The paper's language models without their weights: all that can be counted before anything is downloaded."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig, PreTrainedModel

from rmbook.engine.targets import find_targets
from rmbook.masks.sample import ratio_to_density
from rmbook.methods.apply import apply_method
from rmbook.methods.architectures import resolve_targets


def _opt(width: int, blocks: int, heads: int) -> OPTConfig:
    return OPTConfig(
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        word_embed_proj_dim=width,
    )


CONFIGS = {
    "OPT-125m": _opt(768, 12, 12),
    "OPT-1.3b": _opt(2048, 24, 32),
    "OPT-13b": _opt(5120, 40, 40),
    "Llama-2-7b": LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
}
MASK_BYTES = 4 + 4 + 4 + 4  # an entry's value, its merged copy, its position and its column


def model_without_numbers(name: str | PretrainedConfig) -> PreTrainedModel:
    """Return a model on the meta device: every shape, no numbers, no memory.

    Args:
        name: "OPT-125m", "OPT-1.3b", "OPT-13b" or "Llama-2-7b"; or the configuration of another model.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name] if isinstance(name, str) else name)


def count_parameters(name: str | PretrainedConfig, targets: str | None = None) -> tuple[int, int]:
    """All parameters of a model, tied ones once, and those in target matrices (of "qv" if None)."""
    model = model_without_numbers(name)
    layers = find_targets(model, resolve_targets(model, targets))
    held = sum(layer.weight.numel() for layer in layers.values())
    return sum(parameter.numel() for parameter in model.parameters()), held


def count_trained(name: str | PretrainedConfig, method: str, ratio: float | None = None) -> int:
    """Parameters that a method trains with its default settings; of a mask the number that is expected.

    Args:
        name: as for `model_without_numbers`.
        method: as for `rmbook.methods.apply.apply_method`.
        ratio: for masks: trained entries / all parameters.

    Raises:
        ValueError: more entries than the target matrices have.
        MethodError: the method does not fit the model.
    """
    if method.endswith("_masking") and ratio is not None:
        total, held = count_parameters(name)
        return round(ratio_to_density(ratio, total, held) * held)
    return apply_method(model_without_numbers(name), method).trainable


def training_bytes(
    name: str | PretrainedConfig, method: str, ratio: float | None = None, weight_bytes: int = 2
) -> dict[str, int]:
    """Memory of a training step in bytes, without activations, which depend on batch and prompts.

    Args:
        name, method, ratio: as for `count_trained`.
        weight_bytes: of a frozen weight: 2 for bfloat16, 4 for float32. What is trained is in float32; so full
            fine-tuning has weights of 4 bytes.

    Returns:
        weights: all parameters of the model.
        trained: what the method adds to them; for masks with the original entries, the merged copies and the positions.
        gradients: float32, of what is trained.
        adam: two float32 moments of what is trained.
    """
    total, trained = count_parameters(name)[0], count_trained(name, method, ratio)
    each = {"full": 0, "random_masking": MASK_BYTES + weight_bytes, "structured_masking": MASK_BYTES + weight_bytes}
    return {
        "weights": total * (4 if method == "full" else weight_bytes),
        "trained": trained * each.get(method, 4),
        "gradients": trained * 4,
        "adam": trained * 8,
    }

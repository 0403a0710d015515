"""Log-probabilities of options under a language model, batched with padding on the left: the reference, and training.

All options of a batch end at the right edge, so the model's output layer, the largest of all in small models, runs over
the last tokens only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rmbook.models.device import model_device
from rmbook.models.encoding import Encoding


def left_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and position_ids, each int64 (sequences, longest), padded on the left.

    Positions count from each sequence's own start: models with learned positions, such as GPT-2, would otherwise see
    other ones than without padding.
    """
    longest = max(map(len, sequences))
    input_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in sequences])  # any token: it is masked
    attention_mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in sequences])
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def option_log_probabilities(model: nn.Module, encodings: Sequence[Encoding]) -> torch.Tensor:
    """Log-probability of every option token given all tokens before it, at least float32; differentiable.

    Args:
        model: a causal language model of transformers.
        encodings: each with an option, which is scored; the context is not.

    Returns:
        (encodings, longest option): the option's tokens at the right edge, 0 to their left.

    Raises:
        ValueError: an option without tokens, or without context.
    """
    if wrong := [e for e in encodings if not 1 <= e.option_length < len(e.input_ids)]:
        raise ValueError(
            f"an option must have at least one token and a context before it, got {wrong[0].option_length} of "
            f"{len(wrong[0].input_ids)} tokens: encode with encode_options."
        )
    device = model_device(model)
    longest = max(encoding.option_length for encoding in encodings)
    batch = left_padded([encoding.input_ids for encoding in encodings], device)
    logits = model(**batch, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1]  # (n, longest, vocabulary)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = batch["input_ids"][:, -longest:]  # (n, longest)
    # Flat: over a transposed vocabulary the same call takes three times as long on a CPU.
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return (-losses).masked_fill(~_is_option(encodings, longest, device), 0.0)


def mean_log_probabilities(model: nn.Module, encodings: Sequence[Encoding]) -> torch.Tensor:
    """The paper's score of an option, (encodings,): the mean log-probability of its tokens."""
    lengths = torch.tensor([encoding.option_length for encoding in encodings])
    sums = option_log_probabilities(model, encodings).sum(1)
    return sums / lengths.to(sums)


def _is_option(encodings: Sequence[Encoding], longest: int, device: torch.device) -> torch.Tensor:
    lengths = torch.tensor([encoding.option_length for encoding in encodings])
    return (torch.arange(longest, 0, -1) <= lengths[:, None]).to(device, non_blocking=True)  # (n, longest)

"""Answers that a model writes itself: greedy generation up to the end of the line, as in MeZO."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rmbook.models.device import model_device
from rmbook.models.encoding import MAX_NEW_TOKENS, Encoding
from rmbook.models.likelihood import left_padded
from rmbook.models.option_scores import evaluation_mode, token_batches


@torch.no_grad()
def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Encoding],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_tokens: int = 16384,
    advance: Callable[[int], None] | None = None,
) -> list[str]:
    """Return what the model finds the likeliest next, token by token, up to a line break or its end-of-sequence token.

    Settings that a checkpoint brings for generation, such as sampling or penalties, play no part.

    Args:
        model: a causal language model of transformers; it runs in evaluation mode, and is put back into its own.
        tokenizer: of the model.
        questions: from `encode_context`.
        max_new_tokens: longest answer in tokens; prompt and answer must fit into the model.
        max_tokens: tokens in memory at once, padding and answers included. What is longer by itself is run by itself.
        advance: called with the number of questions whenever some are finished.

    Returns:
        One answer a question, without special tokens and without spaces or line breaks at its ends.

    Raises:
        ValueError: a question without tokens.
    """
    if not all(question.input_ids for question in questions):
        raise ValueError("a question without tokens cannot be continued: encode with encode_context.")
    stops = stop_tokens(tokenizer)
    # A batch pads finished answers with the line break: stripped, with spaces, from the end.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=stops, pad_token_id=stops[0]
    )
    order = sorted(range(len(questions)), key=lambda number: len(questions[number].input_ids), reverse=True)
    answers, own = [""] * len(questions), model.generation_config
    model.generation_config = GenerationConfig()  # `generate` fills from the model's own what the given one leaves open
    try:
        with evaluation_mode(model):
            for batch in token_batches(order, lambda n: (len(questions[n].input_ids), max_new_tokens), max_tokens):
                padded = left_padded([questions[n].input_ids for n in batch], model_device(model))
                del padded["position_ids"]  # `generate` counts them itself, by the mask
                new = model.generate(**padded, generation_config=config)[:, padded["input_ids"].shape[1] :]
                for number, ids in zip(batch, new.tolist(), strict=True):
                    answers[number] = tokenizer.decode(ids, skip_special_tokens=True).strip()
                if advance is not None:
                    advance(len(batch))
    finally:
        model.generation_config = own
    return answers


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the last one of a line break, and the end of a sequence where there is one.

    Raises:
        ValueError: the tokenizer has neither.
    """
    stops = tokenizer.encode("\n", add_special_tokens=False)[-1:]
    if tokenizer.eos_token_id is not None:
        stops.append(tokenizer.eos_token_id)
    if not stops:
        raise ValueError("the tokenizer has no token for a line break and no end-of-sequence token to stop at.")
    return stops

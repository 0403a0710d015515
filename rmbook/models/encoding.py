"""Prompts as tokens, as in MeZO: which tokens are scored, and what is cut where a prompt is too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rmbook.errors import TaskError, printable, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 2048  # of the paper's models
MAX_NEW_TOKENS = 50  # of an answer that the model writes


@dataclass(frozen=True)
class Encoding:
    """The tokens of a prompt.

    Attributes:
        input_ids: with the start token where there is one.
        option_length: how many tokens at the end are the option ("option_len" in MeZO); 0 for a prompt that the model
            is to continue.
        cut: tokens removed after the start token so that the rest fits.
    """

    input_ids: list[int]
    option_length: int
    cut: int = 0


@dataclass(frozen=True)
class Question:
    """A prompt as the language objectives want it: the tokens of its options, and which of them is right."""

    options: tuple[Encoding, ...]
    gold: int


def start_token(tokenizer: PreTrainedTokenizerBase, model_type: str) -> int | None:
    """The token that stands before every prompt; None for tokenizers that put none, such as GPT-2's and Qwen's.

    For OPT it is 0, "<s>", which MeZO and so the paper's runs use, though OPT's own tokenizer says 2, "</s>".

    Args:
        tokenizer: of the model.
        model_type: as in the model's configuration, "opt" or "llama" for instance.

    Raises:
        TaskError: the tokenizer adds other tokens, for instance at the end.
    """
    # Asked by an experiment: the attribute add_bos_token is False for fast tokenizers that do add one.
    plain, full = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    if full == plain:
        return None
    if full[1:] != plain:
        added = tokenizer.convert_ids_to_tokens(full)
        raise TaskError(
            f"the tokenizer turns 'a' into {added}: expected at most one token before it; switch the rest off."
        )
    return 0 if model_type == "opt" and tokenizer.convert_ids_to_tokens(0) == "<s>" else full[0]


def encode_options(
    context: str,
    continuations: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    start: int | None,
    max_length: int = MAX_LENGTH,
) -> list[Encoding]:
    """One encoding an option, for scoring or training.

    Args:
        context: the text before the options.
        continuations: what each option adds to it.
        tokenizer: of the model.
        start: from `start_token`.
        max_length: longest sequence in tokens; the context is cut from the left to fit.

    Raises:
        TaskError: an option that adds no token, or that leaves no room for any context.
    """
    # Only spaces are stripped: the line break that ends a written answer stays.
    before = len(_tokens(tokenizer, context.strip(" ")))
    return [_option(context + option, before, tokenizer, start, max_length) for option in continuations]


def encode_context(
    context: str, tokenizer: PreTrainedTokenizerBase, start: int | None, max_length: int = MAX_LENGTH - MAX_NEW_TOKENS
) -> Encoding:
    """The context alone, to be continued by the model; `max_length` must leave room for that.

    Raises:
        TaskError: max_length leaves no room for any context.
    """
    return _fit(_tokens(tokenizer, context.strip(" ").lstrip()), start, max_length, option_length=0)


def check_tokens(encodings: Iterable[Encoding], known: int) -> None:
    """Raise TaskError if there is a token that is not among the first `known`, the rows of a model's embedding."""
    largest = max((max(encoding.input_ids, default=0) for encoding in encodings), default=0)
    if largest >= known:
        raise TaskError(
            f"the tokenizer gives a token {largest}, but the model knows 0 to {known - 1}: the two belong to different "
            "models; get both from one place."
        )


def _option(text: str, before: int, tokenizer, start: int | None, max_length: int) -> Encoding:
    # MeZO counts the option's tokens before it strips line breaks from the start of the whole text, as here.
    stripped = text.strip(" ")
    final = stripped.lstrip()
    ids = _tokens(tokenizer, stripped)
    option_length = len(ids) - before
    if option_length < 1:
        raise TaskError(f"an option adds no token to its prompt, which ends in {stripped[-40:]!r}.")
    return _fit(ids if final == stripped else _tokens(tokenizer, final), start, max_length, option_length)


def _fit(ids: list[int], start: int | None, max_length: int, option_length: int) -> Encoding:
    room = max_length - (start is not None)
    # Something must stand before the option, to predict its first token; a generation needs a prompt.
    if room < max(1, option_length + (start is None)):
        raise TaskError(
            f"{max(max_length, 0)} tokens have no room for a context and an option of {option_length}: "
            "give a larger max_length."
        )
    cut = max(0, len(ids) - room)
    return Encoding(([] if start is None else [start]) + ids[cut:], option_length, cut)


def _tokens(tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the library tokenizers, and no Exception
            raise
        said = printable(str(error), 80)
        raise TaskError(f"the tokenizer fails on {shown(text)} ({said}): get its files again.") from None

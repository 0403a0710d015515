"""Scores of options: what a prompt's options have in common is run once, and its keys and values serve all of them.

In ReCoRD a dozen options follow one article, so nearly all the work of scoring them one by one is the article, again
and again. `rmbook.models.likelihood.mean_log_probabilities` does just that: it is the reference.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache

from rmbook.models.device import model_device
from rmbook.models.encoding import Encoding
from rmbook.models.likelihood import left_padded

LOGITS = 4  # one token's logits take about the memory of so many tokens' keys and values in a small model


@dataclass(frozen=True)
class _Option:
    """The tokens of one option that follow those that all options share."""

    prompt: int  # its number in the batch
    shared: int  # tokens before these
    tokens: list[int]  # the first is predicted by the last shared token, the last is never an input
    length: int  # of the option, which may have begun among the shared tokens

    @property
    def inputs(self) -> list[int]:
        return self.tokens[:-1]

    @property
    def unscored(self) -> int:
        """Number of inputs that predict tokens before the option: more than none where contexts are cut differently."""
        return max(0, len(self.inputs) - self.length)


@torch.no_grad()
def score_options(
    model: nn.Module,
    prompts: Sequence[Sequence[Encoding]],
    *,
    max_tokens: int = 16384,
    advance: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """The mean log-probability of every option's tokens, as `mean_log_probabilities`, with shared tokens run once.

    Args:
        model: a causal language model of transformers; it runs in evaluation mode, and is put back into its own.
        prompts: the encodings of each prompt's options, from `encode_options`.
        max_tokens: tokens in memory at once, padding included: of contexts, and once more of contexts copied for each
            of their options. What is longer by itself is run by itself.
        advance: called with the number of prompts whenever some are finished.

    Returns:
        (options,) for each prompt, float32, or float64 for a model in float64; on the CPU.

    Raises:
        ValueError: an encoding without an option, or with no token before it.
    """
    for encoding in (encoding for encodings in prompts for encoding in encodings):
        if not 0 < encoding.option_length < len(encoding.input_ids):
            raise ValueError(
                f"an option of {encoding.option_length} tokens among {len(encoding.input_ids)} has no score: at "
                "least one token must be in it, and one before it. Encode with encode_options."
            )
    shared = [_shared_length(encodings) for encodings in prompts]

    def sizes(number: int) -> tuple[int, int]:
        return shared[number], LOGITS * _scored_length(prompts[number], shared[number])

    order = sorted(range(len(prompts)), key=sizes, reverse=True)
    scores = [torch.empty(0)] * len(prompts)
    with evaluation_mode(model):
        # Apart: without a start token, contexts that are cut differently may have no token in common.
        for group in ([n for n in order if shared[n]], [n for n in order if not shared[n]]):
            for batch in token_batches(group, sizes, max_tokens):
                found = _score_batch(model, [prompts[n] for n in batch], [shared[n] for n in batch], max_tokens)
                for number, values in zip(batch, found, strict=True):
                    scores[number] = values
                if advance is not None:
                    advance(len(batch))
    return scores


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout inside; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def token_batches(items: Iterable, sizes: Callable[..., Sequence[int]], max_tokens: int) -> Iterator[list]:
    """Runs of items in their order, each of as many as fit into max_tokens, but at least one.

    Args:
        items: best sorted by length, so that little of a batch is padding.
        sizes: tokens of an item by part; each part is padded to the widest of the batch.
        max_tokens: of a batch, padding included.
    """
    batch, widest = [], ()
    for item in items:
        wider = tuple(map(max, widest or sizes(item), sizes(item)))
        if batch and (len(batch) + 1) * sum(wider) > max_tokens:
            yield batch
            batch, wider = [], sizes(item)
        batch.append(item)
        widest = wider
    if batch:
        yield batch


def _shared_length(encodings: Sequence[Encoding]) -> int:
    """Return how many tokens all options begin with, without the last one of the shortest, which is no input."""
    if not encodings:
        return 0
    ids = [encoding.input_ids for encoding in encodings]
    limit = min(map(len, ids)) - 1
    pairs = zip(min(ids), max(ids), strict=False)  # of sorted lists, the first and the last differ the earliest
    return min(limit, next((place for place, (a, b) in enumerate(pairs) if a != b), limit))


def _scored_length(encodings: Sequence[Encoding], shared: int) -> int:
    """Return how many of the shared tokens, counted from the last, must predict the next one."""
    return max([1, *(shared + 1 - len(e.input_ids) + e.option_length for e in encodings)])


def _score_batch(model, prompts, shared: Sequence[int], max_tokens: int) -> list[torch.Tensor]:
    options = [
        _Option(prompt, count, encoding.input_ids[count:], encoding.option_length)
        for prompt, (encodings, count) in enumerate(zip(prompts, shared, strict=True))
        for encoding in encodings
    ]
    # Log-probabilities of tokens in their order; an option's own are the last ones.
    parts = [[] for _ in options]
    mask, cache = torch.empty(len(prompts), 0, dtype=torch.int64, device=model_device(model)), None
    if max(shared):
        contexts = [encodings[0].input_ids[:count] for encodings, count in zip(prompts, shared, strict=True)]
        scored = max(map(_scored_length, prompts, shared))
        mask, cache, parts = _run_contexts(model, contexts, scored, options)
    longer = sorted((n for n, o in enumerate(options) if o.inputs), key=lambda n: len(options[n].inputs))

    def sizes(number: int) -> tuple[int, int, int]:
        option = options[number]
        return mask.shape[1], (1 + LOGITS) * len(option.inputs), -LOGITS * option.unscored

    for batch in token_batches(longer, sizes, max_tokens):
        found = _run_options(model, [options[n] for n in batch], mask, cache)
        for number, values in zip(batch, found, strict=True):
            parts[number].append(values)
    scores = [[] for _ in prompts]
    for option, values in zip(options, parts, strict=True):
        scores[option.prompt].append(torch.cat(values)[-option.length :].mean())
    return [torch.stack(values) if values else torch.empty(0) for values in scores]


def _run_contexts(model, contexts, scored: int, options) -> tuple[torch.Tensor, Cache, list[list[torch.Tensor]]]:
    """The contexts' mask, their keys and values, and log-probabilities of `scored` tokens up to each option's first."""
    batch = left_padded(contexts, model_device(model))
    outputs = model(**batch, use_cache=True, logits_to_keep=scored)
    inside = _log_probabilities(
        outputs.logits[:, :-1], batch["input_ids"][:, batch["input_ids"].shape[1] - scored + 1 :]
    )
    last = outputs.logits[[option.prompt for option in options], -1:]  # (options, 1, vocabulary)
    first = _log_probabilities(last, torch.tensor([option.tokens[:1] for option in options], device=last.device))
    inside, first = inside.cpu(), first.cpu()
    parts = [[inside[option.prompt], values] for option, values in zip(options, first, strict=True)]
    return batch["attention_mask"], outputs.past_key_values, parts


def _run_options(model, options: Sequence[_Option], mask: torch.Tensor, cache: Cache | None) -> list[torch.Tensor]:
    """Log-probabilities of each option's tokens after its first, from those on that are scored in any option.

    Padding is on the right here: a sliding window counts places, so nothing may come between context and option.
    """
    width, unscored = max(len(o.inputs) for o in options), min(o.unscored for o in options)

    def padded(lists: list[list[int]], columns: int = width) -> torch.Tensor:
        return torch.tensor([values + [0] * (columns - len(values)) for values in lists], device=mask.device)

    prompts = [option.prompt for option in options]
    seen = torch.cat([mask[prompts], padded([[1] * len(option.inputs) for option in options])], dim=1)
    logits = model(
        input_ids=padded([option.inputs for option in options]),
        attention_mask=seen,
        position_ids=padded([list(range(o.shared, o.shared + len(o.inputs))) for o in options]),
        past_key_values=_rows(cache, prompts),
        use_cache=cache is not None,
        logits_to_keep=width - unscored,
    ).logits
    targets = padded([option.tokens[1 + unscored :] for option in options], width - unscored)
    found = _log_probabilities(logits, targets).cpu()
    return [values[: len(option.inputs) - unscored] for values, option in zip(found, options, strict=True)]


def _rows(cache: Cache | None, rows: list[int]) -> Cache | None:
    """A new cache of these rows of `cache`, some more than once; the old one stays as it is."""
    if cache is None:
        return None
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(torch.tensor(rows))  # on the CPU: layers may lie on several devices
    return chosen


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(rows, places) from (rows, places, vocabulary) and (rows, places); at least float32."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.to(logits.device).flatten(), reduction="none")
    return -losses.view(targets.shape)

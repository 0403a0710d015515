"""Objectives: each a sum over examples, so that a batch can be cut into any parts and shared by any processes.

The loss of a batch is the sum of its examples' losses over the sum of their weights. Both sums can be taken part by
part, with the divisor known before the first part is computed: then gradient accumulation and several processes take
the same step as one large batch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import default_collate
from typing_extensions import override

from rmbook.models.device import model_device
from rmbook.models.encoding import Question
from rmbook.models.likelihood import mean_log_probabilities, option_log_probabilities
from rmbook.models.option_scores import score_options, token_batches

EVALUATION_TOKENS = 16384  # in memory at once


class Objective:
    """An objective that `rmbook.train` minimises; methods that differ from these are overridden.

    Attributes:
        unit: of `length`.
    """

    unit = "examples"

    def weight(self, examples: Sequence) -> float:
        """Return what the examples' summed loss is divided by: their number, unless one of them counts for more."""
        return float(len(examples))

    def length(self, example: Any) -> int:
        """Size of an example: those of like length are evaluated together."""
        return 1

    def ahead(self, batches: Iterable[list], number: int = 0, count: int = 1) -> Iterable[list]:
        """Yield the batches in their order; objectives whose examples take time prepare them before they are needed.

        Args:
            batches: lists of examples.
            number, count: of this process among those that share each batch: it needs the examples number::count.
        """
        return batches

    def loss(self, model: nn.Module, examples: Sequence) -> torch.Tensor:
        """Sum of the examples' losses, a scalar that can be differentiated."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, examples: Sequence) -> tuple[torch.Tensor, int | None]:
        """Summed loss, and how many examples are right; None where right and wrong have no meaning."""
        raise NotImplementedError


class Classification(Objective):
    """The mean loss of models that compute their own.

    Args:
        collate: makes a batch, a dict of tensors with "labels", from a list of examples; torch's default if None.
    """

    def __init__(self, collate: Callable | None = None):
        self.collate = collate or default_collate

    @override
    def loss(self, model, examples):
        return model(**self._batch(model, examples)).loss * len(examples)

    @override
    def evaluate(self, model, examples):
        batch = self._batch(model, examples)
        output = model(**batch)
        right = (output.logits.argmax(-1) == batch["labels"]).sum().item()
        return output.loss.detach().double() * len(examples), right

    def _batch(self, model, examples) -> dict[str, torch.Tensor]:
        device = model_device(model)
        return {name: tensor.to(device) for name, tensor in self.collate(list(examples)).items()}


class OptionChoice(Objective):
    """Cross-entropy over a question's options; an option's logit is the mean log-probability of its tokens.

    The objective of the paper's classification tasks, in MeZO's code `forward_wrap_with_option_len`.
    """

    unit = "tokens"

    @override
    def length(self, example: Question) -> int:
        return sum(len(option.input_ids) for option in example.options)

    @override
    def loss(self, model, examples):
        scores = mean_log_probabilities(model, [option for example in examples for option in example.options])
        return self._cross_entropy(scores.split([len(example.options) for example in examples]), examples)

    @override
    def evaluate(self, model, examples):
        scores = score_options(model, [example.options for example in examples])
        right = sum(int(score.argmax()) == example.gold for score, example in zip(scores, examples, strict=True))
        return self._cross_entropy(scores, examples), right

    @staticmethod
    def _cross_entropy(scores, examples) -> torch.Tensor:
        lengths = {len(score) for score in scores}
        gold = torch.tensor([example.gold for example in examples]).to(scores[0].device)
        if len(lengths) == 1:  # one launch instead of one a question
            return F.cross_entropy(torch.stack(list(scores)), gold, reduction="sum")
        return torch.stack([F.cross_entropy(score, right) for score, right in zip(scores, gold, strict=True)]).sum()


class Answering(Objective):
    """Teacher forcing: the mean negative log-probability of the right answers' tokens, each token weighing the same.

    The objective of the paper's ReCoRD, SQuAD and DROP. The paper's runs of ReCoRD and DROP accumulated eight batches
    of one, each with its own mean, so that there each answer weighs the same, however long it is.
    """

    unit = "tokens"

    @override
    def weight(self, examples):
        return float(sum(example.options[example.gold].option_length for example in examples))

    @override
    def length(self, example: Question) -> int:
        return len(example.options[example.gold].input_ids)

    @override
    def loss(self, model, examples):
        return -option_log_probabilities(model, [example.options[example.gold] for example in examples]).sum()

    @override
    def evaluate(self, model, examples):
        sizes = [[self.length(example)] for example in examples]
        order = token_batches(range(len(examples)), lambda number: sizes[number], EVALUATION_TOKENS)
        return sum(self.loss(model, [examples[number] for number in batch]) for batch in order), None

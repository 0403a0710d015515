"""Answers of a model to a task's records, as the paper scores them."""

from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from rmbook.encoding import MAX_LENGTH, encode_options, encode_question, start_token
from rmbook.generation import generate_answers
from rmbook.objectives import Question
from rmbook.records import Record
from rmbook.scoring import score_options
from rmbook.tasks import find_task


def to_questions(
    records: Sequence[Record], model: nn.Module, tokenizer: PreTrainedTokenizerBase, max_length: int = MAX_LENGTH
) -> list[Question]:
    """Records as the objectives take them. Of several right answers the first is trained.

    Raises:
        TaskError: an option adds no token or leaves no room for a context within `max_length` tokens.
    """
    start = start_token(tokenizer, model.config.model_type)
    encoded = [tuple(encode_options(record, tokenizer, start, max_length)) for record in records]
    return [
        Question(options, record.gold[0] if record.gold else 0)
        for options, record in zip(encoded, records, strict=True)
    ]


def predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    max_length: int = MAX_LENGTH,
    advance: Callable[[int], None] | None = None,
) -> list[int] | list[str]:
    """What the model answers, for `rmbook.metrics.task_score`.

    Args:
        records: of one task.
        max_length: longest prompt in tokens, generated ones included.
        advance: called with the number of records as they are done.

    Returns:
        For each record the number of the option with the largest mean log-probability; for SQuAD and DROP the text
        that the model writes.

    Raises:
        TaskError: as for `to_questions`.
    """
    start = start_token(tokenizer, model.config.model_type)
    if find_task(records[0].task).generates:
        questions = [encode_question(record, tokenizer, start, max_length) for record in records]
        return generate_answers(model, tokenizer, questions, advance=advance)
    prompts = [encode_options(record, tokenizer, start, max_length) for record in records]
    return [int(scores.argmax()) for scores in score_options(model, prompts, advance=advance)]

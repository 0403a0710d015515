"""Answers of a model to a task's records, as the paper scores them."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rmbook.models.clip_preprocessing import Preprocessing
from rmbook.models.encoding import MAX_LENGTH, Question, encode_options, encode_question, start_token
from rmbook.models.generation import generate_answers
from rmbook.models.option_scores import score_options
from rmbook.tasks.image_files import ImageRecord
from rmbook.tasks.records import Record
from rmbook.tasks.task import find_task

EVALUATION_IMAGES = 128  # in memory at once


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
    tokenizer: PreTrainedTokenizerBase | Preprocessing,
    records: Sequence[Record] | Sequence[ImageRecord],
    max_length: int | None = MAX_LENGTH,
    advance: Callable[[int], None] | None = None,
) -> list[int] | list[str]:
    """What the model answers, for `rmbook.tasks.metrics.task_score`.

    Args:
        tokenizer: of a model of images, its preprocessing.
        records: of one task.
        max_length: longest prompt in tokens, generated ones included; of no meaning for images.
        advance: called with the number of records as they are done.

    Returns:
        For each record the number of the option with the largest mean log-probability, or of the class with the
        largest logit; for SQuAD and DROP the text that the model writes.

    Raises:
        TaskError: as for `to_questions`; an image is damaged.
    """
    if isinstance(tokenizer, Preprocessing):
        return _classify(model, tokenizer, records, advance)
    start = start_token(tokenizer, model.config.model_type)
    if find_task(records[0].task).generates:
        questions = [encode_question(record, tokenizer, start, max_length) for record in records]
        return generate_answers(model, tokenizer, questions, advance=advance)
    prompts = [encode_options(record, tokenizer, start, max_length) for record in records]
    return [int(scores.argmax()) for scores in score_options(model, prompts, advance=advance)]


@torch.no_grad()
def _classify(model, preprocessing, records, advance) -> list[int]:
    model.eval()
    device, answers = next(model.parameters()).device, []
    for start in range(0, len(records), EVALUATION_IMAGES):
        batch = preprocessing.batch(records[start : start + EVALUATION_IMAGES])
        answers += model(batch["pixel_values"].to(device)).logits.argmax(-1).tolist()
        if advance:
            advance(len(batch["labels"]))
    return answers

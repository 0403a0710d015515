"""The paper's eleven tasks of language: where their examples are, how a model is asked and what is trained."""

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from rmbook.errors import ConfigError, TaskError
from rmbook.models.encoding import (
    MAX_LENGTH,
    MAX_NEW_TOKENS,
    Question,
    check_tokens,
    encode_context,
    encode_options,
    start_token,
)
from rmbook.tasks.examples import Example, to_example
from rmbook.tasks.hub import hub_rows
from rmbook.tasks.metrics import best_f1
from rmbook.tasks.original_files import find_file, read_rows
from rmbook.tasks.prompts import prompt
from rmbook.tasks.task import SPLITS, Task, read_tasks


def load_model(name, **settings):
    """Return a causal language model and its tokenizer: `rmbook.models.language.load_language_model`."""
    from rmbook.models.language import load_language_model

    return load_language_model(name, **settings)


@dataclass(frozen=True, kw_only=True)
class LanguageTask(Task):
    """A task whose examples are prompts, for a causal language model.

    The model chooses an option, by the mean log-probability of its tokens. Where the metric is F1, in SQuAD and DROP,
    it writes the answer.

    Attributes:
        folder: of the original distribution.
        files: name of the original file of each split, "train" and "validation".
        labels: original labels in the order of the classes; empty where the original names the answer otherwise.
        trains_answer: teacher forcing on the right answer; else a cross-entropy over the options.
    """

    folder: str
    files: dict[str, str] = field(default_factory=lambda: {"train": "train.jsonl", "validation": "val.jsonl"})
    labels: tuple = ()

    load_model = staticmethod(load_model)  # one function for all tasks, which so can share a model

    @property
    def writes(self) -> bool:
        """Return whether the model writes the answer instead of choosing an option."""
        return self.metric == "f1"

    @override
    def load_examples(self, split: str, data_dir: str | os.PathLike | None = None) -> list[Example]:
        source, rows = hub_rows(self, split) if data_dir is None else read_rows(self, split, data_dir)
        if not rows:
            raise TaskError(f"{source} holds no examples: get {self.name}'s {split} split again.")
        return [to_example(self, row, f"{source}, example {number}") for number, row in enumerate(rows, 1)]

    @override
    def original_files(self, data_dir):
        return {split: find_file(self, split, Path(data_dir)) for split in SPLITS}

    @override
    def prompt_limit(self, model, wanted=None):
        """`wanted` if the model can take it; 2,048 tokens or all that it can take if None."""
        from rmbook.models.language import max_positions

        limit = max_positions(model)
        if wanted is not None and limit and wanted > limit:
            raise ConfigError(f"max_length {wanted} is more than the {limit} tokens that the model can take: lower it.")
        return wanted or min(limit or MAX_LENGTH, MAX_LENGTH)

    @override
    def encode(self, examples, model, preparation, max_length=None) -> list[Question]:
        """Questions with the tokens of their options. Of several right answers the first is trained."""
        options = self._encode(examples, model, preparation, max_length, written=False)
        golds = [example.gold[0] if example.gold else 0 for example in examples]
        return [Question(tuple(found), gold) for found, gold in zip(options, golds, strict=True)]

    @override
    def objective(self, preparation):
        from rmbook.training.objectives import Answering, OptionChoice

        return Answering() if self.trains_answer else OptionChoice()

    @override
    def predict(self, model, preparation, examples, max_length=None, advance=None):
        from rmbook.models.generation import generate_answers
        from rmbook.models.option_scores import score_options

        encoded = self._encode(examples, model, preparation, max_length, written=self.writes)
        if self.writes:
            return generate_answers(model, preparation, encoded, advance=advance)
        return [int(scores.argmax()) for scores in score_options(model, encoded, advance=advance)]

    def _encode(self, examples, model, tokenizer, max_length, written: bool) -> list:
        """Each example's options, or its context alone where the answer is to be written."""
        limit = max_length or self.prompt_limit(model)
        if self.writes:  # room for the answer, also when training, as in MeZO
            limit -= MAX_NEW_TOKENS
        start = start_token(tokenizer, model.config.model_type)
        found: list[Any] = []
        for number, example in enumerate(examples, 1):
            context, continuations = prompt(example)
            try:
                if written:
                    found.append(encode_context(context, tokenizer, start, limit))
                else:
                    found.append(encode_options(context, continuations, tokenizer, start, limit))
            except TaskError as error:
                raise TaskError(f"{self.name}, example {number} of {len(examples)}: {error}") from None
        known = model.get_input_embeddings().num_embeddings
        check_tokens(found if written else itertools.chain.from_iterable(found), known)
        return found

    @override
    def _score_one(self, example, prediction):
        return best_f1(prediction, example.answers) if self.writes else super()._score_one(example, prediction)


LANGUAGE_TASKS = read_tasks(LanguageTask, Path(__file__).with_suffix(".yaml"))

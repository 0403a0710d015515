"""The prompts of the paper's runs: MeZO's templates (Malladi et al., 2023), to the byte.

A prompt is a context and, for each option, what continues it: the text that is scored is context + continuation.
"""

from collections.abc import Callable

from rmbook.tasks.records import Record

_Prompt = tuple[str, list[str]]  # context, and one continuation an option
YES_NO, NO_YES = ["Yes", "No"], ["No", "Yes"]


def prompt(record: Record) -> tuple[str, list[str]]:
    """The prompt of a record.

    Returns:
        context: the text before the options.
        continuations: what each option adds to it, in the order of the classes or of `record.choices`. For SQuAD and
            DROP there is one, the first right answer.
    """
    return _TEMPLATES[record.task](record)


def _sst2(record: Record) -> _Prompt:
    return f"{record.texts['sentence'].strip()} It was", [" terrible", " great"]


def _rte(record: Record) -> _Prompt:
    texts = record.texts
    return f'{texts["premise"]}\nDoes this mean that "{texts["hypothesis"]}" is true? Yes or No?\n', YES_NO


def _cb(record: Record) -> _Prompt:
    texts = record.texts
    question = f'Can we infer that "{texts["hypothesis"]}"? Yes, No, or Maybe?\n'
    return f"Suppose {texts['premise']} {question}", ["Yes", "No", "Maybe"]


def _boolq(record: Record) -> _Prompt:
    """MeZO's third version, the one it uses."""
    question = record.texts["question"]
    question = question[0].upper() + question[1:]
    return f"{record.texts['passage']} {question}{'' if question.endswith('?') else '?'}\n", YES_NO


def _wsc(record: Record) -> _Prompt:
    texts = record.texts
    question = f'does the pronoun "{texts["span2_text"].lower()}" refer to {texts["span1_text"]}? Yes or No?\n'
    return f"{texts['text']}\nIn the previous sentence, {question}", NO_YES


def _wic(record: Record) -> _Prompt:
    texts = record.texts
    question = f'Does the word "{texts["word"]}" have the same meaning in these two sentences? Yes, No?'
    return f"{question}\n{texts['sentence1']}\n{texts['sentence2']}\n", NO_YES


def _multirc(record: Record) -> _Prompt:
    texts = record.texts
    answer = f'I found this answer "{texts["answer"]}". Is that correct? Yes or No?\n'
    return f"{texts['paragraph']}\nQuestion: {texts['question']}\n{answer}", NO_YES


def _copa(record: Record) -> _Prompt:
    """The choice goes on with the premise's sentence, so its first letter becomes small, unless its word is "I"."""
    premise = record.texts["premise"].rstrip().removesuffix(".")
    conjunction = {"effect": " so ", "cause": " because "}[record.texts["question"]]
    return premise + conjunction, [_small_first_word(choice) for choice in record.choices]


def _small_first_word(choice: str) -> str:
    first, *others = choice.split(" ")
    return " ".join([first if first == "I" else first.lower(), *others])


def _record(record: Record) -> _Prompt:
    """As in GPT-3: the query is one more point of the article's summary, with each entity in its gap in turn."""
    passage = record.texts["passage"].replace("@highlight\n", "- ")
    return f"{passage}\n-", [" " + record.texts["query"].replace("@placeholder", choice) for choice in record.choices]


def _squad(record: Record) -> _Prompt:
    texts = record.texts
    context = f"Title: {texts['title']}\nContext: {texts['context']}\nQuestion: {texts['question'].strip()}\nAnswer:"
    return context, [f" {record.answers[0]}\n"]


def _drop(record: Record) -> _Prompt:
    texts = record.texts
    context = f"Passage: {texts['passage']}\nQuestion: {texts['question'].strip()}\nAnswer:"
    return context, [f" {record.answers[0]}\n"]


_TEMPLATES: dict[str, Callable[[Record], _Prompt]] = {
    "SST-2": _sst2,
    "RTE": _rte,
    "CB": _cb,
    "BoolQ": _boolq,
    "WSC": _wsc,
    "WiC": _wic,
    "MultiRC": _multirc,
    "COPA": _copa,
    "ReCoRD": _record,
    "SQuAD": _squad,
    "DROP": _drop,
}

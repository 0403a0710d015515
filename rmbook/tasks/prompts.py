"""The prompts of the paper's runs: MeZO's templates (Malladi et al., 2023), to the byte.

A prompt is a context and, for each option, what continues it: the text that is scored is context + continuation.
"""

from collections.abc import Callable

from rmbook.tasks.examples import Example

_Prompt = tuple[str, list[str]]  # context, and one continuation an option
YES_NO, NO_YES = ["Yes", "No"], ["No", "Yes"]


def prompt(example: Example) -> tuple[str, list[str]]:
    """The prompt of a example.

    Returns:
        context: the text before the options.
        continuations: what each option adds to it, in the order of the classes or of `example.choices`. For SQuAD and
            DROP there is one, the first right answer.
    """
    return _TEMPLATES[example.task](example)


def _sst2(example: Example) -> _Prompt:
    return f"{example.texts['sentence'].strip()} It was", [" terrible", " great"]


def _rte(example: Example) -> _Prompt:
    texts = example.texts
    return f'{texts["premise"]}\nDoes this mean that "{texts["hypothesis"]}" is true? Yes or No?\n', YES_NO


def _cb(example: Example) -> _Prompt:
    texts = example.texts
    question = f'Can we infer that "{texts["hypothesis"]}"? Yes, No, or Maybe?\n'
    return f"Suppose {texts['premise']} {question}", ["Yes", "No", "Maybe"]


def _boolq(example: Example) -> _Prompt:
    """MeZO's third version, the one it uses."""
    question = example.texts["question"]
    question = question[0].upper() + question[1:]
    return f"{example.texts['passage']} {question}{'' if question.endswith('?') else '?'}\n", YES_NO


def _wsc(example: Example) -> _Prompt:
    texts = example.texts
    question = f'does the pronoun "{texts["span2_text"].lower()}" refer to {texts["span1_text"]}? Yes or No?\n'
    return f"{texts['text']}\nIn the previous sentence, {question}", NO_YES


def _wic(example: Example) -> _Prompt:
    texts = example.texts
    question = f'Does the word "{texts["word"]}" have the same meaning in these two sentences? Yes, No?'
    return f"{question}\n{texts['sentence1']}\n{texts['sentence2']}\n", NO_YES


def _multirc(example: Example) -> _Prompt:
    texts = example.texts
    answer = f'I found this answer "{texts["answer"]}". Is that correct? Yes or No?\n'
    return f"{texts['paragraph']}\nQuestion: {texts['question']}\n{answer}", NO_YES


def _copa(example: Example) -> _Prompt:
    """The choice goes on with the premise's sentence, so its first letter becomes small, unless its word is "I"."""
    premise = example.texts["premise"].rstrip().removesuffix(".")
    conjunction = {"effect": " so ", "cause": " because "}[example.texts["question"]]
    return premise + conjunction, [_small_first_word(choice) for choice in example.choices]


def _small_first_word(choice: str) -> str:
    first, *others = choice.split(" ")
    return " ".join([first if first == "I" else first.lower(), *others])


def _record(example: Example) -> _Prompt:
    """GPT-3's form: the query is one more point of the article's summary, with each entity in its gap in turn."""
    passage = example.texts["passage"].replace("@highlight\n", "- ")
    return f"{passage}\n-", [" " + example.texts["query"].replace("@placeholder", choice) for choice in example.choices]


def _squad(example: Example) -> _Prompt:
    texts = example.texts
    context = f"Title: {texts['title']}\nContext: {texts['context']}\nQuestion: {texts['question'].strip()}\nAnswer:"
    return context, [f" {example.answers[0]}\n"]


def _drop(example: Example) -> _Prompt:
    texts = example.texts
    context = f"Passage: {texts['passage']}\nQuestion: {texts['question'].strip()}\nAnswer:"
    return context, [f" {example.answers[0]}\n"]


_TEMPLATES: dict[str, Callable[[Example], _Prompt]] = {
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

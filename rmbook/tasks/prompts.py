"""The prompts of the paper's runs: MeZO's templates (Malladi et al., 2023), to the byte; prompts.yaml has them.

A prompt is a context and, for each option, what continues it: the text that is scored is context + continuation.
"""

from pathlib import Path

from rmbook.tasks.examples import Example
from rmbook.yaml_files import read_yaml

TEMPLATES = read_yaml(Path(__file__).with_suffix(".yaml"))


def prompt(example: Example) -> tuple[str, list[str]]:
    """Return the prompt of an example.

    Returns:
        The context, which is the text before the options; and what each option adds to it, in the order of the classes
        or of `example.choices`. For SQuAD and DROP there is one, the first right answer.
    """
    template = TEMPLATES[example.task]
    context = template["context"].format(**_prepared(example.task, example.texts))
    if "options" in template:
        return context, list(template["options"])
    if example.task == "COPA":
        return context, [_small_first_word(choice) for choice in example.choices]
    if example.task == "ReCoRD":
        query = example.texts["query"]
        return context, [" " + query.replace("@placeholder", choice) for choice in example.choices]
    return context, [f" {example.answers[0]}\n"]


def _prepared(task: str, texts: dict[str, str]) -> dict[str, str]:
    """Return the texts as they stand in the prompt."""
    match task:
        case "SST-2":
            return {"sentence": texts["sentence"].strip()}
        case "BoolQ":
            question = texts["question"][0].upper() + texts["question"][1:]
            return texts | {"question": question if question.endswith("?") else f"{question}?"}
        case "WSC":
            return texts | {"span2_text": texts["span2_text"].lower()}
        case "COPA":  # the choice goes on with the premise's sentence
            conjunction = {"effect": "so", "cause": "because"}[texts["question"]]
            return {"premise": texts["premise"].rstrip().removesuffix("."), "conjunction": conjunction}
        case "ReCoRD":
            return {"passage": texts["passage"].replace("@highlight\n", "- ")}
        case "SQuAD" | "DROP":
            return texts | {"question": texts["question"].strip()}
    return texts


def _small_first_word(choice: str) -> str:
    """Return a choice as the rest of a sentence: its first letter becomes small, unless its word is "I"."""
    first, *others = choice.split(" ")
    return " ".join([first if first == "I" else first.lower(), *others])

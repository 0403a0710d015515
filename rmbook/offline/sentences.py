"""A small sentiment task made on the spot: short sentences with negation, and words that later splits never saw.

Each split draws its adjectives and nouns from lists of its own. A model that does well on the test sentences cannot
have learned their words from the training sentences: it must have known them from pretraining. What fine-tuning adds
is the task, above all that "not" turns the label round.
"""

import random
from pathlib import Path

from rmbook.tasks.language import LANGUAGE_TASKS
from rmbook.yaml_files import read_yaml

TABLE = Path(__file__).with_suffix(".yaml")
_TABLE = read_yaml(TABLE)
POSITIVE, NEGATIVE, NOUNS = (_TABLE[kind].split() for kind in ("positive", "negative", "nouns"))
PLAIN, NEGATED = _TABLE["plain"], _TABLE["negated"]  # sentences
SHARES = {"train": (0.0, 0.4), "dev": (0.4, 0.65), "test": (0.65, 1.0)}  # of each word list


def sentiment_sentences(split: str, count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Distinct sentences with balanced labels; about half of them are negated.

    Args:
        split: "train", "dev" or "test"; no adjective or noun appears in two of them.
        count: number of sentences.
        seed: of the sentences; the split of the words never changes.

    Returns:
        (sentences, labels): label 1 is positive, 0 negative.

    Raises:
        ValueError: for an unknown split or a count that the word lists cannot give.
    """
    if split not in SHARES:
        raise ValueError(f"split must be one of {', '.join(SHARES)}, got {split!r}.")
    positive, negative, nouns = (_share(words, split) for words in (POSITIVE, NEGATIVE, NOUNS))
    largest = len(nouns) * min(len(positive), len(negative)) * (len(PLAIN) + len(NEGATED))
    if not 1 <= count <= largest // 2:
        raise ValueError(f"count must be between 1 and {largest // 2} for the split {split!r}, got {count}.")
    chooser = random.Random(f"{split} {seed}")
    sentences: dict[str, int] = {}
    while len(sentences) < count:
        label, negated = len(sentences) % 2, chooser.random() < 0.5
        adjective = chooser.choice(positive if label != negated else negative)
        template = chooser.choice(NEGATED if negated else PLAIN)
        article = "an" if adjective[0] in "aeiou" else "a"
        sentences[template.format(noun=chooser.choice(nouns), adjective=adjective, article=article)] = label
    return list(sentences), list(sentences.values())


def write_generated_examples(folder: Path, train: int, test: int, seed: int = 0) -> Path:
    """Write sentences in SST-2's original format: SST-2/train.tsv and SST-2/dev.tsv.

    No adjective and no noun of the test sentences is in a training sentence, so a model must have known them before.

    Args:
        folder: to write to; made if need be.
        train, test: number of sentences; "dev" in the original's name is GLUE's word for the split that is tested on.
        seed: of the sentences.

    Returns:
        `folder`, which is what `load_examples` takes as data_dir.
    """
    task = LANGUAGE_TASKS["SST-2"]
    target = Path(folder) / task.folder
    target.mkdir(parents=True, exist_ok=True)
    for split, part, count in (("train", "train", train), ("validation", "test", test)):
        pairs = zip(*sentiment_sentences(part, count, seed), strict=True)
        lines = "".join(f"{sentence} \t{label}\n" for sentence, label in pairs)
        (target / task.files[split]).write_text("sentence\tlabel\n" + lines, encoding="utf-8")
    return Path(folder)


def _share(words: list[str], split: str) -> list[str]:
    shuffled = random.Random(0).sample(words, len(words))
    first, last = SHARES[split]
    return shuffled[round(first * len(words)) : round(last * len(words))]

"""Models and examples that are made on this machine, for grids and chapters without a network: "made:opt" and so on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rmbook.errors import ConfigError, closest
from rmbook.offline import digits, mnist, sentences, smollm2, tiny_clip, tiny_language
from rmbook.offline.store import kept
from rmbook.tasks import images

SENTENCES = {"train": 2000, "test": 1000}
SENTENCE_SOURCES = (sentences.__file__, sentences.TABLE)


def tiny_checkpoint(kind: str, *, seed: int = 0, pretrain_steps: int = tiny_language.PRETRAIN_STEPS) -> Path:
    """The kept folder of a tiny language model; see `rmbook.offline.tiny_language.make_tiny_checkpoint`."""
    write = partial(tiny_language.make_tiny_checkpoint, kind=kind, seed=seed, pretrain_steps=pretrain_steps)
    sources: list[str | Path] = [tiny_language.__file__, *SENTENCE_SOURCES, *tiny_language.WEIGHTS.values()]
    return kept(f"tiny-{kind}", write, (seed, pretrain_steps), sources)


def generated_examples(train: int, test: int, seed: int = 0) -> Path:
    """The kept folder of generated sentences in SST-2's format; see `sentences.write_generated_examples`."""
    write = partial(sentences.write_generated_examples, train=train, test=test, seed=seed)
    return kept("sentences", write, (train, test, seed), SENTENCE_SOURCES)


MADE: dict[str, Callable[[], Path]] = {
    "made:opt": partial(tiny_checkpoint, "opt"),
    "made:llama": partial(tiny_checkpoint, "llama"),
    "made:smollm2": smollm2.smollm2_folder,
    "made:sentences": partial(generated_examples, **SENTENCES),
    "made:clip": lambda: kept(
        "tiny-clip", tiny_clip.make_tiny_clip, sources=(tiny_clip.__file__, digits.__file__, images.TABLE)
    ),
    "made:digits": lambda: kept("digits", tiny_clip.write_digits, sources=(tiny_clip.__file__, digits.__file__)),
    "made:mnist": lambda: kept("mnist", mnist.write_mnist, sources=(mnist.__file__,)),
}


def resolve(name: str) -> str:
    """The folder that a name stands for.

    "made:opt", "made:llama" and "made:clip" are tiny checkpoints, "made:smollm2" is SmolLM2-135M-Instruct,
    "made:sentences" examples of SST-2, "made:digits" mirrored digits in MNIST's files, "made:mnist" MNIST's own.
    Each is made when first asked for, some 10 s for a tiny checkpoint, and then kept in rmbook's cache. Other names
    are given back as they are.

    Raises:
        ConfigError: it begins with "made:" and is none of these.
        ModelError, MissingImagesError: the package with SmolLM2 or MNIST is not installed; says how to.
    """
    if not name.startswith("made:"):
        return name
    if name not in MADE:
        raise ConfigError(f"{name} cannot be made: {closest(name, MADE)}")
    return str(MADE[name]())

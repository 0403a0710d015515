"""What is made here is made once, whole, and again if a byte of it changes; by name it is what it should be."""

import re

import numpy as np
import pytest

from rmbook.errors import ConfigError
from rmbook.offline.digits import Digits
from rmbook.offline.made import resolve, tiny_checkpoint
from rmbook.offline.sentences import (
    NEGATIVE,
    NOUNS,
    POSITIVE,
    sentiment_sentences,
    write_generated_examples,
)
from rmbook.offline.store import kept
from rmbook.tasks.catalog import load_examples


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path / "new" / "cache"))
    return tmp_path / "new" / "cache"


class Writer:
    """Writes two files, one of them in a folder, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "sub").mkdir()
        (folder / "a").write_text("one")
        (folder / "sub" / "b").write_text("two")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "a").write_text("onE"),
        lambda folder: (folder / "sub" / "b").unlink(),
        lambda folder: (folder / "sub" / "c").write_text(""),
        lambda folder: (folder / "made.json").write_text("{"),
        lambda folder: (folder / "made.json").unlink(),
    ],
)
def test_a_thing_is_made_once_and_again_if_it_is_damaged(damage, cache):
    write = Writer()
    folder = kept("thing", write)
    assert kept("thing", write) == folder and write.calls == 1 and folder.parent == cache
    damage(folder)
    assert kept("thing", write) == folder and write.calls == 2
    assert ((folder / "a").read_text(), (folder / "sub" / "b").read_text()) == ("one", "two")
    assert kept("thing", write) == folder and write.calls == 2 and len(list(cache.iterdir())) == 1


def test_other_settings_and_other_sources_are_other_things(cache, tmp_path):
    source = tmp_path / "source"
    source.write_text("code")
    folders = [kept("thing", Writer()), kept("thing", Writer(), (1,)), kept("thing", Writer(), (1,), [source])]
    source.write_text("other code")
    assert len({*folders, kept("thing", Writer(), (1,), [source])}) == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_what_fails_half_way_leaves_nothing(error, cache):
    def write(folder):
        (folder / "a").write_text("half")
        raise error

    with pytest.raises(error):
        kept("thing", write)
    assert list(cache.iterdir()) == []


def test_another_process_that_was_faster_is_as_good(cache):
    def write(folder):
        kept("thing", Writer())  # as if it came from elsewhere in the meantime
        Writer()(folder)

    assert (kept("thing", write) / "a").read_text() == "one" and len(list(cache.iterdir())) == 1


def test_a_name_that_cannot_be_made_is_refused(cache):
    with pytest.raises(ConfigError, match="made:opd cannot be made: did you mean made:opt"):
        resolve("made:opd")
    assert not cache.exists()


def test_a_tiny_checkpoint_is_made_once_and_again_if_damaged(cache):
    folder = tiny_checkpoint("opt", pretrain_steps=0)
    weights = folder / "model.safetensors"
    whole, made = weights.read_bytes(), weights.stat().st_ino
    assert tiny_checkpoint("opt", pretrain_steps=0) == folder and weights.stat().st_ino == made
    weights.write_bytes(whole[:1000])
    assert tiny_checkpoint("opt", pretrain_steps=0) == folder and weights.read_bytes() == whole
    (folder / "config.json").unlink()
    tiny_checkpoint("opt", pretrain_steps=0)
    assert (folder / "config.json").exists()
    others = {tiny_checkpoint("llama", pretrain_steps=0), tiny_checkpoint("opt", pretrain_steps=0, seed=1)}
    assert len(others | {folder}) == 3


def test_generated_examples_are_read_as_the_originals_are(tmp_path):
    folder = write_generated_examples(tmp_path / "new", 30, 20)
    for split, part, count in (("train", "train", 30), ("validation", "test", 20)):
        examples = load_examples("SST-2", split, folder)
        sentences, labels = sentiment_sentences(part, count)
        assert [example.texts["sentence"].strip() for example in examples] == sentences
        assert [example.gold for example in examples] == [(label,) for label in labels]


def test_made_digits_are_mnists_own_files(cache):
    folder = resolve("made:digits")
    assert resolve("made:digits") == folder
    train, test = (load_examples("MNIST", split, folder) for split in ("train", "validation"))
    assert (len(train), len(test)) == (700, 300)
    wanted = Digits("test", "upright")
    for number in (0, 17, 299):
        image = np.asarray(test[number].read())[:, ::-1, 0]
        assert (image == (wanted.images[number, 0] * 255).round().numpy()).all()
        assert test[number].gold == (wanted.labels[number].item(),)


def test_made_sentences_are_the_tasks_own_format(cache):
    folder = resolve("made:sentences")
    assert resolve("made:sentences") == folder and resolve("/as/it/is") == "/as/it/is"
    train, test = (load_examples("SST-2", split, folder) for split in ("train", "validation"))
    listed = {*POSITIVE, *NEGATIVE, *NOUNS}
    words = [listed & {word for example in part for word in re.findall(r"\w+", example.texts["sentence"])}
             for part in (train, test)]  # fmt: skip
    assert len(train) == 2000 and len(test) == 1000 and all(words) and not words[0] & words[1]

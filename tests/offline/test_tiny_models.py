"""The small checkpoints made here: genuine architectures and files, the same bytes again, and something to learn."""

import itertools
import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from task_files import original

from rmbook.methods.apply import apply_method
from rmbook.models.encoding import encode_options, start_token
from rmbook.models.language import load_language_model, max_positions
from rmbook.models.likelihood import mean_log_probabilities
from rmbook.offline import tiny_language
from rmbook.offline.sentences import NEGATED, NEGATIVE, PLAIN, POSITIVE, sentiment_sentences
from rmbook.offline.tiny_language import SPECIAL, make_tiny_checkpoint, pretraining_texts
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.examples import Example
from rmbook.tasks.prompts import prompt

KINDS = ("opt", "llama")
START = {"opt": 0, "llama": 1}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {kind: make_tiny_checkpoint(root / kind, kind, pretrain_steps=2) for kind in KINDS}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes_whatever_was_set(kind, checkpoints, tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    random.seed(7)
    torch.set_num_threads(2)
    try:
        state = torch.get_rng_state(), random.getstate()
        make_tiny_checkpoint(tmp_path / "again", kind, pretrain_steps=2)
        assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "again") == contents(checkpoints[kind])
    other = contents(make_tiny_checkpoint(tmp_path / "other", kind, seed=1, pretrain_steps=2))
    differing = [name for name, content in contents(checkpoints[kind]).items() if other[name] != content]
    assert differing == ["model.safetensors"]


PLAINLY = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("the soup was tasty. It was", return_tensors="pt").input_ids
    with torch.no_grad():
        print(ids.tolist(), model(input_ids=ids).logits[0, -1].tolist())
assert not [name for name in sys.modules if name.startswith("rmbook")]
"""


def test_transformers_alone_loads_them(checkpoints, tmp_path):
    command = [sys.executable, "-P", "-c", PLAINLY, *map(str, checkpoints.values())]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    for folder, line in zip(checkpoints.values(), done.stdout.splitlines(), strict=True):
        model, tokenizer = load_language_model(folder)
        ids = tokenizer("the soup was tasty. It was", return_tensors="pt").input_ids
        with torch.no_grad():
            assert line == f"{ids.tolist()} {model(input_ids=ids).logits[0, -1].tolist()}"


def test_the_architecture_is_the_genuine_one(checkpoints):
    opt, llama = (load_language_model(checkpoints[kind])[0] for kind in KINDS)
    assert (type(opt).__name__, type(llama).__name__) == ("OPTForCausalLM", "LlamaForCausalLM")
    assert opt.config.dropout == 0.1 and opt.config.do_layer_norm_before and opt.config.activation_function == "relu"
    for model in (opt, llama):
        assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 64) and max_positions(model) >= 512


def test_bad_requests_are_named_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of opt, llama, got 'gpt2'"):
        make_tiny_checkpoint(tmp_path / "m", "gpt2")
    for steps in (-1, 1.5, True):
        with pytest.raises(ValueError, match="pretrain_steps must be an integer of at least 0"):
            make_tiny_checkpoint(tmp_path / "m", pretrain_steps=steps)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- the tokens


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_start_tokens_are_those_of_the_genuine_tokenizers(kind, checkpoints):
    model, tokenizer = load_language_model(checkpoints[kind])
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL[kind])))) == SPECIAL[kind]
    assert start_token(tokenizer, kind) == START[kind]
    assert tokenizer.encode("a")[0] == {"opt": 2, "llama": 1}[kind] == model.config.bos_token_id
    assert max(tokenizer.get_vocab().values()) < model.config.vocab_size
    for word in (" great", " terrible", " It was"):
        ids = tokenizer.encode("the soup was tasty. It was" + word, add_special_tokens=False)
        before = tokenizer.encode("the soup was tasty. It was", add_special_tokens=False)
        assert ids[: len(before)] == before and len(ids) == len(before) + len(word.split())


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40).filter(lambda text: not text.startswith(" ") and "▁" not in text))
def test_every_text_comes_back(checkpoints, text):
    text = re.sub("[\ud800-\udfff]", "", text)
    for kind in KINDS:
        tokenizer = load_tokenizer(checkpoints[kind])
        if not any(special in text for special in SPECIAL[kind]):
            assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def load_tokenizer(folder, loaded={}):  # noqa: B006 - kept over the examples
    if folder not in loaded:
        loaded[folder] = load_language_model(folder)[1]
    return loaded[folder]


@pytest.mark.parametrize(("task", "split"), list(itertools.product(("SST-2", "RTE", "CB"), ("train", "validation"))))
def test_real_records_fit(task, split, checkpoints, tmp_path):
    path = original(task, split, tmp_path, SHARED)
    examples = load_examples(task, split, path.parent)
    longest = sorted(examples, key=lambda example: -sum(map(len, example.texts.values())))[:50]
    for kind in KINDS:
        model, tokenizer = load_language_model(checkpoints[kind])
        for example in longest:
            options = encode_options(*prompt(example), tokenizer, START[kind], max_positions(model))
            assert all(option.cut == 0 for option in options)


# ------------------------------------------------------------------------------------------------- what can be learned


def pattern(templates):
    holes = {r"\{noun\}": ".+", r"\{article\}": "an?", r"\{adjective\}": r"\w+"}
    return re.compile(
        "|".join(re.sub("|".join(map(re.escape, holes)), lambda m: holes[m[0]], re.escape(t)) for t in templates)
    )


IS_NEGATED, IS_PLAIN = pattern(NEGATED), pattern(PLAIN)


def polarity(text):
    return {word in POSITIVE for word in re.findall(r"\w+", text) if word in POSITIVE + NEGATIVE}


def test_pretraining_teaches_words_and_not_negation():
    texts = list(itertools.islice(pretraining_texts(random.Random(0)), 4000))
    agree = {True: 0, False: 0}
    for text in texts:
        sentence, *opinions = text.split(" It was ")
        context, _ = prompt(Example("SST-2", {"sentence": sentence}))
        assert text.startswith(context + " ") and len(opinions) == 3
        assert len(polarity(sentence)) == 1 == len(polarity(" ".join(opinions)))
        negated = bool(IS_NEGATED.fullmatch(sentence))
        assert negated != bool(IS_PLAIN.fullmatch(sentence))
        agree[negated] += polarity(sentence) == polarity(" ".join(opinions))
    negated = sum(bool(IS_NEGATED.fullmatch(text.split(" It was ")[0])) for text in texts)
    assert 0.25 < negated / 4000 < 0.35
    assert agree[False] == 4000 - negated and abs(agree[True] / negated - 0.5) < 0.08


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_weights_come_with_the_package_and_say_where_they_were_made(kind, tmp_path, monkeypatch):
    pretrained_here = []
    monkeypatch.setattr(tiny_language, "_pretrain", lambda *_: pretrained_here.append(kind))
    folder = make_tiny_checkpoint(tmp_path / "default", kind)
    model, _ = load_language_model(folder)
    with safe_open(tiny_language.WEIGHTS[kind], "pt") as file:
        made = json.loads(file.metadata()["stamp"])
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, file.get_tensor(name))
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
    assert made["command"] == "python -m rmbook.tiny_models" and re.fullmatch(r"[0-9a-f]{40}", made["commit"])
    assert pretrained_here == []
    # A tokenizer that cuts other tokens, as another version of tokenizers might train: its model is pretrained here.
    monkeypatch.setattr(tiny_language, "_tokens_hash", lambda tokenizer: "another")
    make_tiny_checkpoint(tmp_path / "other", kind)
    assert pretrained_here == [kind]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("pretrained") / "opt", "opt")


def labelled(split, tokenizer):
    sentences, labels = sentiment_sentences(split, 200)
    examples = [Example("SST-2", {"sentence": s}, gold=(label,)) for s, label in zip(sentences, labels, strict=True)]
    encodings = [option for example in examples for option in encode_options(*prompt(example), tokenizer, 0)]
    negated = torch.tensor([bool(IS_NEGATED.fullmatch(sentence)) for sentence in sentences])
    return encodings, torch.tensor(labels), negated


def scores(model, encodings, chosen):
    pairs = [encodings[2 * i + option] for i in chosen for option in (0, 1)]
    return mean_log_probabilities(model, pairs).view(-1, 2)


def right(model, encodings, labels):
    with torch.no_grad():
        return (scores(model.eval(), encodings, range(len(labels))).argmax(1) == labels).float()


def tune(folder, density, learning_rate, steps=150):
    model, tokenizer = load_language_model(folder)
    encodings, labels, _ = labelled("train", tokenizer)
    applied = apply_method(model, "random_masking", density=density, targets="qv", seed=0)
    optimizer = torch.optim.AdamW(list(applied.parameters()), lr=learning_rate)
    model.train()
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            chosen = torch.randint(len(labels), (16,))
            loss = F.cross_entropy(scores(model, encodings, chosen), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, tokenizer, sum(losses[-20:]) / 20


def test_the_pretrained_model_knows_the_words_and_a_mask_teaches_negation(pretrained):
    """On the test split, none of whose adjectives and nouns is in the training split."""
    model, tokenizer = load_language_model(pretrained)
    encodings, labels, negated = labelled("test", tokenizer)
    before = right(model, encodings, labels)
    assert before[~negated].mean() > 0.95 and before[negated].mean() < 0.3  # measured: 1.00 and 0.06
    tuned, _, _ = tune(pretrained, 0.1, 0.01)
    after = right(tuned, encodings, labels)
    assert after.mean() > 0.8 and after[negated].mean() > 0.65


def test_a_sparse_mask_needs_a_larger_learning_rate(pretrained):
    losses = {rate: tune(pretrained, 0.01, rate, steps=100)[2] for rate in (0.001, 0.03)}
    assert losses[0.03] < losses[0.001] - 0.1  # measured: 0.47 and 0.70

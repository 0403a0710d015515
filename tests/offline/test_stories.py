"""Genuine trained weights through the whole chain: text, tokens, prompts, random masks, training, and back."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, state_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from stories import sample_text, stories_model, stories_pieces, stories_tokenizer
from task_files import original

from rmbook.adapters.base import base_fingerprint
from rmbook.methods.apply import apply_method
from rmbook.models.encoding import encode_options, start_token
from rmbook.models.language import load_language_model, max_positions
from rmbook.models.likelihood import mean_log_probabilities
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.prompts import prompt


@pytest.fixture(scope="module")
def tokenizer():
    return stories_tokenizer()


@pytest.fixture(scope="module")
def pieces():
    return stories_pieces()


def sentencepiece_encode(pieces, text: str) -> list[int]:
    """The rule in words: letters first, bytes for unknown ones; then again and again the join with the best score."""
    number = {piece: index for index, (_, piece) in enumerate(pieces) if index > 258}
    ids = []
    for letter in " " + text:
        known = number.get(letter.encode())
        ids += [known] if known is not None else [3 + byte for byte in letter.encode()]
    spelled = [pieces[index][1] if index > 258 else None for index in ids]  # a byte joins nothing
    while True:
        best = None
        for place in range(len(ids) - 1):
            if spelled[place] is None or spelled[place + 1] is None:
                continue
            joined = number.get(spelled[place] + spelled[place + 1])
            if joined is not None and (best is None or pieces[joined][0] > best[0]):
                best = (pieces[joined][0], place, joined)
        if best is None:
            return ids
        _, place, joined = best
        ids[place : place + 2], spelled[place : place + 2] = [joined], [pieces[joined][1]]


def test_the_sample_text_comes_back_token_by_token(tokenizer):
    """The page's text is 256 steps of greedy decoding: every token is the likeliest after all before it."""
    text = sample_text()
    ids = tokenizer.encode(text)
    assert len(ids) == 257 and tokenizer.decode(ids, skip_special_tokens=True) == text
    generated = stories_model().generate(torch.tensor([[1]]), max_new_tokens=256, do_sample=False)[0]
    assert generated.tolist() == ids
    assert tokenizer.decode(generated, skip_special_tokens=True) == text


def test_tokens_are_those_of_the_rule_for_real_sentences(tokenizer, pieces, tmp_path):
    path = original("SST-2", "validation", tmp_path, SHARED)
    for example in load_examples("SST-2", "validation", path.parent)[::20]:
        sentence = example.texts["sentence"]
        ids = tokenizer.encode(sentence, add_special_tokens=False)
        assert ids == sentencepiece_encode(pieces, sentence)
        assert tokenizer.decode(ids) == sentence


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("abehtnd .,'\n\t😀éß日"), min_size=1, max_size=30).filter(lambda text: text[0] != " ")
)
def test_tokens_are_those_of_the_rule_for_any_text(tokenizer, pieces, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == sentencepiece_encode(pieces, text)
    assert tokenizer.decode(ids) == text


def test_a_random_mask_learns_real_records_and_leaves_no_trace(tokenizer, tmp_path):
    data = original("SST-2", "train", tmp_path, SHARED).parent
    model = stories_model()
    model.save_pretrained(tmp_path / "stories")
    tokenizer.save_pretrained(tmp_path / "stories")
    loaded, again = load_language_model(tmp_path / "stories")
    assert state_bytes(loaded) == state_bytes(model) and max_positions(loaded) == 512
    start = start_token(again, "llama")
    assert start == 1
    examples = load_examples("SST-2", "train", data)[:32]
    encodings = [encode_options(*prompt(example), again, start, max_positions(loaded)) for example in examples]
    assert again.decode(encodings[0][1].input_ids).endswith(" It was great")
    gold = torch.tensor([example.gold[0] for example in examples])
    assert 8 <= gold.sum() <= 24

    def loss(chosen):
        scores = mean_log_probabilities(loaded, [option for i in chosen for option in encodings[i]])
        return F.cross_entropy(scores.view(-1, 2), gold[chosen])

    everything, weights = torch.arange(32), (tmp_path / "stories" / "model.safetensors").read_bytes()
    before, base = loss(everything).detach(), state_bytes(loaded)
    applied = apply_method(loaded, "random_masking", density=0.1, targets="qv", seed=0)
    torch.testing.assert_close(loss(everything), before)  # a new mask changes nothing
    optimizer = torch.optim.AdamW(list(applied.parameters()), lr=0.02)
    order = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        loss(torch.randperm(32, generator=order)[:16]).backward()
        optimizer.step()
    assert loss(everything) < 0.6 * before
    assert base_fingerprint(loaded) == base_fingerprint(model)  # the weights under the values are the base's
    applied.remove()
    assert state_bytes(loaded) == base
    assert torch.equal(loss(everything).detach(), before)
    # The loaded weights are a view of the file, into which nothing may be written.
    assert (tmp_path / "stories" / "model.safetensors").read_bytes() == weights

"""Scores with shared contexts against one unpadded forward pass an option, in float64."""

import pytest
import torch
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from more_language_models import tiny
from task_files import original
from test_encoding import byte_level
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from rmbook.methods.apply import apply_method
from rmbook.models.encoding import Encoding, encode_options, start_token
from rmbook.models.likelihood import mean_log_probabilities
from rmbook.models.option_scores import score_options
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.prompts import prompt

FAMILIES = ["opt", "llama", "gpt2", "mistral", "qwen2"]  # Mistral's window is 4 tokens here, less than most contexts


@torch.no_grad()
def plain_score(model, encoding):
    """By definition: the whole sequence in one pass, without padding, mask, positions or cache."""
    ids = torch.tensor(encoding.input_ids)
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]][-encoding.option_length :].mean()


def plain_scores(model, prompts):
    return [torch.stack([plain_score(model, encoding) for encoding in encodings]) for encodings in prompts]


def assert_scores(got, wanted, tolerance=1e-10):
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def options(context, *continuations):
    return [Encoding([*context, *option], len(option)) for option in continuations]


def some_prompts():
    """Contexts of 1 to 23 tokens, options of 1 to 8: one, several, equal ones, alike at their beginning."""
    generator = torch.Generator().manual_seed(3)

    def draw(count):
        return torch.randint(50, (count,), generator=generator).tolist()

    one, long = draw(6), draw(23)
    return [
        options(draw(2), draw(1), draw(8), draw(3)),
        options(long, draw(1), draw(1)),
        options(draw(1), draw(5)),
        options(draw(17), one, one),
        options(draw(9), one, [*one, 7], [*one[:3], 8], one[:1]),
        options(draw(20), [3, *draw(7)], [3], [3, *draw(2)], draw(8)),
    ]


@st.composite
def any_prompts(draw):
    tokens = st.integers(0, 2)  # few different ones, so that options are often alike
    prompts = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(st.lists(tokens, min_size=1, max_size=20))
        continuations = draw(st.lists(st.lists(tokens, min_size=1, max_size=7), min_size=1, max_size=4))
        # Contexts cut on the left, each by its own number of tokens, as where a prompt is too long.
        cuts = (
            draw(st.lists(st.integers(0, len(context) - 1), min_size=4, max_size=4)) if draw(st.booleans()) else [0] * 4
        )
        prompts.append(
            [
                Encoding(context[cut:] + option, len(option), cut)
                for cut, option in zip(cuts, continuations, strict=False)
            ]
        )
    return prompts


@pytest.mark.parametrize("kind", FAMILIES)
def test_equal_the_scores_of_one_option_at_a_time(kind):
    model, prompts = tiny(kind, torch.float64), some_prompts()
    wanted = plain_scores(model, prompts)
    for max_tokens in (16384, 150, 40, 1):
        assert_scores(score_options(model, prompts, max_tokens=max_tokens), wanted)
    assert_scores([mean_log_probabilities(model, encodings) for encodings in prompts], wanted)


@pytest.mark.parametrize("kind", FAMILIES)
def test_equal_for_any_lengths_cuts_and_budgets(kind):
    model = tiny(kind, torch.float64)

    @settings(max_examples=100, deadline=None)
    @given(any_prompts(), st.integers(1, 400))
    def law(prompts, max_tokens):
        assert_scores(score_options(model, prompts, max_tokens=max_tokens), plain_scores(model, prompts))

    law()


def randomise(applied):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in applied.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("method", ["random_masking", "prefix", "adapter", "lora"])
def test_equal_under_the_methods(method, kind):
    if (method, kind) == ("random_masking", "gpt2"):
        pytest.skip("masks need linear layers: GPT-2's are Conv1D")
    model, prompts = tiny(kind, torch.float64), some_prompts()
    plain = score_options(model, prompts)
    randomise(apply_method(model, method, **({"density": 0.3} if method == "random_masking" else {})))
    got = score_options(model, prompts, max_tokens=150)
    assert_scores(got, plain_scores(model, prompts))
    assert (torch.cat(got) - torch.cat(plain)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", FAMILIES)
def test_half_precision_scores_are_float32_and_near_those_of_one_option_at_a_time(kind):
    model, prompts = tiny(kind, torch.bfloat16), some_prompts()
    got = score_options(model, prompts)
    assert {values.dtype for values in got} == {torch.float32}
    # bfloat16 keeps 8 bits: a logit of these models, about 1, moves by 1/256 and a score by some times that.
    assert_scores(got, plain_scores(model, prompts), tolerance=0.03)


def test_every_module_is_put_back_into_its_mode_and_dropout_is_off():
    model, prompts = tiny("opt", torch.float64), some_prompts()
    wanted = plain_scores(model, prompts)
    model.train()
    model.model.decoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert_scores(score_options(model, prompts), wanted)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="an option of 0 tokens among 2 has no score"):
        score_options(model, [[Encoding([1, 2], 0)]])
    with pytest.raises(ValueError, match="an option of 2 tokens among 2 has no score"):
        score_options(model, [[Encoding([1, 2], 2)]])
    with pytest.raises(IndexError):  # of a token that is not in the vocabulary
        score_options(model, [options([1], [50])])
    assert [module.training for module in model.modules()] == modes
    assert not any(values.requires_grad for values in score_options(model, prompts))


class Calls:
    """Places of every forward pass: (rows, tokens run, tokens seen)."""

    def __init__(self, model):
        self.sizes = []
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        self.sizes.append((*kwargs["input_ids"].shape, kwargs["attention_mask"].shape[1]))


def test_what_options_share_is_run_once_and_last_tokens_not_at_all():
    model = tiny("opt")
    calls, context = Calls(model), list(range(20))
    score_options(model, [options(context, [1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6])])
    assert calls.sizes == [(1, 22, 22), (2, 1, 23)]  # of the second pass, 3 is the input; 4, 5 and 6 are last
    calls.sizes.clear()
    score_options(model, [options(context, [1], [2]), options(context[:5], [3, 4, 5])])
    assert calls.sizes == [(2, 20, 20)]  # one token an option, or one option: no second pass


@pytest.mark.parametrize("max_tokens", [60, 200, 1000])
def test_batches_stay_within_the_budget_unless_one_row_alone_is_beyond_it(max_tokens):
    model = tiny("llama")
    calls, finished = Calls(model), []
    prompts = some_prompts() * 5
    scores = score_options(model, prompts, max_tokens=max_tokens, advance=finished.append)
    assert all(rows * seen <= max_tokens or rows == 1 for rows, _, seen in calls.sizes)
    assert max(rows for rows, _, _ in calls.sizes) > 1
    assert sum(finished) == len(prompts) == len(scores) and min(finished) > 0
    assert [len(values) for values in scores] == [len(encodings) for encodings in prompts]


def test_nothing_to_score():
    model = tiny("opt")
    assert score_options(model, []) == []
    with_none = score_options(model, [[], options([1, 2], [3])])
    assert [len(values) for values in with_none] == [0, 1]


@pytest.fixture(scope="module")
def readers():
    """Models that take 512 tokens and their tokenizers, with a start token and without."""
    shape = dict(vocab_size=400, max_position_embeddings=512, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    opt = OPTForCausalLM(OPTConfig(hidden_size=16, ffn_dim=32, word_embed_proj_dim=16, **shape))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=512, n_embd=16, n_layer=2, n_head=2))
    return {"opt": (opt.double().eval(), byte_level("</s>")), "gpt2": (gpt2.double().eval(), byte_level(None))}


@pytest.mark.parametrize("kind", ["opt", "gpt2"])
@pytest.mark.parametrize(("task", "count"), [("ReCoRD", 3), ("COPA", 20), ("SST-2", 20)])
def test_real_records(task, count, kind, readers, tmp_path):
    model, tokenizer = readers[kind]
    examples = load_examples(task, "validation", original(task, "validation", tmp_path, SHARED).parent)
    start = start_token(tokenizer, kind)
    for max_length in (512, 250):  # cut or not, an option of ReCoRD by as much as it is long
        prompts = [encode_options(*prompt(example), tokenizer, start, max_length) for example in examples[:count]]
        assert_scores(score_options(model, prompts, max_tokens=2000), plain_scores(model, prompts))
    if task == "ReCoRD":
        assert {e.cut for e in prompts[0]} != {0} and len({e.cut for e in prompts[0]}) > 1

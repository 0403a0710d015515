"""Greedy answers against a loop written by hand, one question at a time without padding and cache, in float64."""

import logging

import pytest
import torch
from conftest import SHARED
from task_files import original
from test_encoding import byte_level, llama_like
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from rmbook.methods.apply import apply_method
from rmbook.models.encoding import Encoding, encode_context, start_token
from rmbook.models.generation import generate_answers, stop_tokens
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.prompts import prompt


@torch.no_grad()
def by_hand(model, tokenizer, question, count=50):
    """The answer, and the token at which it ended."""
    newline, end = tokenizer.encode("\n", add_special_tokens=False)[-1], tokenizer.eos_token_id
    ids = list(question.input_ids)
    for _ in range(count):
        ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] in (newline, end):
            break
    return tokenizer.decode(ids[len(question.input_ids) :], skip_special_tokens=True).strip(), ids[-1]


def answers_by_hand(model, tokenizer, questions, count=50):
    return [by_hand(model, tokenizer, question, count)[0] for question in questions]


def make(kind):
    """A tokenizer and a model with large random weights: its text does not repeat one token for ever."""
    torch.manual_seed(0)
    tokenizer = byte_level("</s>") if kind in ("opt", "gpt2") else llama_like()
    shape = dict(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    shape |= dict(initializer_range=0.5, max_position_embeddings=700)
    if kind == "opt":
        model = OPTForCausalLM(OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **shape))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**shape))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(intermediate_size=48, num_key_value_heads=1, **shape))
    else:  # the window is shorter than most questions
        model = MistralForCausalLM(
            MistralConfig(intermediate_size=48, num_key_value_heads=1, sliding_window=4, **shape)
        )
    with torch.no_grad():
        model.get_output_embeddings().weight[stop_tokens(tokenizer)] *= 1.6  # stop now and then
    return model.double().eval(), tokenizer


@pytest.fixture(params=["opt", "gpt2", "llama", "mistral"])
def writer(request):
    return make(request.param)


def some_questions(tokenizer, count=30):
    """1 to 29 tokens, none of them special."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    return [Encoding(torch.randint(4, len(tokenizer), (n,), generator=generator).tolist(), 0) for n in lengths]


def test_equals_the_greedy_loop_in_any_batches(writer):
    model, tokenizer = writer
    questions, finished = some_questions(tokenizer), []
    wanted = [by_hand(model, tokenizer, question) for question in questions]
    newline, end = stop_tokens(tokenizer)
    ends = [stop for _, stop in wanted]
    assert newline in ends and end in ends and set(ends) - {newline, end}
    for max_tokens in (16384, 300, 1):
        assert generate_answers(model, tokenizer, questions, max_tokens=max_tokens) == [text for text, _ in wanted]
    generate_answers(model, tokenizer, questions, max_tokens=300, max_new_tokens=1, advance=finished.append)
    assert sum(finished) == len(questions) and len(finished) > 1
    assert generate_answers(model, tokenizer, []) == []


@pytest.mark.parametrize("method", ["random_masking", "prefix", "adapter"])
def test_equals_the_greedy_loop_under_the_methods(method, writer):
    model, tokenizer = writer
    if method == "random_masking" and model.config.model_type == "gpt2":
        pytest.skip("masks need linear layers: GPT-2's are Conv1D")
    questions = some_questions(tokenizer, 8)
    before = answers_by_hand(model, tokenizer, questions, 20)
    applied = apply_method(model, method, **({"density": 0.3} if method == "random_masking" else {}))
    with torch.no_grad():
        for parameter in applied.parameters():
            parameter.add_(torch.randn_like(parameter))
    wanted = answers_by_hand(model, tokenizer, questions, 20)
    assert wanted != before
    assert generate_answers(model, tokenizer, questions, max_new_tokens=20, max_tokens=150) == wanted


HOSTILE = dict(
    do_sample=True,
    temperature=0.3,
    top_p=0.2,
    num_beams=3,
    repetition_penalty=9.0,
    no_repeat_ngram_size=1,
    min_new_tokens=40,
    max_length=3,
    max_new_tokens=2,
    suppress_tokens=list(range(4, 300)),
    forced_eos_token_id=305,
    begin_suppress_tokens=list(range(100)),
    eos_token_id=7,
    return_dict_in_generate=True,
    num_return_sequences=2,
    use_cache=False,
)


def test_what_a_checkpoint_says_about_generation_plays_no_part_and_stays(writer, recwarn):
    model, tokenizer = writer
    questions = some_questions(tokenizer, 8)
    wanted = answers_by_hand(model, tokenizer, questions)
    own = model.generation_config = GenerationConfig(**HOSTILE)
    with heard() as messages:
        assert generate_answers(model, tokenizer, questions) == wanted
        model.generation_config = own = GenerationConfig()
        assert generate_answers(model, tokenizer, questions) == wanted
    assert model.generation_config is own
    assert not messages and not recwarn.list


class heard(logging.Handler):  # noqa: N801
    """Everything that transformers logs at the level of warnings and above."""

    def __enter__(self):
        self.messages = []
        logging.getLogger("transformers").addHandler(self)
        return self.messages

    def __exit__(self, *_):
        logging.getLogger("transformers").removeHandler(self)

    def emit(self, record):
        if record.levelno >= logging.WARNING:
            self.messages.append(record.getMessage())


def test_the_model_is_put_back_even_after_an_error(writer):
    model, tokenizer = writer
    model.train()
    next(model.children()).eval()
    modes, own = [module.training for module in model.modules()], model.generation_config
    generate_answers(model, tokenizer, some_questions(tokenizer, 2), max_new_tokens=2)
    with pytest.raises(IndexError):  # of a token that is not in the vocabulary
        generate_answers(model, tokenizer, [Encoding([10**4], 0)])
    with pytest.raises(ValueError, match="a question without tokens cannot be continued"):
        generate_answers(model, tokenizer, [Encoding([], 0)])
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is own


@pytest.mark.parametrize("task", ["SQuAD", "DROP"])
def test_real_questions(task, tmp_path):
    model, tokenizer = make("opt")
    examples = load_examples(task, "validation", original(task, "validation", tmp_path, SHARED).parent)[:4]
    questions = [encode_context(prompt(e)[0], tokenizer, start_token(tokenizer, "opt"), 380) for e in examples]
    assert any(question.cut for question in questions)
    wanted = answers_by_hand(model, tokenizer, questions, 20)
    assert generate_answers(model, tokenizer, questions, max_new_tokens=20) == wanted

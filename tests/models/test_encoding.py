"""The tokens of prompts against the rule of the paper's runs, for tokenizers like OPT's, Llama's and GPT-2's."""

from types import SimpleNamespace

import pytest
from conftest import SHARED
from fuzzing import seeds
from task_files import SPLITS, hub_rows, original
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from written_prompts import written

from rmbook.errors import TaskError
from rmbook.models.encoding import encode_context, encode_options, start_token
from rmbook.tasks.catalog import find_task, load_examples
from rmbook.tasks.examples import Example
from rmbook.tasks.prompts import prompt

every_split = pytest.mark.parametrize(("task", "split"), SPLITS)

# Tokenizers with the special tokens of OPT, Llama and GPT-2, trained on a little text.

TEXT = [
    "Does this mean that it is true? Yes or No?\n",
    "It was great or terrible\n",
    "Answer: the 28-yard, 1990.\n",
] * 9


def byte_level(start: str | None, end: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _with_special_tokens(tokenizer, special, start, end)


def llama_like() -> PreTrainedTokenizerFast:
    """Words begin with a mark, as at the start of every text; letters that are not known are bytes."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special + bytes_, show_progress=False)
    tokenizer.train_from_iterator([line.strip() for line in TEXT], trainer)
    return _with_special_tokens(tokenizer, special, "<s>", None)


def _with_special_tokens(tokenizer, special, start, end) -> PreTrainedTokenizerFast:
    if start or end:
        single = " ".join(part for part in (start, "$A", end) if part)
        pairs = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    """Tokenizer and start token as the paper's runs have them for each family of models."""
    return {"opt": (byte_level("</s>"), 0), "llama": (llama_like(), 1), "gpt2": (byte_level(None), None)}


def test_the_start_token_is_the_models(tokenizers):
    for model_type, (tokenizer, start) in tokenizers.items():
        assert start_token(tokenizer, model_type) == start
    assert start_token(tokenizers["opt"][0], "other") == 2  # the tokenizer's own
    assert start_token(tokenizers["llama"][0], "opt") == 1  # token 0 is not <s> here: no OPT tokenizer


def test_a_tokenizer_that_adds_an_end_is_refused():
    with pytest.raises(TaskError, match="expected at most one token before it"):
        start_token(byte_level("<s>", "</s>"), "llama")


def reference_encoding(tokenizer, start, context, texts, max_length):
    """The rule of the paper's runs in the order of their steps: count, strip, encode, cut after the start token."""

    def encode(text):
        return ([] if start is None else [start]) + tokenizer.encode(text, add_special_tokens=False)

    expected = []
    for text in texts:
        text = text.strip(" ")
        length = len(encode(text)) - len(encode(context.strip(" ")))
        ids = encode(("" + "\n\n" + text).lstrip().strip(" "))
        ids = ids[-max_length:] if start is None else ids[:1] + ids[1:][-(max_length - 1) :]
        expected.append((ids, length))
    return expected


def encode(task, example, tokenizer, model_type, max_length):
    """The options of an example, as training and scoring have them."""
    embedding = SimpleNamespace(num_embeddings=len(tokenizer))
    model = SimpleNamespace(config=SimpleNamespace(model_type=model_type), get_input_embeddings=lambda: embedding)
    return find_task(task).encode([example], model, tokenizer, max_length)[0].options


@pytest.mark.parametrize("model_type", ["opt", "llama"])
@every_split
def test_the_examples_tokens_and_option_lengths_are_the_papers(task, split, model_type, tokenizers, tmp_path):
    """Some 150 examples of each file; RMBOOK_FUZZ=100 asks all."""
    path = original(task, split, tmp_path, SHARED)
    tokenizer, start = tokenizers[model_type]
    generates = task in ("SQuAD", "DROP")
    pairs = list(zip(hub_rows(task, split, path), load_examples(task, split, path.parent), strict=True))
    wanted = len(seeds(375 if model_type == "opt" else 37))
    for row, example in pairs[:: 1 + len(pairs) // wanted]:
        context, texts, _ = written(task, row)
        expected = reference_encoding(tokenizer, start, context, texts, 2048 - 50 * generates)
        encodings = encode(task, example, tokenizer, model_type, 2048)
        assert [(encoding.input_ids, encoding.option_length) for encoding in encodings] == expected
        for encoding, text in zip(encodings, texts, strict=True):  # the last tokens are the option, nothing else
            option = tokenizer.decode(encoding.input_ids[-encoding.option_length :])
            assert option.strip() == text[len(context) :].strip()


@pytest.mark.parametrize("model_type", ["opt", "llama", "gpt2"])
@every_split
def test_prompts_that_are_too_long_lose_their_beginning(task, split, model_type, tokenizers, tmp_path):
    path = original(task, split, tmp_path, SHARED)
    tokenizer, start = tokenizers[model_type]
    generates = task in ("SQuAD", "DROP")
    pairs = list(zip(hub_rows(task, split, path), load_examples(task, split, path.parent), strict=True))
    for row, example in pairs[:20]:
        context, texts, _ = written(task, row)
        whole = encode(task, example, tokenizer, model_type, 10**6)
        longest = max(encoding.option_length for encoding in whole)
        for limit in (longest + 1, longest + 9, max(len(encoding.input_ids) for encoding in whole)):
            encodings = encode(task, example, tokenizer, model_type, limit + 50 * generates)
            expected = reference_encoding(tokenizer, start, context, texts, limit)
            assert [(encoding.input_ids, encoding.option_length) for encoding in encodings] == expected
            assert [len(e.input_ids) + e.cut for e in encodings] == [len(e.input_ids) for e in whole]
        with pytest.raises(TaskError, match=f"^{task}, example 1 of 1: {longest} tokens have no room for a context"):
            encode(task, example, tokenizer, model_type, longest + 50 * generates)


def test_a_question_to_generate_from_ends_at_the_answer(tokenizers):
    texts = {"passage": " It rains in May.", "question": "When?"}
    example = Example("DROP", texts, answers=("May",))
    for tokenizer, start in tokenizers.values():
        encoding = encode_context(prompt(example)[0], tokenizer, start)
        head = [] if start is None else [start]
        text = "Passage:  It rains in May.\nQuestion: When?\nAnswer:"
        assert encoding.input_ids == head + tokenizer.encode(text, add_special_tokens=False)
        assert (encoding.option_length, encoding.cut) == (0, 0)
        (trained,) = encode_options(*prompt(example), tokenizer, start)
        assert trained.input_ids[: -trained.option_length] == encoding.input_ids
        short = encode_context(prompt(example)[0], tokenizer, start, max_length=8)
        assert short.input_ids == head + encoding.input_ids[-(8 - len(head)) :] and short.cut > 0
        with pytest.raises(TaskError, match="give a larger max_length"):
            encode_context(prompt(example)[0], tokenizer, start, max_length=0)


def test_line_breaks_before_a_prompt_are_dropped_and_the_option_keeps_its_length(tokenizers):
    tokenizer, start = tokenizers["opt"]
    plain, broken = (Example("RTE", {"premise": p, "hypothesis": "h"}, gold=(0,)) for p in ("a b", "\n\n a b"))
    assert encode_options(*prompt(broken), tokenizer, start) == encode_options(*prompt(plain), tokenizer, start)


def test_an_option_without_tokens_is_refused(tokenizers):
    example = Example("COPA", {"premise": "It rained.", "question": "cause"}, ("", "I ran."), (1,))
    with pytest.raises(TaskError, match="an option adds no token to its prompt, which ends in"):
        encode_options(*prompt(example), *tokenizers["opt"])

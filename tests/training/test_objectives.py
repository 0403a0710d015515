"""The training objectives against the paper's code written out, and sums that do not care how a batch is cut."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from more_language_models import tiny

from rmbook.models.encoding import Encoding, Question
from rmbook.models.likelihood import mean_log_probabilities, option_log_probabilities
from rmbook.training.objectives import Answering, OptionChoice

FAMILIES = ("opt", "llama", "gpt2", "mistral", "qwen2")


def question(generator, options=3, context=6, gold=0):
    def tokens(count):
        return torch.randint(3, 50, (count,), generator=generator).tolist()

    start = tokens(context)
    lengths = torch.randint(1, 5, (options,), generator=generator).tolist()
    return Question(tuple(Encoding(start + tokens(length), length) for length in lengths), gold)


def questions(count, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return [
        question(generator, context=3 + number % 5, gold=number % 2, options=2 + number % 2, **arguments)
        for number in range(count)
    ]


def one_by_one(model, encoding):
    """Log-probabilities of an option's tokens, from a plain forward pass of one sequence without padding."""
    ids = torch.tensor([encoding.input_ids])
    log_probabilities = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    return log_probabilities.gather(1, ids[0, 1:, None])[-encoding.option_length :, 0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_padding_on_the_left_changes_nothing(kind):
    model = tiny(kind, torch.float64)
    options = [option for example in questions(5) for option in example.options]
    together = option_log_probabilities(model, options)
    for row, option in zip(together, options, strict=True):
        alone = one_by_one(model, option)
        torch.testing.assert_close(row[-len(alone) :], alone, rtol=0, atol=1e-10)
        assert not row[: -len(alone)].any()
    torch.testing.assert_close(
        mean_log_probabilities(model, options), torch.stack([one_by_one(model, option).mean() for option in options])
    )


def test_option_choice_is_the_papers_cross_entropy_over_mean_log_probabilities():
    model, examples = tiny("opt", torch.float64), questions(6)
    wanted = sum(
        F.cross_entropy(
            torch.stack([one_by_one(model, option).mean() for option in example.options]), torch.tensor(example.gold)
        )
        for example in examples
    )
    objective = OptionChoice()
    torch.testing.assert_close(objective.loss(model, examples), wanted)
    loss, right = objective.evaluate(model, examples)
    torch.testing.assert_close(loss, wanted)
    assert objective.weight(examples) == 6
    assert right == sum(
        max(range(len(e.options)), key=lambda k: one_by_one(model, e.options[k]).mean().item()) == e.gold
        for e in examples
    )


def test_answering_is_the_mean_cross_entropy_of_all_answer_tokens_of_the_batch():
    """As transformers computes it from labels of -100 outside the answers, in one batch padded on the right."""
    model, examples = tiny("llama", torch.float64), questions(5)
    answers = [example.options[example.gold] for example in examples]
    longest = max(len(answer.input_ids) for answer in answers)
    ids = torch.tensor([answer.input_ids + [0] * (longest - len(answer.input_ids)) for answer in answers])
    labels = torch.full_like(ids, -100)
    for row, answer in zip(labels, answers, strict=True):
        end = len(answer.input_ids)
        row[end - answer.option_length : end] = torch.tensor(answer.input_ids[end - answer.option_length :])
    wanted = model(input_ids=ids, labels=labels).loss
    objective = Answering()
    assert objective.weight(examples) == (labels >= 0).sum()
    # transformers computes its loss in float32.
    assert (objective.loss(model, examples) / objective.weight(examples)).item() == pytest.approx(
        wanted.item(), rel=1e-6
    )
    assert objective.evaluate(model, examples)[1] is None


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10**6), st.sampled_from(["choice", "answer"])
)
def test_parts_of_a_batch_sum_to_the_batch(sizes, seed, kind):
    model = _MODELS.setdefault("opt", tiny("opt", torch.float64))
    objective = OptionChoice() if kind == "choice" else Answering()
    examples = questions(sum(sizes), seed)
    gradients = []
    for parts in ([examples], _cut(examples, sizes)):
        model.zero_grad()
        total = sum(objective.loss(model, part) for part in parts) / objective.weight(examples)
        total.backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


_MODELS = {}


def _cut(examples, sizes):
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [examples[a:b] for a, b in zip(edges, edges[1:], strict=False)]

"""How much faster options are scored when a prompt's options share the context's keys and values.

    python benchmarks/scoring.py --data-dir FOLDER [--task ReCoRD] [--examples 4] [--shape opt-125m]

FOLDER holds the task's original files. Naive scoring runs every option with its whole context, in batches by length
padded on the left, as `rmbook.models.likelihood` does. The two take turns in one process, so their ratio holds when
the machine's speed drifts. Weights are random, since speed does not depend on them, and so that nothing has to be
downloaded the tokenizer is byte-level BPE like OPT's, but trained on the examples themselves (1.34 tokens a word; OPT's
own was not at hand to compare).
"""

import argparse
import statistics
import time

import torch
from engine_methods import SHAPES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rmbook.models.encoding import encode_options
from rmbook.models.likelihood import mean_log_probabilities
from rmbook.models.option_scores import LOGITS, score_options, token_batches
from rmbook.tasks.catalog import load_examples
from rmbook.tasks.prompts import prompt


def trained_tokenizer(examples, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of these examples' own prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt(example)[0] for example in examples), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@torch.no_grad()
def naive_scores(model, prompts, max_tokens: int) -> list[torch.Tensor]:
    """Every option with its own context, (options,) for each prompt."""
    encodings = [encoding for options in prompts for encoding in options]
    scores = torch.empty(len(encodings))
    order = sorted(range(len(encodings)), key=lambda n: len(encodings[n].input_ids), reverse=True)

    def sizes(number: int) -> tuple[int, int]:
        return len(encodings[number].input_ids), LOGITS * encodings[number].option_length

    for batch in token_batches(order, sizes, max_tokens):
        scores[batch] = mean_log_probabilities(model, [encodings[n] for n in batch]).float().cpu()
    return list(scores.split([len(options) for options in prompts]))


def main() -> None:
    """Print the prompts' sizes, both times, their ratio and how far the scores are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder with the task's original files")
    parser.add_argument("--task", default="ReCoRD")
    parser.add_argument("--split", default="train")
    parser.add_argument("--examples", type=int, default=4, help="how many, spread over the split")
    parser.add_argument(
        "--shape", choices=sorted(name for name in SHAPES if name.startswith("opt")), default="opt-125m"
    )
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vocabulary", type=int, default=4000, help="of the tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES[options.shape]).to(options.device).eval()
    examples = load_examples(options.task, options.split, options.data_dir)
    tokenizer = trained_tokenizer(examples, options.vocabulary)
    examples = examples[:: max(1, len(examples) // options.examples)][: options.examples]
    prompts = [encode_options(*prompt(example), tokenizer, 0) for example in examples]

    words = sum(len(prompt(example)[0].split()) for example in examples)
    contexts = [len(encodings[0].input_ids) - encodings[0].option_length for encodings in prompts]
    print(
        f"{options.task}: {len(prompts)} prompts, {sum(map(len, prompts))} options, contexts of {min(contexts)} to "
        f"{max(contexts)} tokens ({sum(contexts) / words:.2f} a word), options of "
        f"{statistics.mean(e.option_length for p in prompts for e in p):.0f}; {options.shape} in float32 on "
        f"{options.device}, {torch.get_num_threads()} threads, medians of {options.rounds} rounds"
    )
    ways = {
        "naive": lambda: naive_scores(model, prompts, options.max_tokens),
        "shared": lambda: score_options(model, prompts, max_tokens=options.max_tokens),
    }
    score_options(model, prompts[:1]), naive_scores(model, prompts[:1], 1000)  # warm up
    seconds, scores = {name: [] for name in ways}, {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way()  # scores are on the CPU: a GPU has finished
            seconds[name].append(time.perf_counter() - start)
    ratios = [naive / shared for naive, shared in zip(seconds["naive"], seconds["shared"], strict=True)]
    apart = (torch.cat(scores["naive"]) - torch.cat(scores["shared"])).abs().max()
    print(f"  naive   {statistics.median(seconds['naive']):8.2f} s")
    print(f"  shared  {statistics.median(seconds['shared']):8.2f} s")
    print(f"  ratio   {statistics.median(ratios):8.2f} (min {min(ratios):.2f}); scores differ by {apart:.1e} at most")


if __name__ == "__main__":
    main()

"""What `rmbook train`'s loop costs beside the training steps themselves.

    python benchmarks/training.py [--shape opt-125m] [--steps 24] [--write]

The loop runs a random mask on prompts of SST-2's length with everything that `rmbook train` gives it: a checkpoint
file, a metrics file, a progress bar. Calls of the forward pass, the backward pass, clipping and the optimiser's update
are timed from outside; overhead is the rest of the loop's time. A plain PyTorch loop takes the same steps in the same
process, for the ratio of the two. Weights are random: speed does not depend on them.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from engine_methods import SHAPES
from recorded import write_result
from transformers import AutoModelForCausalLM

from rmbook.methods.apply import apply_method
from rmbook.models.encoding import Encoding, Question
from rmbook.runs.folder import MetricsFile
from rmbook.training.checkpoint import Checkpoint
from rmbook.training.config import TrainingConfig
from rmbook.training.loop import TrainingLoop
from rmbook.training.objectives import OptionChoice

BATCH = 8


class Clock:
    """Adds up the time inside the calls that it wraps; waits for the GPU, so that the time is theirs."""

    def __init__(self):
        self.seconds = 0.0

    def wrap(self, function):
        """The function, with its time added up."""

        def timed(*arguments, **keywords):
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.seconds += time.perf_counter() - start

        return timed


def sentences(count: int) -> list[Question]:
    """Questions with two options of one token after 10 to 40 tokens, about as SST-2 has."""
    chooser = random.Random(0)
    contexts = [[chooser.randrange(10, 1000) for _ in range(chooser.randint(10, 40))] for _ in range(count)]
    return [
        Question(tuple(Encoding([0, *ids, option], 1) for option in (5, 6)), chooser.randrange(2)) for ids in contexts
    ]


def timed_loop(model, questions: list[Question], method) -> tuple[float, float]:
    """Seconds of the loop's steps, and seconds inside forward, backward, clipping and update."""
    clock, objective, config = Clock(), OptionChoice(), TrainingConfig(learning_rate=1e-4, epochs=1, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder, MetricsFile(Path(folder) / "metrics.jsonl", 0, 0) as log:
        checkpoint = Checkpoint(Path(folder) / "checkpoint.safetensors")
        loop = TrainingLoop(method, objective, config, Accelerator(), checkpoint, log)
        objective.loss = clock.wrap(objective.loss)
        loop.accelerator.backward = clock.wrap(loop.accelerator.backward)
        loop.accelerator.clip_grad_norm_ = clock.wrap(loop.accelerator.clip_grad_norm_)
        loop.optimizer.step = clock.wrap(loop.optimizer.step)
        loop._score = lambda data: (0.0, 0.0)  # evaluation is no part of a step
        start = time.perf_counter()
        loop.run(questions, questions[:1], progress=True)
        return time.perf_counter() - start, clock.seconds


def plain_loop(model, questions: list[Question]) -> float:
    """Seconds of the same steps in a few lines of PyTorch."""
    objective, values = OptionChoice(), [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(values, lr=1e-4, weight_decay=0.0, fused=True)
    order = torch.utils.data.DataLoader(
        range(len(questions)), BATCH, shuffle=True, generator=torch.Generator().manual_seed(0), collate_fn=list
    )
    model.train()
    start = time.perf_counter()
    for indices in order:
        examples = [questions[index] for index in indices]
        (objective.loss(model, examples) / len(examples)).backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print overhead and ratio; with --write, store them with their stamp."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[name for name in SHAPES if name != "vit-b16"], default="opt-125m")
    parser.add_argument("--steps", type=int, default=24, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=1e-3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--write", action="store_true", help="store the result in results/benchmarks/")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = AutoModelForCausalLM.from_config(SHAPES[arguments.shape], dtype=getattr(torch, arguments.dtype))
    method = apply_method(model, "random_masking", ratio=arguments.ratio)
    questions = sentences(BATCH * arguments.steps)
    plain_loop(model, questions[: 2 * BATCH])  # warms up
    rounds = []
    for _ in range(arguments.rounds):
        total, inside = timed_loop(model, questions, method)
        rounds.append({"overhead": 1 - inside / total, "to_plain_loop": total / plain_loop(model, questions)})
    result = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    steps = f"{len(rounds)} rounds of {arguments.steps} steps of {total / arguments.steps:.3f} s"
    print(f"{arguments.shape}, {device.type}, {arguments.dtype}, {steps}")
    print(f"outside forward, backward, clipping and update: {result['overhead']:.2%}")
    print(f"time to a plain loop's: {result['to_plain_loop']:.3f}")
    print(json.dumps(rounds))
    if arguments.write:
        write_result(f"training_{device.type}", {"shape": arguments.shape, "rounds": rounds} | result)


if __name__ == "__main__":
    main()

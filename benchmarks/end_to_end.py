"""Whole jobs side by side: `rmbook train`, and transformers.Trainer with peft's random mask, LoRA, SHiRA, all weights.

    python benchmarks/end_to_end.py [--steps 24] [--rounds 3] [--threads 1] [--shape opt-125m] [--write]

Each job is a process of its own that loads the same model (random weights), encodes the same sentences, takes the
same steps (batch of 8, float32, constant learning rate, the same loss), scores the same dev and test examples, and
saves what it trained. Jobs take turns; `seconds` is from the start of the process to its end, `processor_seconds` is
what it computed in that time, on all threads: the fairer figure on a machine that has other work. `start_seconds` end
where the first step begins.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, HELD_OUT, DENSITY = 8, 16, 0.01
JOBS = ("rmbook train", "Trainer, random mask", "Trainer, LoRA r8", "Trainer, SHiRA", "Trainer, full")


def prepare(folder: Path, shape: str, examples: int) -> None:
    """Write the model and the sentences."""
    import torch
    from engine_methods import SHAPES
    from transformers import AutoModelForCausalLM

    from rmbook.offline.sentences import write_generated_examples
    from rmbook.offline.tiny_language import make_tiny_checkpoint

    make_tiny_checkpoint(folder / "model", pretrain_steps=0)  # for its tokenizer
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPES[shape]).save_pretrained(folder / "model")
    write_generated_examples(folder / "data", examples + HELD_OUT, HELD_OUT)


def trainer_job(folder: Path, method: str, steps: int, output: Path) -> None:
    """One job by transformers.Trainer, as a user of it would write it."""
    import peft
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    from rmbook import RandomMaskConfig
    from rmbook.tasks.catalog import find_task
    from rmbook.tasks.splits import draw_splits
    from rmbook.training.objectives import OptionChoice

    task, objective = find_task("SST-2"), OptionChoice()
    splits = draw_splits(task, str(folder / "data"), 0, steps * BATCH, HELD_OUT, HELD_OUT)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    longest = task.prompt_limit(model, None)
    given = (splits.train, splits.dev, splits.test)
    train, dev, test = (task.encode(part, model, tokenizer, longest) for part in given)
    targets = ["q_proj", "v_proj"]
    if method == "LoRA r8":
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=targets))
    elif method == "SHiRA":  # as many entries as the mask has
        rank = round(DENSITY * model.config.hidden_size / 2)
        model = peft.get_peft_model(model, peft.ShiraConfig(r=rank, target_modules=targets))
    elif method == "random mask":
        model = peft.get_peft_model(model, RandomMaskConfig(density=DENSITY, target_modules=targets))

    class Task(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = objective.loss(model, inputs["examples"]) / len(inputs["examples"])
            return (loss, {}) if return_outputs else loss

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            loss, _ = objective.evaluate(model, inputs["examples"])
            return loss / len(inputs["examples"]), None, None

    class Clock(transformers.TrainerCallback):
        began, inside = 0.0, 0.0

        def on_train_begin(self, *_, **__):
            self.began = time.time()

        def on_step_begin(self, *_, **__):
            self.step = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.inside += time.perf_counter() - self.step

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"), per_device_train_batch_size=BATCH, per_device_eval_batch_size=4 * BATCH,
        max_steps=steps, learning_rate=1e-5, lr_scheduler_type="constant", weight_decay=0.0, use_cpu=True, report_to=[],
        eval_strategy="epoch", save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
        logging_strategy="no", optim="adamw_torch_fused", seed=0,
    )  # fmt: skip
    trainer = Task(model, arguments, lambda examples: {"examples": examples}, train, dev, callbacks=[clock])
    trainer.train()
    for start in range(0, len(test), 4 * BATCH):
        objective.evaluate(model.eval(), test[start : start + 4 * BATCH])
    trainer.save_model(str(output / "saved"))
    about = {"began": clock.began, "inside": clock.inside}
    (output / "clock.json").write_text(json.dumps(about))


def command_of(job: str, folder: Path, steps: int, output: Path) -> list[str]:
    """Command line of a job."""
    if job == "rmbook train":
        settings = {
            "model": folder / "model", "task": "SST-2", "data-dir": folder / "data", "density": DENSITY, "lr": "1e-5",
            "epochs": 1, "batch-size": BATCH, "train-size": steps * BATCH, "dev-size": HELD_OUT, "test-size": HELD_OUT,
            "output": output / "run", "schedule": "constant",
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "rmbook", "train", *flags, "--quiet"]
    method = job.removeprefix("Trainer, ")
    return [sys.executable, __file__, "--job", method, "--steps", str(steps), "--folder", str(folder), str(output)]


def run_job(job: str, folder: Path, steps: int, threads: int) -> dict[str, float]:
    """Run one job in a process, and return its figures."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    began = time.time()
    process = subprocess.Popen(command_of(job, folder, steps, output), env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    if status:
        raise RuntimeError(f"{job} failed with status {os.waitstatus_to_exitcode(status)}.")
    if job == "rmbook train":
        rows = [json.loads(line) for line in (output / "run" / "metrics.jsonl").read_text().splitlines()]
        inside, first = sum(row.get("seconds", 0) for row in rows), (output / "run" / "config.json").stat().st_mtime
        files = [output / "run" / "adapter.safetensors"]
    else:
        clock = json.loads((output / "clock.json").read_text())
        inside, first = clock["inside"], clock["began"]
        files = [path for path in (output / "saved").rglob("*") if path.is_file()]
    return {
        "seconds": ended - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "start_seconds": first - began,
        "step_seconds": inside / steps,
        "peak_bytes": usage.ru_maxrss * 1024,
        "file_bytes": sum(path.stat().st_size for path in files),
    }


def summary(runs: dict[str, list[dict]], tokens: int) -> dict[str, dict]:
    """Medians of each job's figures, and of its ratio to Trainer with LoRA in the same round, with that one's ends."""
    rows: dict = {}
    for job, own in runs.items():
        rows[job] = {name: statistics.median(run[name] for run in own) for name in own[0]}
        for name in ("seconds", "processor_seconds"):
            pairs = zip(own, runs["Trainer, LoRA r8"], strict=True)
            relative = [run[name] / lora[name] for run, lora in pairs]
            rows[job][f"{name}_to_lora"] = statistics.median(relative)
            rows[job][f"{name}_to_lora_ends"] = [min(relative), max(relative)]
        rows[job]["tokens_per_second"] = tokens / rows[job]["step_seconds"]
    return rows


def main() -> None:
    """Measure, print, and with --write store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", default="opt-125m")
    parser.add_argument("--jobs", nargs="+", default=JOBS)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("output", nargs="?", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        return trainer_job(given.folder, given.job, given.steps, given.output)
    from recorded import write_result  # not before: a job's start is measured

    with tempfile.TemporaryDirectory() as name:
        folder, runs, tokens = Path(name), {job: [] for job in given.jobs}, 0
        prepare(folder, given.shape, given.steps * BATCH)
        for _ in range(given.rounds):
            for job in given.jobs:
                runs[job].append(run_job(job, folder, given.steps, given.threads))
                print(job, {name: round(value, 3) for name, value in runs[job][-1].items()}, flush=True)
                if job == "rmbook train":
                    result = json.loads((folder / "output" / "run" / "metrics.jsonl").read_text().splitlines()[0])
                    tokens = result["tokens"]
        rows = summary(runs, tokens)
        print(json.dumps(rows, indent=1))
        if given.write:
            sizes = {"shape": given.shape, "steps": given.steps, "batch": BATCH, "density": DENSITY}
            sizes |= {"rounds": given.rounds, "threads": given.threads, "tokens_a_step": tokens}
            write_result("end_to_end_cpu", sizes | {"jobs": rows})


if __name__ == "__main__":
    main()

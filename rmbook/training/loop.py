"""The loop of `rmbook.train`: steps, epochs, the best of them, and a state that can be put away and taken up again."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from rmbook.engine.shards import whole
from rmbook.errors import first_line, is_memory_shortage
from rmbook.json_files import check_fields
from rmbook.methods.applied_method import AppliedMethod
from rmbook.methods.settings import MethodError
from rmbook.stamps import peak_memory
from rmbook.training.accelerator import shards_base
from rmbook.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainingInterrupted,
    optimizer_tensors,
    restore_optimizer,
)
from rmbook.training.config import TrainingConfig, schedule_share
from rmbook.training.evaluation import evaluate
from rmbook.training.objectives import Objective
from rmbook.training.state import STATE, TrainingState


class TrainingLoop:
    """See `rmbook.train`, which makes one and runs it once."""

    def __init__(
        self,
        method: AppliedMethod,
        objective: Objective,
        config: TrainingConfig,
        accelerator: Accelerator,
        checkpoint: Checkpoint | None = None,
        log: Callable[[dict], None] | None = None,
    ):
        self.method, self.objective, self.config, self.accelerator = method, objective, config, accelerator
        self.checkpoint, self.state = checkpoint, TrainingState()
        self.log = log if log and accelerator.is_main_process else lambda row: None
        fused = accelerator.device.type in ("cpu", "cuda")  # several times faster than the loop over tensors
        optimizer = torch.optim.AdamW(
            list(method.parameters()), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self.model, wrapped = accelerator.prepare(method.model, optimizer)
        # accelerate's own wrapper, of use where gradients are scaled, looks for packages on the disk at each step.
        plain = fused and accelerator.scaler is None and type(wrapped) is AcceleratedOptimizer
        self.optimizer = wrapped.optimizer if plain else wrapped
        self.trained = list(method.parameters())  # FSDP makes others of them
        self.best = self._weights()
        self.stop, self.due, self.speed, self.last_step = False, False, 0.0, 0

    def run(self, train_data: Sequence, dev_data: Sequence, progress: bool) -> TrainingState:
        """All epochs, from wherever the checkpoint is; at the end the model has the best epoch's weights."""
        started = time.perf_counter()
        try:
            self._restore()
            earlier = self.state.seconds
            for keep in self._steps(train_data, dev_data, progress and self.accelerator.is_main_process):
                self.state.seconds = earlier + time.perf_counter() - started
                if self.checkpoint and (keep or self.stop or self.due):
                    self._save()
                if self.stop and not self._over():
                    raise TrainingInterrupted(f"stopped after step {self.state.step}.")
            self.state.seconds = earlier + time.perf_counter() - started
            self._load_weights(self.best)
        finally:  # mixed precision wraps the model's forward: take that off again
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return self.state

    def _steps(self, train_data, dev_data, progress: bool):
        """Do a step and yield False, or the end of an epoch and yield True: then the state can be put away."""
        config, state = self.config, self.state
        generator = torch.Generator().manual_seed(config.seed)
        order = DataLoader(
            range(len(train_data)), config.batch_size, shuffle=True, generator=generator, collate_fn=list
        )
        for _ in range(1, state.epoch):  # epochs that are done: draw what they drew
            list(order)
        self.last_step = config.steps(len(train_data))
        with tqdm(total=self.last_step, initial=state.step, unit="step", leave=False, disable=not progress) as bar:
            while not self._over() and state.status == "completed":
                self.model.train()
                order_left = list(order)[state.batch :][: self.last_step - state.step]
                batches = ([train_data[index] for index in indices] for indices in order_left)
                place = self.accelerator.process_index, self.accelerator.num_processes
                for examples in self.objective.ahead(batches, *place):
                    if not self._step(examples):
                        state.status = "diverged"
                        return
                    bar.set_postfix_str(self._postfix(), refresh=False)
                    bar.update()
                    yield False
                self._finish_epoch(dev_data)
                bar.set_postfix_str(self._postfix())
                yield True

    def _over(self) -> bool:
        """Return whether all steps are taken and the last epoch is finished."""
        return self.state.step >= self.last_step and self.state.batch == 0

    def _set_learning_rate(self) -> None:
        config = self.config
        share = schedule_share(self.state.step, self.last_step, config.schedule, config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = share * config.learning_rate

    def _step(self, examples: list) -> bool:
        """One optimiser step on a batch; False, and nothing is changed, where loss or gradient are not finite."""
        started, processes = time.perf_counter(), self.accelerator.num_processes
        share = examples[self.accelerator.process_index :: processes]
        size = self.config.micro_batch_size or max(1, len(share))
        # Without a share of a small last batch, a process still has to take part in summing the gradients.
        parts = [share[start : start + size] for start in range(0, len(share), size)] or [examples[:1]]
        if shards_base(self.accelerator):  # whose processes have to call the model equally often
            most = -(-len(examples) // processes)
            size = self.config.micro_batch_size or most
            parts += [examples[:1]] * (-(-most // size) - len(parts))
        weight: float = self.objective.weight(examples)
        loss: Any = 0.0
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                summed = self.objective.loss(self.model, part) * ((number - 1) * size < len(share)) / weight
                # Gradients are averaged over the processes, where the sum of their shares is wanted.
                self.accelerator.backward(summed * processes + (self.method.penalty() if last else 0.0))
            loss += summed.detach()
        norm = self.accelerator.clip_grad_norm_(self.trained, self.config.max_grad_norm)
        # All that the processes must agree on, and the step's only wait for a GPU.
        loss, *flags = self.accelerator.reduce(
            torch.stack([loss, *map(loss.new_tensor, self._flags())]), "sum"
        ).tolist()
        norm, self.stop, self.due = whole(norm).item(), flags[0] > 0, flags[1] > 0
        # A gradient scaler (fp16) finds its scale by infinite gradients, and skips those steps.
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler):
            return False
        self._set_learning_rate()
        self.optimizer.step()
        self.state.step, self.state.batch = self.state.step + 1, self.state.batch + 1
        self.method.after_step(self.state.step)
        self.optimizer.zero_grad()
        self.state.losses.append(loss)
        tokens, seconds = sum(map(self.objective.length, examples)), time.perf_counter() - started
        self.speed = tokens / seconds
        row = {"step": self.state.step, "epoch": self.state.epoch, "loss": loss, "gradient_norm": norm}
        self.log(row | {"tokens": tokens, "seconds": round(seconds, 6)})
        return True

    def _finish_epoch(self, dev_data) -> None:
        state = self.state
        size = 4 * self.config.batch_size
        loss, accuracy = evaluate(self.method.model, dev_data, self.objective, size, self.accelerator)
        row = {"epoch": state.epoch, "step": state.step, "train_loss": sum(state.losses) / len(state.losses)}
        state.history.append(row | {"dev_loss": loss, "dev_accuracy": accuracy})
        self.log(state.history[-1])
        if not math.isfinite(loss):
            state.status = "diverged"
        elif state.best_epoch == 0 or loss < state.history[state.best_epoch - 1]["dev_loss"]:
            self.best, state.best_epoch = self._weights(), state.epoch
        state.epoch, state.batch, state.losses = state.epoch + 1, 0, []

    def _flags(self) -> tuple[float, float]:
        """Return whether this process is asked to stop, and whether it is time to write a checkpoint."""
        if not self.checkpoint:
            return 0.0, 0.0
        return float(self.checkpoint.stop_requested), float(self.accelerator.is_main_process and self.checkpoint.due())

    def _weights(self) -> dict[str, torch.Tensor]:
        """Copies of all that training changes: buffers too, for batch normalisation and the like."""
        buffers = {
            n: b.detach().to("cpu", copy=True) for n, b in self.method.model.named_buffers() if b.is_floating_point()
        }
        return self.method.state() | {f"buffer:{name}": buffer for name, buffer in buffers.items()}

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        self.method.load_state({n: t for n, t in weights.items() if not n.startswith("buffer:")})
        for name, buffer in self.method.model.named_buffers():
            if f"buffer:{name}" in weights:
                buffer.copy_(weights[f"buffer:{name}"])

    def _save(self) -> None:
        assert self.checkpoint is not None  # it alone asks for this
        cuda = self.accelerator.device.type == "cuda"
        random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if cuda else {})
        gather = self.accelerator.gather  # every process has a random state of its own
        groups = {
            "now": self._weights(),
            "best": self.best,
            "optimizer": {name: whole(tensor) for name, tensor in optimizer_tensors(self.optimizer).items()},
            "random": {n: gather(state[None].to(self.accelerator.device)) for n, state in random.items()},
        }
        tensors = {f"{group}/{name}": tensor for group, entries in groups.items() for name, tensor in entries.items()}
        scaler = self.accelerator.scaler
        info = {"state": asdict(self.state), "config": asdict(self.config), "scaler": scaler and scaler.state_dict()}
        self.checkpoint.save(info, tensors)

    def _restore(self) -> None:
        if self.checkpoint and (found := self.checkpoint.load()):
            try:
                self._restore_state(self.checkpoint.path, *found)
            except (AttributeError, LookupError, MethodError, RuntimeError, TypeError, ValueError) as error:
                if is_memory_shortage(error) or isinstance(error, dist.DistError):  # not the file's fault
                    raise
                raise CheckpointError(
                    f"{self.checkpoint.path} is not of this run, or damaged ({first_line(error)}): remove it to start "
                    "from the beginning."
                ) from None

    def _restore_state(self, path: Path, info: dict, tensors: dict[str, torch.Tensor]) -> None:
        check_fields(info["state"], STATE, tuple(STATE))
        # The size of parts changes the memory and not the step: a run that needed too much may go on with smaller ones.
        saved = asdict(type(self.config)(**info["config"] | {"micro_batch_size": self.config.micro_batch_size}))
        if saved != asdict(self.config):  # older files lack settings that then had one value, today's default
            raise CheckpointError(f"{path} is of a run with other settings, {info['config']}: use these, or remove it.")
        groups = {"now": {}, "best": {}, "optimizer": {}, "random": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        wrote, here = len(groups["random"]["cpu"]), self.accelerator.num_processes
        if wrote < here:  # each has a random state of its own; with fewer processes some are not needed
            raise CheckpointError(
                f"{path} was written by {wrote} process(es), and now there are {here}: resume it with {wrote} at most, "
                "or remove the file to start from the beginning."
            )
        if info["scaler"] and self.accelerator.scaler is None:
            raise CheckpointError(
                f"{path} is of a run in mixed precision whose gradients were scaled (fp16), and this one scales none: "
                "resume it in fp16, or remove the file to start from the beginning."
            )
        self._load_weights(groups["now"])
        self.best, self.state = groups["best"], TrainingState(**info["state"])
        restore_optimizer(self.optimizer, groups["optimizer"])
        if info["scaler"]:
            self.accelerator.scaler.load_state_dict(info["scaler"])
        # Cloned: torch (2.13) reads a state from the start of its memory, and of a row it crashes.
        own = {name: states[self.accelerator.process_index].clone() for name, states in groups["random"].items()}
        torch.set_rng_state(own["cpu"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])

    def _postfix(self) -> str:
        """Loss of the last step, dev score of the last epoch, examples or tokens a second, peak memory."""
        state = self.state
        parts = [f"loss {(state.losses or [row['train_loss'] for row in state.history])[-1]:.3f}"]
        if state.history:
            name = "dev_loss" if math.isnan(state.history[-1]["dev_accuracy"]) else "dev_accuracy"
            parts.append(f"{name.replace('_', ' ')} {state.history[-1][name]:.3f}")
        memory = peak_memory(self.accelerator.device)
        return ", ".join([*parts, f"{self.speed:,.0f} {self.objective.unit}/s", f"peak {memory / 2**30:.1f} GiB"])

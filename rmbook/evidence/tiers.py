"""What the chapters on language models run, by the hardware and the records at hand, in one place and in words.

There are three tiers: a laptop's CPU (a tiny model that the package makes), one GPU, and a big GPU (the paper's
largest models). The rules (`choose_tier`, and `choose_records` in `rmbook.evidence.record_source`) look at their
arguments alone; `make_plan` looks at the machine.
"""

import math
import os
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rmbook.evidence.record_source import find_source
from rmbook.models.files import ModelError, find_folder
from rmbook.models.language import convert_checkpoint, load_language_model
from rmbook.offline.made import generated_examples, tiny_checkpoint
from rmbook.offline.store import cache_folder

TINY = "tiny"  # the name of the model that is made here
# The least memory in GB for masks and LoRA, the model, and the least for full fine-tuning (16 bytes a parameter and
# room for activations); for batches of 8 of SST-2's length.
LADDERS = {
    "opt": (
        (80, "facebook/opt-13b", math.inf),
        (24, "facebook/opt-1.3b", 32),
        (12, "facebook/opt-125m", 12),
    ),
    "llama": (
        (80, "meta-llama/Llama-2-7b-hf", math.inf),
        (24, "HuggingFaceTB/SmolLM2-1.7B", 40),  # open, and of Llama's architecture
        (12, "HuggingFaceTB/SmolLM2-135M", 12),
    ),
}
BIG = 80
PAPER_SIZES = {"train_size": 1000, "dev_size": 500, "test_size": 1000, "epochs": 5}
# A mask, and the learning rates of a sweep: around the best of the tiny model, or of the paper (tables 6 and 7).
TINY_TRIAL = {"density": 0.1}
TINY_RATES = {"full": (1e-4, 3e-4, 1e-3, 3e-3), "lora": (1e-3, 3e-3, 1e-2, 3e-2), "mask": (3e-3, 1e-2, 3e-2, 1e-1)}
TINY_RATE = {"opt": 3e-2, "llama": 1e-2}
PAPER_TRIAL = {"ratio": 0.001}
PAPER_RATES = {"full": (1e-6, 1e-5, 1e-4), "lora": (1e-5, 1e-4, 1e-3), "mask": (1e-4, 1e-3, 1e-2)}
LAPTOP_SIZES = {"train_size": 400, "dev_size": 200, "test_size": 500, "epochs": 3}


@dataclass(frozen=True)
class Tier:
    """What a kind of machine can do.

    Attributes:
        name: "laptop", "one GPU" or "big GPU".
        model: "tiny", or a name for `rmbook.models.language.load_language_model`.
        settings: of `RunConfig`: sizes of the splits, epochs, and on a GPU the precision.
        mask: density or ratio of the chapter's mask, for `RunConfig`.
        rates: learning rates of its sweep, for "lora", "mask" and, where the memory is enough, "full".
        rate: a good learning rate for the mask.
        time: how long the chapter takes, in words; only what was measured has a number.
    """

    name: str
    model: str
    settings: dict = field(default_factory=dict)
    mask: dict = field(default_factory=PAPER_TRIAL.copy)
    rates: dict = field(default_factory=PAPER_RATES.copy)
    rate: float = 1e-3
    time: str = "the chapter's time is not yet measured"


def choose_tier(family: str, gpu_gigabytes: float | None, model: str | None = None) -> Tier:
    """Return the tier of a machine. A rule, and nothing else: it looks at its arguments only.

    Args:
        family: "opt" or "llama".
        gpu_gigabytes: memory of the CUDA device in 10^9 bytes; None without one.
        model: a model that the reader asks for, instead of the tier's own.

    Raises:
        ValueError: another family.
    """
    if family not in LADDERS:
        raise ValueError(f"family must be one of {', '.join(LADDERS)}, got {family!r}.")
    found = [rung for rung in LADDERS[family] if gpu_gigabytes is not None and gpu_gigabytes >= rung[0]]
    if not found:
        time = "the chapter takes about a minute on one core"
        tier = Tier("laptop", TINY, LAPTOP_SIZES, TINY_TRIAL, TINY_RATES, TINY_RATE[family], time)
    else:
        _, own, least_for_full = found[0]
        rates = {key: row for key, row in PAPER_RATES.items() if key != "full" or gpu_gigabytes >= least_for_full}
        # What is trained is in float32 either way; 13b in float32 would be 51 GB of weights alone.
        big = gpu_gigabytes >= BIG
        precision = {"dtype": "bfloat16"} if big else {"mixed_precision": "bf16"}
        tier = Tier("big GPU" if big else "one GPU", own, PAPER_SIZES | precision, rates=rates)
    if model and model != tier.model:
        unmeasured = "the chapter's time with this model is not yet measured"
        tier = replace(tier, model=model, mask=PAPER_TRIAL, rate=1e-3, time=unmeasured)
        if tier.name == "laptop":
            tier = replace(tier, rates=PAPER_RATES)
    return tier


@dataclass(frozen=True)
class Plan:
    """What a chapter runs here.

    Attributes:
        tier: the kind of machine.
        family: "opt" or "llama".
        model: folder or name of the model, as `RunConfig` takes it.
        source: where the records come from; see `choose_records`.
        data_dir: folder of the task's original files, or None for the hub's.
        note: why the model or the records are not what the tier would have; empty if they are.
    """

    tier: Tier
    family: str
    model: str
    source: str
    data_dir: str | None
    note: str = ""

    @property
    def as_printed(self) -> bool:
        """Whether model and records are those of the book's pages, so that their numbers should come out again."""
        return self.tier.model == TINY and self.source == "generated"

    @property
    def settings(self) -> dict:
        """For `RunConfig`: model, task, records and sizes."""
        return {"model": self.model, "task": "SST-2", "data_dir": self.data_dir} | self.tier.settings

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model as it is, on the GPU where there is one, and its tokenizer."""
        device = "cuda" if torch.cuda.is_available() else None
        dtype = getattr(torch, self.tier.settings.get("dtype", "float32"))
        return load_language_model(self.model, dtype=dtype, device=device)

    def sentence(self) -> str:
        """Return tier, model, records, sizes and time in words, for the reader, before anything starts."""
        size, model = self.tier.settings, self.tier.model
        model = f"a tiny {dict(opt='OPT', llama='Llama')[self.family]} made by rmbook" if model == TINY else model
        records = {
            "generated": "sentences generated by rmbook, in SST-2's format",
            "hub": "SST-2 from the Hugging Face hub",
            "original files": f"SST-2's original files in {self.data_dir}",
        }[self.source]
        counts = f"{size['train_size']} to train on, {size['dev_size']} dev, {size['test_size']} test"
        lines = [
            f"tier: {self.tier.name}; {self.tier.time}",
            f"model: {model}",
            f"records: {records}; {counts}; {size['epochs']} epochs",
        ]
        return "\n".join(lines + ([f"note: {self.note}"] if self.note else []))


def make_plan(family: str) -> Plan:
    """Look at the hardware, the environment and the network, and return a plan with what the tier needs.

    The variable RMBOOK_MODEL of the environment names a model, instead of the tier's own; for records see
    `rmbook.evidence.record_source.find_source`. A hub that does not answer is waited for some seconds at most.

    Raises:
        ModelError: the model in RMBOOK_MODEL cannot be had.
        TaskError: RMBOOK_DATA_DIR has no such files.
    """
    asked = os.environ.get("RMBOOK_MODEL")
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else None
    tier, notes = choose_tier(family, memory, asked), []
    model = tier.model
    if model != TINY:
        try:
            model = model_folder(model)
        except ModelError as error:
            if asked:
                raise
            notes.append(f"{model} cannot be had here, so the tiny model runs instead ({error})")
            tier, model = choose_tier(family, None), TINY
    source, data_dir = find_source()
    if source == "generated":
        if os.environ.get("RMBOOK_RECORDS") != "generated":
            notes.append("SST-2 is out of reach: no hub, and RMBOOK_DATA_DIR is not set")
        sizes = tier.settings
        data_dir = str(generated_examples(sizes["train_size"] + sizes["dev_size"], sizes["test_size"]))
    model = str(tiny_checkpoint(family)) if model == TINY else model
    return Plan(tier, family, model, source, data_dir, "; ".join(notes))


def model_folder(name: str) -> str:
    """Return the folder of a model, downloaded if need be; old formats of weights, such as OPT's, are converted once.

    Raises:
        ModelError: no such model, or it is out of reach.
    """
    try:
        return str(find_folder(name, None))
    except ModelError as error:
        if "pytorch_model.bin" not in str(error):
            raise
    folder = cache_folder() / "converted" / name.replace("/", "--")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_checkpoint(name, folder)
    return str(folder)

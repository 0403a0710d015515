"""What the chapters on language models run, by the hardware and the examples at hand, in one place and in words.

There are three tiers: a laptop's CPU (a tiny model that the package makes), one GPU, and a big GPU (the paper's
largest models). The rule `choose_tier` looks at its arguments alone; `make_plan` looks at the machine.
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rmbook.errors import TaskError
from rmbook.models.files import ModelError, find_folder
from rmbook.models.language import convert_checkpoint, load_language_model
from rmbook.offline.made import generated_examples, tiny_checkpoint
from rmbook.offline.store import cache_folder
from rmbook.settings import expand_home
from rmbook.tasks.catalog import load_examples
from rmbook.yaml_files import read_yaml

TINY = "tiny"  # the name of the model that is made here
BIG = 80  # GB
TABLE = read_yaml(Path(__file__).with_suffix(".yaml"))


@dataclass(frozen=True)
class Tier:
    """A kind of machine, and what it can do.

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
    settings: dict
    mask: dict
    rates: dict
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
    ladders, paper = TABLE["ladders"], TABLE["paper"]
    if family not in ladders:
        raise ValueError(f"family must be one of {', '.join(ladders)}, got {family!r}.")
    found = [rung for rung in ladders[family] if gpu_gigabytes is not None and gpu_gigabytes >= rung[0]]
    if not found:
        time = "the chapter takes about a minute on one core"
        tier = Tier("laptop", TINY, **TABLE["tiny"], rate=TABLE["tiny_rate"][family], time=time)
    else:
        _, own, least_for_full = found[0]
        rates = {key: row for key, row in paper["rates"].items() if key != "full" or gpu_gigabytes >= least_for_full}
        # What is trained is in float32 either way; 13b in float32 would be 51 GB of weights alone.
        big = gpu_gigabytes >= BIG
        precision = {"dtype": "bfloat16"} if big else {"mixed_precision": "bf16"}
        tier = Tier("big GPU" if big else "one GPU", own, paper["settings"] | precision, paper["mask"], rates)
    if model and model != tier.model:
        unmeasured = "the chapter's time with this model is not yet measured"
        tier = replace(tier, model=model, mask=paper["mask"], rate=1e-3, time=unmeasured)
        if tier.name == "laptop":
            tier = replace(tier, rates=paper["rates"])
    return tier


@dataclass(frozen=True)
class Plan:
    """The runs of a chapter on this machine.

    Attributes:
        tier: the kind of machine.
        family: "opt" or "llama".
        model: folder or name of the model, as `RunConfig` takes it.
        source: where the examples come from; see `find_source`.
        data_dir: folder of the task's original files, or None for the hub's.
        note: why the model or the examples are not what the tier would have; empty if they are.
    """

    tier: Tier
    family: str
    model: str
    source: str
    data_dir: str | None
    note: str = ""

    @property
    def as_printed(self) -> bool:
        """Return whether model and examples are those of the book's pages, so that their numbers should come again."""
        return self.tier.model == TINY and self.source == "generated"

    @property
    def settings(self) -> dict:
        """Settings for `RunConfig`: model, task, examples and sizes."""
        return {"model": self.model, "task": "SST-2", "data_dir": self.data_dir} | self.tier.settings

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model as it is, on the GPU where there is one, and its tokenizer."""
        device = "cuda" if torch.cuda.is_available() else None
        dtype = getattr(torch, self.tier.settings.get("dtype", "float32"))
        return load_language_model(self.model, dtype=dtype, device=device)

    def sentence(self) -> str:
        """Return tier, model, examples, sizes and time in words, for the reader, before anything starts."""
        size, model = self.tier.settings, self.tier.model
        model = f"a tiny {dict(opt='OPT', llama='Llama')[self.family]} made by rmbook" if model == TINY else model
        examples = {
            "generated": "sentences generated by rmbook, in SST-2's format",
            "hub": "SST-2 from the Hugging Face hub",
            "original files": f"SST-2's original files in {self.data_dir}",
        }[self.source]
        counts = f"{size['train_size']} to train on, {size['dev_size']} dev, {size['test_size']} test"
        lines = [
            f"tier: {self.tier.name}; {self.tier.time}",
            f"model: {model}",
            f"examples: {examples}; {counts}; {size['epochs']} epochs",
        ]
        return "\n".join(lines + ([f"note: {self.note}"] if self.note else []))


def gpu_memory() -> float | None:
    """Return the memory of the CUDA device in 10^9 bytes; None without one."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def hub_answers(address: str = constants.ENDPOINT, seconds: float = 3.0) -> bool:
    """Return whether a server answers in time, whatever it says, and its name is looked up, which has no time limit."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def hub_has_examples(answers: Callable[[], bool] = hub_answers, load: Callable = load_examples) -> bool:
    """Return whether SST-2 can be had from the hub, or from its cache."""
    offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("", "0")
    if not offline and not answers():
        return False
    try:
        for split in ("train", "validation"):
            load("SST-2", split)
    except TaskError:
        return False
    return True


def find_source(has_examples: Callable[[], bool] = hub_has_examples) -> tuple[str, str | None]:
    """Return where SST-2's examples come from, "original files", "hub" or "generated", and the original files' folder.

    Environment: RMBOOK_DATA_DIR names a folder with SST-2's original files; RMBOOK_RECORDS=generated asks for generated
    sentences. A hub that does not answer is waited for some seconds at most; with HF_HUB_OFFLINE or HF_DATASETS_OFFLINE
    its cache is looked at, and nothing else.

    Raises:
        TaskError: RMBOOK_DATA_DIR has no such files.
    """
    data_dir = expand_home(os.environ.get("RMBOOK_DATA_DIR", "")) or None
    wanted = os.environ.get("RMBOOK_RECORDS") == "generated"
    if data_dir and not wanted:
        load_examples("SST-2", "validation", data_dir)  # a wrong folder should be named now
        return "original files", data_dir
    return "hub" if not wanted and has_examples() else "generated", None


def model_folder(name: str, find: Callable = find_folder, convert: Callable = convert_checkpoint) -> str:
    """Return the folder of a model, downloaded if need be; old formats of weights, such as OPT's, are converted once.

    Raises:
        ModelError: no such model, or it is out of reach.
    """
    try:
        return str(find(name, None))
    except ModelError as error:
        if "pytorch_model.bin" not in str(error):
            raise
    folder = cache_folder() / "converted" / name.replace("/", "--")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(name, folder)
    return str(folder)


def make_plan(
    family: str,
    *,
    memory: Callable[[], float | None] = gpu_memory,
    has_examples: Callable[[], bool] = hub_has_examples,
    find: Callable[[str], str] = model_folder,
) -> Plan:
    """Look at the hardware, the environment and the network, and return a plan with what the tier needs.

    The variable RMBOOK_MODEL of the environment names a model, instead of the tier's own; for examples see
    `find_source`. A hub that does not answer is waited for some seconds at most.

    Args:
        family: "opt" or "llama".
        memory, has_examples, find: what looks at the machine and at the hub; others for a machine that is not this one.

    Raises:
        ModelError: the model in RMBOOK_MODEL cannot be had.
        TaskError: RMBOOK_DATA_DIR has no such files.
    """
    asked = os.environ.get("RMBOOK_MODEL")
    tier, notes = choose_tier(family, memory(), asked), []
    model = tier.model
    if model != TINY:
        try:
            model = find(model)
        except ModelError as error:
            if asked:
                raise
            notes.append(f"{model} cannot be had here, so the tiny model runs instead ({error})")
            tier, model = choose_tier(family, None), TINY
    source, data_dir = find_source(has_examples)
    if source == "generated":
        if os.environ.get("RMBOOK_RECORDS") != "generated":
            notes.append("SST-2 is out of reach: no hub, and RMBOOK_DATA_DIR is not set")
        sizes = tier.settings
        data_dir = str(generated_examples(sizes["train_size"] + sizes["dev_size"], sizes["test_size"]))
    model = str(tiny_checkpoint(family)) if model == TINY else model
    return Plan(tier, family, model, source, data_dir, "; ".join(notes))

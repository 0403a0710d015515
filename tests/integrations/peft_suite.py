"""Run peft's own generic tests, from the source distribution of the installed version, on `RandomMaskConfig`.

    python tests/integrations/peft_suite.py [arguments of pytest]

The distribution comes from PyPI (`pip download`) into rmbook's cache folder, and nothing of it is kept here; where pip
finds no index, put peft-VERSION.tar.gz into the folder that the message names. Cases for RandomMaskConfig are put into
peft's own tables of cases, and nothing else of its tests is changed. They ask the hub for tiny models: random ones with
these names are put into a hub cache first, so no other network is used. It takes two minutes of one core.
test_peft_suite.py runs a quick part of it.

What does not apply is skipped by peft's own conditions, or, where it needs the hub, deselected here (DOES_NOT_APPLY):

| Cases                                             | Why not                                                       |
|---------------------------------------------------|---------------------------------------------------------------|
| prompts: initial text, vocabulary, their tasks    | a mask has no virtual tokens                                  |
| several adapters in one batch (`adapter_names`)   | W + S is one matrix for the whole batch                       |
| `bias="all"`, and adapters that train biases      | masks are drawn in weights; `modules_to_save` trains biases   |
| weighted sums of adapters, conversion to LoRA     | peft does both only for methods that it lists by name         |
| layers of GPT-2 (`Conv1D`) in some cases          | peft's lists of methods are closed; rmbook's own tests do it  |
| one test of Llama and Gemma                       | peft skips them for all methods but its own BEFT              |
| two active adapters with `modules_to_save`        | peft has no such thing                                        |
| adapters of LoRA that lie on the hub              | they are no masks, and there is no hub                        |
| FSDP1 around a model (`fsdp_wrapped`)             | rmbook refuses FSDP1 by name; FSDP2 has tests of its own      |
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from rmbook.offline.store import cache_folder

ROOT = Path(__file__).resolve().parents[2]
FILES = ("custom_models", "config", "decoder_models", "encoder_decoder_models", "feature_extraction_models")
FILES = (*FILES, "seq_classifier")
ONE_CONFIG = "tests/test_config.py::TestPeftConfig::{}[RandomMaskConfig-mandatory_kwargs0]"
DOES_NOT_APPLY = {  # test: why
    ONE_CONFIG.format("test_from_pretrained"): "loads a LoRA adapter from the hub",
    ONE_CONFIG.format("test_from_pretrained_cache_dir"): "loads a LoRA adapter from the hub",
    ONE_CONFIG.format("test_save_pretrained_with_runtime_config"): "loads a LoRA adapter from the hub",
}
CASES = """
    ("RandomMask 1", "MLP", RandomMaskConfig, {"density": 0.3, "target_modules": "lin0"}),
    ("RandomMask 2", "MLP", RandomMaskConfig, {"density": 0.3, "target_modules": ["lin0"]}),
    ("RandomMask 3", "MLP", RandomMaskConfig, {"density": 0.5, "target_modules": ["lin1"]}),
    ("RandomMask 4", "MLP", RandomMaskConfig, {"ratio": 0.2, "seed": 5, "target_modules": ["lin0", "lin1"]}),
    ("RandomMask 5", "MLP", RandomMaskConfig,
        {"density": 0.3, "target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("RandomMask 6", "MLP", RandomMaskConfig,
        {"density": 0.3, "target_modules": ["lin0"], "scale": "inverse_density", "store_positions": True}),
    ("RandomMask 7", "MLP", RandomMaskConfig,
        {"density": 0.3, "target_modules": ["lin0", "lin1"], "structure": "random_columns"}),
    ("RandomMask 8", "EmbConv1D", RandomMaskConfig, {"density": 0.3, "target_modules": ["lin0"]}),
"""
PAIRS = """
    ("RandomMask Same", "rmbook", RandomMaskConfig,
        {"density": 0.3, "seed": 0, "target_modules": ["lin0"], "init_weights": False},
        {"density": 0.3, "seed": 1, "target_modules": ["lin0"], "init_weights": False}),
    ("RandomMask Same seed", "rmbook", RandomMaskConfig,
        {"density": 0.3, "target_modules": ["lin0"], "init_weights": False},
        {"density": 0.3, "target_modules": ["lin0"], "init_weights": False}),
    ("RandomMask Different", "rmbook", RandomMaskConfig,
        {"density": 0.3, "target_modules": ["lin0"], "init_weights": False},
        {"density": 0.5, "target_modules": ["lin1"], "init_weights": False}),
"""
TASK_CASES = """
    (RandomMaskConfig, {{"task_type": "{0}", "target_modules": None, "density": 0.1, "init_weights": False}}),
    (RandomMaskConfig, {{"task_type": "{0}", "target_modules": None, "ratio": 0.01, "init_weights": False,
        "store_positions": True}}),
"""
TASKS = {"decoder_models": "CAUSAL_LM", "encoder_decoder_models": "SEQ_2_SEQ_LM", "seq_classifier": "SEQ_CLS"}
TASKS["feature_extraction_models"] = "FEATURE_EXTRACTION"
CONFTEST = """
import collections, sys, types
try:
    import diffusers
except ImportError:  # peft's helpers ask whether a model is one of its class; none is
    sys.modules["diffusers"] = types.ModuleType("diffusers")
    sys.modules["diffusers"].StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
from rmbook import RandomMaskConfig
from . import testing_utils

class Known(collections.defaultdict):  # each model id counts as fetched before: their helper would go online otherwise
    __contains__ = lambda self, name: True

testing_utils._HUB_MODEL_ACCESSES = Known(int)
"""

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"vocab_size": 1024, "max_position_embeddings": 128}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 1024, "n_positions": 128}
LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
BART = {"d_model": 32, **LAYERS, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 1024}
T5 = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 1024}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "word_embed_proj_dim": 32}
MODELS = {  # name on the hub, without its owner: owner, class, sizes
    "tiny-random-OPTForCausalLM": ("peft", "OPTForCausalLM", {**OPT, "vocab_size": 1024, "dropout": 0.0}),
    "tiny-random-GPT2LMHeadModel": ("peft", "GPT2LMHeadModel", {**GPT, "bos_token_id": 1, "eos_token_id": 2}),
    "tiny-random-gpt2": ("hf", "GPT2LMHeadModel", {**GPT, "bos_token_id": 1, "eos_token_id": 2}),
    "tiny-random-GPTJForCausalLM": ("peft", "GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    "tiny-random-LlamaForCausalLM": ("trl", "LlamaForCausalLM", {**SIZES, **TOKENS}),
    "tiny-LlamaForSequenceClassification-3.2": ("trl", "LlamaForSequenceClassification", {**SIZES, **TOKENS}),
    "tiny-dummy-qwen2": ("peft", "Qwen2ForCausalLM", {**SIZES, **TOKENS, "num_key_value_heads": 2}),
    "tiny-random-MistralForCausalLM": ("hf", "MistralForCausalLM", {**SIZES, **TOKENS, "num_key_value_heads": 2}),
    "tiny-random-Gemma3ForCausalLM": ("hf", "Gemma3ForCausalLM", {**SIZES, **TOKENS, "num_key_value_heads": 2}),
    "tiny-random-T5ForConditionalGeneration-calibrated": (
        "peft", "T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0},
    ),
    "tiny-random-BartForConditionalGeneration": ("peft", "BartForConditionalGeneration", BART),
    "tiny-random-BertModel": ("peft", "BertModel", SIZES),
    "tiny-random-RobertaModel": ("peft", "RobertaModel", SIZES),
    "tiny-random-DebertaModel": ("peft", "DebertaModel", SIZES),
    "tiny-random-DebertaV2Model": ("peft", "DebertaV2Model", SIZES),
    "tiny-random-BertForSequenceClassification": ("peft", "BertForSequenceClassification", SIZES),
    "tiny-random-RobertaForSequenceClassification": ("peft", "RobertaForSequenceClassification", SIZES),
}  # fmt: skip


class SourceMissing(Exception):
    """peft's source distribution is not here, and pip finds none."""


def default_folder() -> Path:
    """Return where the distribution and the models are kept."""
    return cache_folder() / "peft_suite"


def unpack_tests(folder: Path) -> Path:
    """Unpack the tests of peft's source distribution in a folder and put the cases in; return where."""
    version = importlib.metadata.version("peft")
    archive, where = folder / f"peft-{version}.tar.gz", folder / f"peft-{version}"
    if not archive.exists():
        options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--retries", "1", "--timeout", "10"]
        pip = [sys.executable, "-m", "pip", "-q", "download", *options, "--dest", str(folder), f"peft=={version}"]
        if subprocess.run(pip, capture_output=True).returncode:
            raise SourceMissing(f"{archive} is not there, and pip cannot download it.")
    shutil.rmtree(where, ignore_errors=True)
    with tarfile.open(archive) as tar:  # only the tests: the installed peft is what they import
        members = [member for member in tar if member.name.startswith(f"peft-{version}/tests/")]
        tar.extractall(folder, members, filter="data")
    (where / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    (where / "tests" / "__init__.py").touch()
    (where / "tests" / "conftest.py").write_text(CONFTEST)
    put_in(where, "custom_models", "TEST_CASES = [\n", CASES)
    put_in(where, "custom_models", "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [\n", PAIRS)
    put_in(where, "config", "ALL_CONFIG_CLASSES = (\n", "    (RandomMaskConfig, {}),\n")
    for name, task in TASKS.items():
        put_in(where, name, "ALL_CONFIGS = [\n", TASK_CASES.format(task))
    return where


def put_in(where: Path, name: str, marker: str, cases: str) -> None:
    """Put cases at the head of a table of one of peft's test files."""
    path = where / "tests" / f"test_{name}.py"
    text = path.read_text()
    if f"\n{marker}" not in text:
        raise SystemExit(f"{path} has no {marker.strip()!r}: this version of peft names its tables otherwise")
    cases = f"\nfrom rmbook import RandomMaskConfig\n{marker}{cases}"
    path.write_text(text.replace(f"\n{marker}", cases, 1))


def make_models(hub: Path, names=tuple(MODELS)) -> None:
    """Put tiny random models into a hub cache, under the names that peft's tests ask for."""
    import torch
    import transformers

    torch.manual_seed(0)
    for name in names:
        owner, kind, sizes = MODELS[name]
        folder, commit = hub / f"models--{owner}-internal-testing--{name}", "0" * 40
        if not folder.exists():
            cls = getattr(transformers, kind)
            model = cls(cls.config_class(**sizes))
            model.save_pretrained(folder / "snapshots" / commit)
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text(commit)


def main() -> int:
    """Prepare the folder and run pytest in it."""
    folder = default_folder().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        where = unpack_tests(folder)
    except SourceMissing as error:
        raise SystemExit(str(error)) from None
    make_models(folder / "hf" / "hub")
    arguments = sys.argv[1:] or [*(f"tests/test_{name}.py" for name in FILES), "-k", "RandomMask and not fsdp_wrapped"]
    arguments += [f"--deselect={test}" for test in DOES_NOT_APPLY]
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *arguments], cwd=where, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())

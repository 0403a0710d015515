"""What the chapters run where: the rules alone, and the looking around with every outside part replaced."""

import http.server
import math
import re
import socket
import threading

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from rmbook.errors import TaskError
from rmbook.evidence.tiers import (
    TABLE,
    Plan,
    choose_tier,
    find_source,
    hub_answers,
    hub_has_examples,
    make_plan,
    model_folder,
)
from rmbook.models.files import KNOWN_MODELS, ModelError
from rmbook.models.language import load_language_model
from rmbook.offline.made import tiny_checkpoint
from rmbook.offline.sentences import write_generated_examples
from rmbook.runs.config import RunConfig
from rmbook.tasks.catalog import load_examples

# ---------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("family", "memory", "name", "model"),
    [
        ("opt", None, "laptop", "tiny"),
        ("opt", 8.0, "laptop", "tiny"),
        ("opt", 12.0, "one GPU", "facebook/opt-125m"),
        ("opt", 23.9, "one GPU", "facebook/opt-125m"),
        ("opt", 24.0, "one GPU", "facebook/opt-1.3b"),
        ("opt", 85.0, "big GPU", "facebook/opt-13b"),
        ("llama", None, "laptop", "tiny"),
        ("llama", 16.0, "one GPU", "HuggingFaceTB/SmolLM2-135M"),
        ("llama", 141.0, "big GPU", "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_the_tier_follows_from_the_memory(family, memory, name, model):
    tier = choose_tier(family, memory)
    assert (tier.name, tier.model) == (name, model)
    assert ("not yet measured" in tier.time) == (name != "laptop")
    for rates in tier.rates.values():
        for rate in rates:  # every cell of the chapter's sweep is a valid run
            RunConfig(model=model, task="SST-2", learning_rate=rate, **tier.mask, **tier.settings)
    assert tier.rate in tier.rates["mask"] and {"lora", "mask"} <= set(tier.rates)


def test_full_finetuning_is_left_out_where_its_memory_is_not_enough():
    for family, ladder in TABLE["ladders"].items():
        for least, model, least_for_full in ladder:
            assert least <= least_for_full and model in KNOWN_MODELS or model.endswith("1.7B")
            assert ("full" in choose_tier(family, least).rates) == (least >= least_for_full)
            if math.isfinite(least_for_full) and least_for_full < 80:
                assert "full" in choose_tier(family, least_for_full).rates


def test_a_model_of_the_readers_choice_keeps_the_sizes_of_the_hardware():
    own, asked = choose_tier("opt", None), choose_tier("opt", None, "facebook/opt-125m")
    assert asked.model == "facebook/opt-125m" and asked.settings == own.settings
    assert asked.mask == {"ratio": 0.001} and "not yet measured" in asked.time
    assert choose_tier("opt", None, "tiny") == own


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="family must be one of opt, llama, got 'gpt2'"):
        choose_tier("gpt2", None)


# ------------------------------------------------------------------------------------------------------- the network


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(403)

    def log_message(self, *arguments):
        pass


def test_any_answer_of_the_hub_counts():
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert hub_answers(f"http://127.0.0.1:{server.server_port}", seconds=10)
        server.shutdown()


def test_a_server_that_says_nothing_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not hub_answers(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)
    assert not hub_answers("http://127.0.0.1:1", seconds=5)  # nobody listens
    assert not hub_answers("no address", seconds=5)


def test_the_environment_decides_before_the_network(monkeypatch, tmp_path):
    monkeypatch.delenv("RMBOOK_DATA_DIR", raising=False)
    monkeypatch.delenv("RMBOOK_RECORDS", raising=False)
    assert find_source(lambda: True) == ("hub", None)
    assert find_source(lambda: False) == ("generated", None)

    def asked():
        pytest.fail("the network was asked")

    monkeypatch.setenv("RMBOOK_DATA_DIR", str(tmp_path))
    with pytest.raises(TaskError, match="SST-2 has no validation file"):
        find_source(asked)
    write_generated_examples(tmp_path, 4, 4)
    assert find_source(asked) == ("original files", str(tmp_path))
    monkeypatch.setenv("RMBOOK_RECORDS", "generated")
    assert find_source(asked) == ("generated", None)


def test_without_a_hub_nothing_is_loaded_from_it(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # which was read from the environment long ago
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    assert not hub_has_examples(lambda: False, lambda *a: pytest.fail("the hub was asked for examples"))


# ---------------------------------------------------------------------------------------------------------- the plan


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """An environment that asks for nothing, and an empty cache."""
    for name in ("RMBOOK_MODEL", "RMBOOK_DATA_DIR", "RMBOOK_RECORDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RMBOOK_CACHE", str(tmp_path / "cache"))
    return monkeypatch


LAPTOP = {"memory": lambda: None, "has_examples": lambda: False}  # and no network


@pytest.mark.parametrize(("family", "kind"), [("opt", "OPT"), ("llama", "Llama")])
def test_offline_on_a_laptop_everything_is_made_here_and_said(family, kind, machine):
    plan = make_plan(family, **LAPTOP)
    said = plan.sentence()
    for part in ("tier: laptop", f"a tiny {kind} made by rmbook", "generated by rmbook", "400 to train on, 200 dev"):
        assert part in said
    assert "out of reach" in said and plan.as_printed and plan.data_dir not in said and plan.model not in said
    assert type(plan.load()[0]).__name__ == f"{kind}ForCausalLM"
    config = RunConfig(**plan.settings, **plan.tier.mask, learning_rate=plan.tier.rate)
    size = config.train_size + config.dev_size
    assert len(load_examples("SST-2", "train", plan.data_dir)) == size
    assert len(load_examples("SST-2", "validation", plan.data_dir)) == config.test_size


def test_real_examples_are_not_those_of_the_page(machine, tmp_path):
    machine.setenv("RMBOOK_DATA_DIR", str(write_generated_examples(tmp_path / "real", 8, 8)))
    plan = make_plan("opt", **LAPTOP)
    assert not plan.as_printed and f"original files in {tmp_path / 'real'}" in plan.sentence() and not plan.note


def test_a_model_that_is_out_of_reach_is_replaced_only_if_nobody_asked_for_it(machine):
    def unreachable(name):
        raise ModelError(f"{name!r} is out of reach.")

    small_gpu = LAPTOP | {"memory": lambda: 16, "find": unreachable}
    plan = make_plan("opt", **small_gpu)
    assert plan.tier.name == "laptop" and plan.as_printed
    assert re.search("facebook/opt-125m cannot be had here, so the tiny model runs instead", plan.sentence())
    machine.setenv("RMBOOK_MODEL", "facebook/opt-350m")
    with pytest.raises(ModelError, match="facebook/opt-350m"):
        make_plan("opt", **small_gpu)


def test_a_local_model_is_taken_as_it_is(machine, tmp_path):
    folder = tiny_checkpoint("opt", pretrain_steps=0)
    machine.setenv("RMBOOK_MODEL", str(folder))
    plan = make_plan("opt", **LAPTOP)
    assert plan.model == str(folder) and not plan.as_printed and f"model: {folder}" in plan.sentence()


def test_weights_in_the_old_format_are_converted_once(machine, tmp_path):
    """OPT has such on the hub. The same numbers come back, from the cache."""
    old = tmp_path / "old"
    model, tokenizer = load_language_model(tiny_checkpoint("opt", pretrain_steps=0))
    tokenizer.save_pretrained(old)
    model.config.save_pretrained(old)
    torch.save(model.state_dict(), old / "pytorch_model.bin")

    def on_the_hub(name, revision):
        raise ModelError(f"{name}: the weights are only in pytorch_model.bin.")

    folder = model_folder(str(old), on_the_hub)
    converted = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    for (name, ours), (_, theirs) in zip(converted.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert model_folder(str(old), on_the_hub, convert=lambda *a: pytest.fail("converted twice")) == folder


def test_a_plan_on_the_hub_has_no_folder_of_examples():
    plan = Plan(choose_tier("opt", 16), "opt", "facebook/opt-125m", "hub", None)
    assert "SST-2 from the Hugging Face hub; 1000 to train on, 500 dev, 1000 test; 5 epochs" in plan.sentence()
    assert plan.settings["data_dir"] is None and not plan.as_printed

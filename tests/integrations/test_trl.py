"""Random masks in trl's trainers; skipped where trl is not installed."""

import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_models import base_bits, config, layers, logits, same, shaken, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

trl = pytest.importorskip("trl")
SETTINGS = {"report_to": [], "use_cpu": True, "bf16": False, "learning_rate": 1e-2, "gradient_checkpointing": False}


def letters():
    vocabulary = {token: place for place, token in enumerate(["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz "])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **tokens)


def rows(**columns):
    from datasets import Dataset

    return Dataset.from_dict(columns)


def check_trained(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert any(layer.rmbook_values["default"].weight.any() for layer in layers(model).values())
    assert same(base_bits(model), base_bits(tiny()))
    return model.eval()


def test_sft_trainer(tmp_path):
    settings = trl.SFTConfig(str(tmp_path), **SETTINGS, max_steps=2, per_device_train_batch_size=2, max_length=16)
    data = rows(text=["hello world", "random masks", "a few weights", "are enough"])
    trainer = trl.SFTTrainer(tiny(), settings, train_dataset=data, processing_class=letters(), peft_config=config())
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(), tmp_path / "adapter")), logits(check_trained(trainer)))


def test_grpo_trainer_with_the_base_as_its_reference(tmp_path):
    sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4, "beta": 0.1}
    settings = trl.GRPOConfig(str(tmp_path), **SETTINGS, **sizes, max_steps=1, save_strategy="no")
    trainer = trl.GRPOTrainer(
        model=tiny(),
        reward_funcs=lambda completions, **_: [float(text.count("a")) + 0.1 * len(text) for text in completions],
        args=settings,
        train_dataset=rows(prompt=["abc", "hello", "mask", "tiny"]),
        processing_class=letters(),
        peft_config=config(),
    )
    trainer.train()
    check_trained(trainer)


def test_dpo_trainer_takes_a_trained_adapter_for_its_reference(tmp_path):
    model = shaken(get_peft_model(tiny(), config()))
    before = {name: layer.rmbook_values["default"].weight.detach().clone() for name, layer in layers(model).items()}
    sizes = {"per_device_train_batch_size": 4, "max_length": 16, "logging_steps": 1}
    trainer = trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(str(tmp_path), **SETTINGS, **sizes, max_steps=2, save_strategy="no"),
        train_dataset=rows(prompt=["abc", "hi"] * 2, chosen=["good", "yes"] * 2, rejected=["bad", "no"] * 2),
        processing_class=letters(),
    )
    trainer.train()
    reference = {name: layer.rmbook_values["ref"].weight for name, layer in layers(model).items()}
    assert same(reference, before)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy is the reference
    check_trained(trainer)

"""`Trainer.save_model`, checkpoints and resuming on shards; sharded_trainer.py has the cases."""

import sys
from pathlib import Path

import safetensors.torch
import sharded_trainer
import torch
from peft import PeftModel
from peft_models import logits
from sharded_trainer import masked, plain, trained
from transformers import AutoModelForCausalLM

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from sharded_cases import run_processes  # noqa: E402


def test_what_a_trainer_saves_from_shards_is_what_one_process_trains(tmp_path):
    run_processes(2, sharded_trainer.run, tmp_path)
    for name in sharded_trainer.CASES:
        one, folder = trained(name, tmp_path / name / "one", batch=4).model.eval(), tmp_path / name
        if "peft" in name:
            final, other = PeftModel.from_pretrained(plain(name), folder / "final"), masked(name)
        else:
            final, other = AutoModelForCausalLM.from_pretrained(folder / "final").eval(), plain(name)
        other.load_state_dict(safetensors.torch.load_file(folder / "accelerate" / "model.safetensors"), strict=False)
        assert torch.equal(logits(other), logits(final)), name
        limit, learned = 5e-3 if "bfloat16" in name else 1e-6, logits(one) - logits(plain(name))
        assert (logits(final) - logits(one)).abs().max() < limit < 0.05 < learned.abs().max(), name

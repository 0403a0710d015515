"""`transformers.Trainer` on processes whose base FSDP2 shards, with a random mask of rmbook or of peft.

accelerate refuses FSDP on CPUs: so its state is told by hand, after it was made, that this is FSDP. All that follows
is Trainer's and accelerate's own code.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from peft import get_peft_model
from peft_models import config, tiny
from test_peft_files import Rows
from transformers import Trainer, TrainingArguments

from rmbook import apply_random_mask


class ShardedTrainer(Trainer):
    kind = "FULL_STATE_DICT"

    def create_accelerator_and_postprocess(self):
        if "distributed_type" in PartialState._shared_state:  # of an earlier one in this process
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["OPTDecoderLayer"],
            state_dict_type=self.kind,
        )
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state = self.accelerator.state
        state.distributed_type, state.fsdp_plugin, self.is_fsdp_enabled = DistributedType.FSDP, plugin, True


def trained(model, folder, steps=4, resume=None, kind="FULL_STATE_DICT", **changed):
    settings = {"max_steps": steps, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "seed": 3}
    settings |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, **changed}
    settings |= {"ddp_backend": "gloo"} if dist.is_initialized() else {}
    cls = type("T", (ShardedTrainer,), {"kind": kind}) if dist.is_initialized() else Trainer
    trainer = cls(model, TrainingArguments(str(folder), **settings), train_dataset=Rows(), eval_dataset=Rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def environment():
    rank, world = (str(dist.get_rank()), str(dist.get_world_size()))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": world}


def masked(tool, **changed):
    model = tiny(**changed)
    if tool == "peft":
        return get_peft_model(model, config())
    apply_random_mask(model, ["q_proj", "v_proj"], density=0.05)
    return model

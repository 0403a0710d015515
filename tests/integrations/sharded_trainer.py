"""`transformers.Trainer` on processes whose base FSDP2 shards, with a random mask of rmbook or of peft.

accelerate refuses FSDP on CPUs: so its state is told by hand, after it was made, that this is FSDP. All that follows
is Trainer's and accelerate's own code.
"""

import os

import torch
import torch.distributed as dist
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from peft import get_peft_model
from peft_models import IDS, TARGETS, config, same, shaken, tiny
from test_peft_files import Rows
from transformers import Trainer, TrainingArguments

from rmbook import apply_random_mask
from rmbook.engine.shards import whole

SHARDS, FIRST = {"state_dict_type": "SHARDED_STATE_DICT"}, {"cpu_ram_efficient_loading": True}
CASES = {  # what a name tells of; the plugin's settings
    "rmbook, files of shards": SHARDS,
    "peft, bfloat16": {},
    "rmbook, bfloat16, tied, loaded by the first process": FIRST,
    "peft, tied, loaded by the first process, files of shards": SHARDS | FIRST,
}


class ShardedTrainer(Trainer):
    """A Trainer whose accelerator has the FSDP2 plugin with the settings in `how`."""

    def create_accelerator_and_postprocess(self):
        if "distributed_type" in PartialState._shared_state:  # of an earlier one in this process
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["OPTDecoderLayer"],
            **{"state_dict_type": "FULL_STATE_DICT", **self.how},
        )
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state = self.accelerator.state
        state.distributed_type, state.fsdp_plugin, self.is_fsdp_enabled = DistributedType.FSDP, plugin, True


def plain(name):
    """The base model of a case."""
    return tiny(torch.bfloat16 if "bfloat16" in name else torch.float32, tie_word_embeddings="tied" in name)


def masked(name):
    """The base model with a mask, whose values are not zero."""
    model = plain(name)
    if "first process" in name and dist.is_initialized() and dist.get_rank():
        [parameter.data.fill_(7) for parameter in model.parameters()]  # transformers loads nothing there
    if "peft" in name:
        return shaken(get_peft_model(model, config()))
    masking = apply_random_mask(model, TARGETS, density=0.05)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        [values.copy_(0.1 * torch.randn(values.shape, generator=generator)) for values in masking.parameters()]
    return model


def trained(name, folder, resume=None, batch=2):
    """Train for four steps, with checkpoints after two and four."""
    settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": batch, "learning_rate": 1e-2}
    settings |= {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    kind = Trainer
    if dist.is_initialized():
        kind, settings["ddp_backend"] = type("Sharded", (ShardedTrainer,), {"how": CASES[name]}), "gloo"
    trainer = kind(masked(name), TrainingArguments(str(folder), **settings), train_dataset=Rows())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return {name: whole(tensor).clone() for name, tensor in trainer.model.state_dict().items()}


def run(folder):
    """One process's part: every case, again from its checkpoint, and from accelerate's."""
    rank, world = (str(dist.get_rank()), str(dist.get_world_size()))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": world}
    for name in CASES:
        check_case(name, folder / name)


def check_case(name, folder):
    trainer = trained(name, folder / "whole")
    accelerator, expected = trainer.accelerator, weights(trainer)
    again = trained(name, folder / "again", str(folder / "whole" / "checkpoint-2"))
    assert same(weights(again), expected), name
    accelerator.save_state(folder / "state")
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    trainer.model(input_ids=IDS, labels=IDS)  # a forward pass without a backward pass
    accelerator.load_state(folder / "state")
    assert same(weights(trainer), expected), name
    accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")  # save_model writes nothing otherwise
    trainer.save_model(folder / "final")
    accelerator.save_model(trainer.model, folder / "accelerate")
    if "peft" in name:
        try:
            trainer.model.merge_adapter()
        except RuntimeError as error:
            assert "merge it in one process" in str(error), error
        else:
            raise AssertionError("shards were merged")

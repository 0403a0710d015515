"""`rmbook train` on processes whose base FSDP2 shards, as `accelerate launch` with an FSDP configuration starts it.

accelerate refuses FSDP on CPUs: so its state is told by hand, after it was made, that this is FSDP. All that follows
is accelerate's own code.
"""

import os

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import PartialState

from rmbook.errors import ConfigError
from rmbook.runs.config import RunConfig
from rmbook.runs.run import resume_run, start_run
from rmbook.training.accelerator import new_accelerator
from rmbook.training.checkpoint import TrainingInterrupted


def sharded_accelerator(mixed_precision="no", version=2, **how):
    """What `new_accelerator` makes on GPUs from the environment of `accelerate launch`."""
    if "distributed_type" in PartialState._shared_state:  # of an earlier run in this process
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    accelerator = new_accelerator(mixed_precision)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["OPTDecoderLayer"],
        **how,
    )
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    if mixed_precision == "bf16":
        plugin.set_mixed_precision("bf16")
    return accelerator


def run(settings, folder, how, interrupt=False):
    """One process's part of a run; with `interrupt`, it stops after the first epoch and goes on."""
    rank, world = (str(torch.distributed.get_rank()), str(torch.distributed.get_world_size()))
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": world}
    config, lora = RunConfig(**settings), RunConfig(**settings | {"method": "lora", "ratio": None})

    def given():
        return {"progress": False, "accelerator": sharded_accelerator(config.mixed_precision, **how)}

    try:
        start_run(config, folder, after_epoch=lambda row: interrupt, **given())
    except TrainingInterrupted:
        resume_run(folder, **given())
    try:
        start_run(lora, f"{folder}-lora", **given())
    except ConfigError as error:
        assert "FSDP is supported for random_masking" in str(error), error

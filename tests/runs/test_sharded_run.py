"""`rmbook train` on a base that FSDP2 shards; sharded_run.py says what accelerate is told, and why."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sharded_run
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from tiny_runs import rows
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers.models.llama import modeling_llama

from rmbook.adapters.adapter_file import read_adapter
from rmbook.errors import ConfigError
from rmbook.runs.config import RunConfig
from rmbook.runs.run import start_run
from rmbook.training.accelerator import refuse_fsdp1

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from sharded_cases import run_processes  # noqa: E402

OFFLOAD = {"cpu_offload": CPUOffloadPolicy(pin_memory=False)}  # True would pin memory, which takes a GPU
SLOW = pytest.mark.skipif("RMBOOK_SHARDED" not in os.environ, reason="a minute: set RMBOOK_SHARDED=1")


@pytest.mark.parametrize("how", [{}, pytest.param(OFFLOAD, marks=SLOW)], ids=["plain", "offload"])
def test_a_run_on_shards_equals_a_run_in_one_process(settings, how, tmp_path):
    """It stops and goes on; 5 examples end in a batch of one, of which the second process has nothing."""
    small = {"train_size": 5, "dev_size": 3, "test_size": 3, "batch_size": 4, "micro_batch_size": 1}
    settings |= small | {"dropout": 0.0, "dtype": "float64"}
    start_run(RunConfig(**settings), tmp_path / "one", progress=False)
    run_processes(2, sharded_run.run, settings, tmp_path / "two", how, True)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert two["processes"] == 2 and one["test"] == two["test"]
    for got, wanted in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert got | {"seconds": 0} == pytest.approx(wanted | {"seconds": 0}, rel=1e-9)
    values = [read_adapter(tmp_path / name / "adapter.safetensors").values for name in ("one", "two")]
    for name, value in values[0].items():
        assert (values[1][name] - value).abs().max() < 1e-9


def test_fsdp1_is_refused_by_name():
    with pytest.raises(ConfigError, match="FSDP1.*fsdp_version: 2"):
        refuse_fsdp1(SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False))
    refuse_fsdp1(SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=True))


def test_accelerate_reads_the_configuration_of_the_chapter_on_llama_as_fsdp2(monkeypatch, tmp_path):
    """What `accelerate launch` would put into the environment makes the plugin with which runs on shards are tested."""
    cells = json.loads((Path(__file__).parents[2] / "book/fine_tuning_llama.ipynb").read_text())["cells"]
    (printed,) = re.findall(r"```yaml\n(.+?)```", "\n".join("".join(cell["source"]) for cell in cells), re.DOTALL)
    (tmp_path / "fsdp.yaml").write_text(printed)
    command = ["--config_file", str(tmp_path / "fsdp.yaml"), "-m", "rmbook", "train"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_USE_FSDP"] == "true" and arguments.num_processes == 4
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and not plugin.cpu_ram_efficient_loading
    assert all(hasattr(modeling_llama, name) for name in plugin.transformer_cls_names_to_wrap)

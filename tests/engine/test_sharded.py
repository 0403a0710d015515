"""Bases that FSDP2 shards, on gloo processes of this machine; sharded_cases.py has the table of settings."""

import pytest
from sharded_cases import check_all, run_processes


@pytest.mark.parametrize("world", [2, 3, 4])
def test_training_on_shards_equals_training_in_one_process(world, tmp_path):
    run_processes(world, check_all, tmp_path)

"""peft's own generic tests of tuners on one tiny model: a quick part of what peft_suite.py runs."""

import contextlib
import importlib.util
import sys
from unittest import mock

import pytest
import torch
import transformers
from peft_suite import SourceMissing, default_folder, make_models, unpack_tests

from rmbook import RandomMaskConfig

MODEL = "tiny-random-OPTForCausalLM"
CASES = """
    model_attr adapter_name prepare_for_training load_model_low_cpu_mem_usage save_pretrained
    save_pretrained_selected_adapters save_pretrained_adapter_name_substring from_pretrained_config_construction
    load_multiple_adapters merge_layers_fp16 merge_layers_nan merge_layers merge_layers_multi merge_layers_is_idempotent
    generate generate_half_prec training inference_safetensors training_layer_indexing
    training_gradient_checkpointing delete_adapter delete_inactive_adapter delete_unknown_adapter_raises unload_adapter
    disable_adapter get_base_model_state_dict
"""


@pytest.fixture(scope="module")
def peft_tester():
    """peft's class of generic tests, from its source distribution; without the hub."""
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        where = unpack_tests(folder)
    except SourceMissing as error:
        pytest.skip(str(error))
    make_models(folder / "hf" / "hub", [MODEL])
    spec = importlib.util.spec_from_file_location("peft_tests", where / "tests" / "__init__.py")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, peft_tests=importlib.util.module_from_spec(spec)))
        stack.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hf" / "hub")))
        stack.enter_context(mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True))
        importlib.import_module("peft_tests.conftest")
        tester = importlib.import_module("peft_tests.testing_common").PeftCommonTester()
        tester.transformers_class = transformers.AutoModelForCausalLM
        tokens = torch.tensor([[1, 1, 1], [1, 2, 1]])
        tester.prepare_inputs_for_testing = lambda: {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        yield tester


@pytest.mark.parametrize("case", CASES.split())
def test_case_of_peft(case, peft_tester):
    config = {"task_type": "CAUSAL_LM", "target_modules": None, "density": 0.1, "init_weights": False}
    getattr(peft_tester, f"_test_{case}")(f"peft-internal-testing/{MODEL}", RandomMaskConfig, config)

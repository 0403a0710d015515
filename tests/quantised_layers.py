"""Quantised linear layers of bitsandbytes and torchao, for tests that skip where these are not installed."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

KINDS = ["nf4", "fp4", "nf4 double", "int8", "torchao int8", "torchao int4"]


def needs(kind):
    library = "torchao" if kind.startswith("torchao") else "bitsandbytes"
    return pytest.param(kind, marks=pytest.mark.skipif(not find_spec(library), reason=f"{library} is not installed"))


every_kind = pytest.mark.parametrize("kind", list(map(needs, KINDS)))


def quantise(linear, kind):
    """What the libraries make of a linear layer."""
    if kind.startswith("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        int4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(8))
        holder = nn.Sequential(linear)
        quantize_(holder, int4 if "int4" in kind else Int8WeightOnlyConfig())
        return holder[0].requires_grad_(False)
    import bitsandbytes

    sizes, bias = (linear.in_features, linear.out_features), linear.bias is not None
    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(*sizes, bias, has_fp16_weights=False)
    else:
        kinds = {"quant_type": kind[:3], "compress_statistics": "double" in kind}
        layer = bitsandbytes.nn.Linear4bit(*sizes, bias, **kinds)
    layer.load_state_dict({name: value.clone() for name, value in linear.state_dict().items()})
    return layer.to("cpu")


def near(got, wanted, limit):
    return (got.double() - wanted.double()).norm() <= limit * wanted.double().norm()

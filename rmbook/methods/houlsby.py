"""Houlsby adapters: a bottleneck with its own residual connection after attention and after the feed-forward part.

Houlsby et al. (2019), "Parameter-Efficient Transfer Learning for NLP", section 2.1: y + U relu(D y). They also train
the layer norms. The number of parameters in the paper's tables, 36 d in each of the L blocks, follows from two
bottlenecks of width 8 without biases (4 * 8 d) and the scale and shift of the block's two layer norms (4 d).
"""

import torch
import torch.nn.functional as F
from torch import nn

from rmbook.methods.architectures import block_layers, find_architecture
from rmbook.methods.settings import AdapterSettings


class Bottleneck(nn.Module):
    """U relu(D y + a) + b with D of shape (width, features), U of shape (features, width), U = 0 at the start.

    Attributes:
        down, up: linear layers; float32, or float64 for a float64 model, so that small updates are not rounded away.
    """

    def __init__(self, features: int, width: int, bias: bool, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.down = nn.Linear(features, width, bias=bias, dtype=dtype, device=device)
        self.up = nn.Linear(width, features, bias=bias, dtype=dtype, device=device)
        nn.init.normal_(self.down.weight, std=0.01)  # as Houlsby et al.
        nn.init.zeros_(self.up.weight)  # theirs is close to zero; exactly zero leaves the model's output as it is
        if bias:
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """(..., features) to (..., features), in the input's dtype."""
        return self.up(F.relu(self.down(y.to(self.down.weight.dtype)))).to(y.dtype)


def add_adapters(
    model: nn.Module,
    *,
    seed: int = 0,
    width: int = AdapterSettings.width,
    bias: bool = AdapterSettings.bias,
    train_norms: bool = AdapterSettings.train_norms,
) -> None:
    """Freeze `model` and add trainable bottlenecks to all its blocks, in place; the output does not change yet.

    A bottleneck becomes the submodule `houlsby` of the output projection that it follows (before dropout, which
    OPT applies to the sum). Layer norms are trained in the model's dtype: load the model in float32 for that.

    Args:
        model: a language model whose architecture is in `rmbook.methods.architectures`.
        seed: of the down-projections.
        width: features of the bottleneck.
        bias: whether the bottlenecks have biases; the paper's count is without.
        train_norms: whether the blocks' layer norms are trained too; the paper's count is with.

    Raises:
        TargetError: the architecture is unknown.
        ConfigError: a setting is of another type or out of range.
    """
    AdapterSettings(width, bias, train_norms)
    architecture = find_architecture(model)
    layers = block_layers(model, architecture.o_proj + architecture.mlp_output)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers.values():
            weight = layer.weight
            features = layer.out_features if isinstance(layer, nn.Linear) else weight.shape[1]  # GPT-2: (in, out)
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            on_cpu = Bottleneck(features, width, bias, dtype, "meta" if weight.is_meta else "cpu")
            layer.houlsby = on_cpu.to(weight.device)  # drawn on the CPU: the same numbers on every device
            layer._houlsby_hook = layer.register_forward_hook(_add)
    if train_norms:
        for norm in block_layers(model, architecture.norms).values():
            norm.requires_grad_(True)


def _add(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output + layer.houlsby(output)


def remove_adapters(model: nn.Module) -> None:
    """Take the bottlenecks off again."""
    for layer in list(model.modules()):
        if hasattr(layer, "houlsby"):
            layer._houlsby_hook.remove()
            del layer.houlsby, layer._houlsby_hook

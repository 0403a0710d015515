"""The methods that `benchmarks/engine.py` compares, each as something that makes one training step."""

import copy
import tempfile
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from peft import ShiraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig, OPTConfig

from rmbook.adapters.adapter_file import save_adapter
from rmbook.engine.masking import apply_random_mask
from rmbook.engine.product_spops import check_spops
from rmbook.engine.targets import find_targets
from rmbook.integrations.peft_config import RandomMaskConfig
from rmbook.methods.apply import full_finetuning, lora

SHAPES = {
    "opt-125m": OPTConfig(),  # transformers' defaults are this model
    "opt-125m-4-layers": OPTConfig(num_hidden_layers=4, vocab_size=1024),  # or the head would take half of the step
    "opt-1.3b": OPTConfig(hidden_size=2048, num_hidden_layers=24, ffn_dim=8192, num_attention_heads=32),
    "opt-13b": OPTConfig(hidden_size=5120, num_hidden_layers=40, ffn_dim=20480, num_attention_heads=40),
    "llama-2-7b": LlamaConfig(),
    "vit-b16": CLIPVisionConfig(patch_size=16),
}
TARGETS = {"opt": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"], "clip_vision_model": ["fc1", "fc2"]}


class Method:
    """A model and how to make one training step with it."""

    def __init__(self, model: nn.Module, loss):
        self.model, self.loss = model, loss
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in parameters)
        self.on_gpu = next(model.parameters()).is_cuda  # there, an optimiser must be told that it may be captured
        settings = {"lr": 1e-5, "weight_decay": 0.0, "fused": True, "capturable": self.on_gpu}
        self.optimizer = torch.optim.AdamW(parameters, **settings) if parameters else None

    def step(self):
        """Forward, backward, update."""
        if self.optimizer:
            self.optimizer.zero_grad()
        self.loss(self.model).backward()
        if self.optimizer:
            self.optimizer.step()

    def captured(self, pool):
        """The same step as a CUDA graph: the GPU's work without the host's. None if a step waits for the GPU."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # whatever is only done in the first steps must not be captured
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                self.step()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay

    def adapter_bytes(self) -> int:
        """Size of the file that one would keep: rmbook's or peft's adapter, else all that is trained."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapter.safetensors"
            if masking := getattr(self.model, "random_mask", None):
                save_adapter(masking, path)
            elif hasattr(self.model, "peft_config"):
                safetensors.torch.save_file(get_peft_model_state_dict(self.model, adapter_name="default"), path)
            else:
                trained = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
                safetensors.torch.save_file(trained, path)
            return path.stat().st_size

    def saved_bytes(self) -> int:
        """Bytes that the forward pass keeps for the backward pass: each storage once, parameters not counted."""
        parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept = {}

        def pack(tensor):
            sparse = tensor.layout == torch.sparse_coo
            for part in (tensor._indices(), tensor._values()) if sparse else (tensor,):
                storage = part.untyped_storage()
                if storage.data_ptr() not in parameters:
                    kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output that is saved itself would keep its own graph alive for ever

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(self.model)
        del loss
        return sum(kept.values())


class NaiveMask(nn.Module):
    """What a first attempt looks like: y = x (W + M * D)^T with a dense D, its gradient multiplied by M."""

    def __init__(self, linear: nn.Linear, density: float):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", torch.rand_like(linear.weight, dtype=torch.float32) < density)
        self.delta = nn.Parameter(torch.zeros_like(linear.weight))

    def forward(self, input):
        """y = x (W + M * D)^T + b."""
        return F.linear(input, self.weight + self.mask * self.delta, self.bias)


def shira(model: nn.Module, targets: list[str], density: float, width: int) -> nn.Module:
    """The nearest SHiRA of peft: r (in + out) entries a layer, so at least 2 width."""
    rank = max(1, round(density * width / 2))
    return inject_adapter_in_model(ShiraConfig(r=rank, target_modules=targets), model.requires_grad_(False))


def peft_mask(model: nn.Module, targets: list[str], density: float) -> nn.Module:
    """The mask of `apply_random_mask` as a method of peft."""
    config = RandomMaskConfig(density=density, target_modules=targets)
    return inject_adapter_in_model(config, model.requires_grad_(False))


def _naive(model: nn.Module, targets: list[str], density: float) -> nn.Module:
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] in targets and isinstance(module, nn.Linear):
            model.set_submodule(name, NaiveMask(module, density))
    return model


def _random_mask(model: nn.Module, targets: list[str], density: float, backend: str = "auto") -> nn.Module:
    for layer in find_targets(model, targets).values():
        layer.weight = nn.Parameter(layer.weight.detach().clone())  # W + S is its own, also where weights are shared
    model.random_mask = apply_random_mask(model, targets, density=density, backend=backend)
    return model


def _build(base, loss, targets, densities, width, only, alone=False) -> dict[str, Method]:
    makers = {"frozen": lambda model: model.requires_grad_(False)}
    for density in densities:
        makers[f"mask {density:g}"] = lambda model, density=density: _random_mask(model, targets, density)
    if spops_version():
        for density in densities:
            makers[f"spops mask {density:g}"] = lambda model, p=density: _random_mask(model, targets, p, "spops")
    makers["lora r8"] = lambda model: lora(model, targets)
    for density in densities:
        if density >= 2 / width:  # SHiRA of rank 1 trains this share
            makers[f"shira {density:g}"] = lambda model, density=density: shira(model, targets, density, width)
    for density in densities:
        makers[f"peft mask {density:g}"] = lambda model, density=density: peft_mask(model, targets, density)
    makers[f"naive mask {densities[0]:g}"] = lambda model: _naive(model, targets, densities[0])
    makers["full"] = full_finetuning
    wanted = [name for name in makers if only is None or name in only or (name == "frozen" and not alone)]
    return {name: Method(makers[name](base(own=name == "full")), loss) for name in wanted}


def spops_version() -> str | None:
    """Version of IST-DASLab's spops, if it is installed."""
    try:
        check_spops("cuda" if torch.cuda.is_available() else "cpu")
    except ImportError:
        return None
    return version("spops")


def layer_methods(width: int, density: float, tokens: int, dtype, device, only=None) -> dict[str, Method]:
    """One linear layer in a `nn.Sequential`, with the gradient of its input."""
    base = nn.Sequential()
    base.add_module("linear", nn.Linear(width, width, dtype=dtype, device=device))
    input = torch.randn(tokens, width, dtype=dtype, device=device, requires_grad=True)
    direction = torch.randn(tokens, width, dtype=dtype, device=device)

    def loss(model):
        input.grad = None
        return (model(input) * direction).sum()

    return _build(lambda own: copy.deepcopy(base), loss, ["linear"], [density], width, only)


def model_methods(shape, densities, batch, length, dtype, device, only=None, alone=False) -> dict[str, Method]:
    """A whole model with random weights, a copy for each method; if `alone`, the one method in `only`, uncopied."""
    config = SHAPES[shape]
    config._attn_implementation = "sdpa"
    vision = isinstance(config, CLIPVisionConfig)
    with torch.device(device):
        model = (AutoModel if vision else AutoModelForCausalLM).from_config(config, dtype=dtype)
        if vision:
            inputs = {"pixel_values": torch.randn(batch, 3, config.image_size, config.image_size, dtype=dtype)}
        else:
            tokens = torch.randint(3, config.vocab_size, (batch, length))
            inputs = {"input_ids": tokens, "labels": tokens}
    model.config.use_cache = False
    model.train()

    def loss(model):
        if vision:
            return model(**inputs).pooler_output.float().square().mean()
        # The embedding is frozen, so nothing before the first target would get a gradient: the limit still
        # propagates to the embedding's output, as it must for a target in the first layer.
        embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        return model(inputs_embeds=embedded, labels=inputs["labels"]).loss

    def base(own):
        # On a GPU, frozen weights are shared by all methods, or a large model would not fit. On a CPU that would give
        # a method the cache as another one left it.
        shared = {} if own or device == "cpu" else {id(parameter): parameter for parameter in model.parameters()}
        return model if alone else copy.deepcopy(model, shared)

    return _build(base, loss, TARGETS[config.model_type], densities, config.hidden_size, only, alone)

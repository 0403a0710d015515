"""One linear layer on a quantised base, in the processor time of one thread: masks beside peft's LoRA and SHiRA.

    python benchmarks/quantised.py [--kinds nf4 int8 torchao] [--width 2048] [--tokens 512] [--rounds 12] [--write]

A step is a forward pass and a backward pass with the gradient of the input. All methods take turns; a figure is the
median over rounds of the ratio to LoRA of rank 8 on the same base in the same round. `kept_bytes` are what a
forward pass keeps for its backward pass, beside the quantised base. `peak_bytes` are what a step needs at its peak
beside the base, the adapter and the input: a dequantised copy of the weight, gradients and buffers. LoRA is peft's,
which is QLoRA's layer on nf4. Needs Linux, and bitsandbytes (nf4, int8) or torchao.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import peft
import torch
from engine import resident_bytes
from recorded import write_result
from torch import nn

from rmbook import RandomMaskConfig, sample_mask
from rmbook.engine.dequantise import dequantise
from rmbook.engine.quantised import QuantisedLinear

DENSITIES = (1e-2, 1e-3, 1e-4)


def make_base(kind: str, width: int) -> nn.Module:
    """A quantised layer with random weights; the same ones each time."""
    torch.manual_seed(0)
    linear = nn.Linear(width, width)
    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        holder = nn.Sequential(linear)
        quantize_(holder, Int8WeightOnlyConfig())
        return holder[0].requires_grad_(False)
    import bitsandbytes

    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(width, width, has_fp16_weights=False)
    else:
        layer = bitsandbytes.nn.Linear4bit(width, width, compute_dtype=torch.float32, quant_type=kind)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").requires_grad_(False)


def library_of(kind: str) -> str:
    """What holds the weights of a kind of base: "plain" if they are not quantised."""
    return {"float32": "plain", "torchao": "torchao"}.get(kind, "bitsandbytes")


def library_versions(kinds: list[str]) -> dict[str, str]:
    """Versions of the libraries that quantised these kinds of bases."""
    return {name: importlib.metadata.version(name) for name in sorted({library_of(kind) for kind in kinds} - {"plain"})}


def make_methods(kind: str, width: int) -> dict[str, nn.Module]:
    """Layers by name; all on equal bases."""
    layers = {"base alone": make_base(kind, width)}
    for density in DENSITIES:
        mask = sample_mask((width, width), density, 0, "w")
        layers[f"mask {density:g}"] = QuantisedLinear.attach(make_base(kind, width), mask)
        nn.init.normal_(layers[f"mask {density:g}"].values, std=0.01)
    configs = {"mask 0.001, peft": RandomMaskConfig(density=1e-3, target_modules=["0"])}
    configs["LoRA r8"] = peft.LoraConfig(r=8, target_modules=["0"])
    if kind != "torchao":  # which peft refuses
        configs["SHiRA r1"] = peft.ShiraConfig(r=1, target_modules=["0"])
    for name, config in configs.items():
        layers[name] = peft.get_peft_model(nn.Sequential(make_base(kind, width)), config).base_model.model[0]
    return {name: layer.train() for name, layer in layers.items()}


def plain_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors of which a sparse or a quantised one is made."""
    if tensor.is_sparse:
        return [tensor._indices(), tensor._values()]
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in plain_parts(getattr(tensor, name))]
    return [tensor]


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass, without parameters and what they share memory with."""
    known, found = {part.untyped_storage().data_ptr() for p in (x, *layer.parameters()) for part in plain_parts(p)}, {}

    def note(tensor):
        for storage in (part.untyped_storage() for part in plain_parts(tensor)):
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = layer(x)
        return sum(found.values()) + 0 * output.numel()


def peak_bytes(kind: str, width: int, tokens: int) -> dict[str, int]:
    """Bytes that a step of each method adds at its peak to what lives between steps, measured in another process."""
    command = [sys.executable, __file__, "--peak", "--kinds", kind, "--width", str(width), "--tokens", str(tokens)]
    # What is freed goes back to the system at once, so that the process is as large as what it uses.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def print_peaks(kind: str, width: int, tokens: int) -> None:
    """Print what `peak_bytes` reads."""
    x, gradient, found = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width), {}
    for name, layer in make_methods(kind, width).items():
        for number in range(3):
            x.grad = None
            layer.zero_grad()
            if number == 2:  # the others have made what stays, and the libraries' workspaces
                before = resident_bytes("VmRSS")
                Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            layer(x).backward(gradient)
        found[name] = resident_bytes("VmHWM") - before
    print(json.dumps(found))


def measure(kind: str, width: int, tokens: int, rounds: int) -> dict[str, dict]:
    """Step times and memory of all methods on one kind of base."""
    layers = make_methods(kind, width)
    x, gradient = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    one, steps, single = torch.randn(1, width), {n: [] for n in layers}, {n: [] for n in layers}
    for number in range(rounds + 1):  # the first round warms up
        for name, layer in layers.items():
            x.grad = None
            layer.zero_grad()
            start = time.process_time()
            layer(x).backward(gradient)
            middle = time.process_time()
            with torch.no_grad():
                layer(one)
            if number:
                steps[name].append(middle - start)
                single[name].append(time.process_time() - middle)
    rows, peaks = {}, peak_bytes(kind, width, tokens)
    for name, layer in layers.items():
        relative = [own / limit for own, limit in zip(steps[name], steps["LoRA r8"], strict=True)]
        rows[name] = {
            "milliseconds": 1e3 * statistics.median(steps[name]),
            "least_milliseconds": 1e3 * min(steps[name]),
            "to_lora": statistics.median(relative),
            "one_token_milliseconds": 1e3 * statistics.median(single[name]),
            "trained": sum(p.numel() for p in layer.parameters() if p.requires_grad),
            "kept_bytes": kept_bytes(layer, x),
            "peak_bytes": peaks[name],
        }
        print(f"{kind:8} {name:16} " + "  ".join(f"{k} {v:,.4g}" for k, v in rows[name].items()), flush=True)
    start = time.process_time()
    dequantise(layers["base alone"], torch.float32)
    print(f"{kind:8} dequantise       {1e3 * (time.process_time() - start):.1f} ms")
    return rows


def main() -> None:
    """Measure, print, and with --write store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["nf4", "int8", "torchao"])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        return print_peaks(given.kinds[0], given.width, given.tokens)
    sizes = {"width": given.width, "tokens": given.tokens, "rounds": given.rounds}
    rows = {kind: measure(kind, **sizes) for kind in given.kinds}
    if given.write:
        write_result("quantised_cpu", sizes | {"kinds": rows}, **library_versions(given.kinds))


if __name__ == "__main__":
    main()

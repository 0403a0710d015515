"""What a training step costs with random masks in peft, beside `apply_random_mask`, SHiRA and LoRA of equal count.

    python benchmarks/peft_method.py [--rounds 40] [--write peft_cpu]

Three cases, one thread, float32: a training step of a layer of width 2048 with 512 tokens; of four layers of OPT-125m
(query and value matrices, 4 x 64 tokens); and the layer's forward pass of one token, as in generating. LoRA and SHiRA
have r = 8, masks the density at which they train as many entries. All methods take turns in one process; a figure is
the median over rounds of the ratio to another method *of the same round*. The clock is this process's processor time:
with one thread on an idle machine the same, and less disturbed by other programs elsewhere.
"""

import argparse
import time
from functools import partial

import torch
from engine import ratios, time_in_turn
from engine_methods import layer_methods, model_methods
from recorded import write_result

RANK = 8
# Width of the matrices, and tokens of a layer alone; one token is a forward pass, as in generating.
CASES = {"layer of width 2048": (2048, 512), "four layers of OPT-125m": (768, None), "one token forward": (2048, 1)}


@torch.no_grad()
def forward(method):
    """The forward pass alone."""
    method.loss(method.model)


def compare(methods: dict, rounds: int, run=lambda method: method.step()) -> dict[str, dict]:
    """Milliseconds of each method, and its ratio to the others that matter."""
    seconds = time_in_turn({name: partial(run, own) for name, own in methods.items()}, rounds, time.process_time)
    rows = {name: {"milliseconds": row["milliseconds"]} for name, row in ratios(seconds).items()}
    for other in ("mask", "shira", "lora r8"):
        (full,) = (name for name in seconds if name == other or name.startswith(f"{other} "))
        for name, row in ratios(seconds, full).items():
            rows[name] |= {f"to {other}": row["ratio"], f"quartiles to {other}": row["quartiles"]}
    for name, method in methods.items():
        rows[name] |= {"trained": method.trained, "saved_bytes": method.saved_bytes()}
    return rows


def main() -> None:
    """Measure, print, and perhaps store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--write", metavar="NAME", help="store as results/benchmarks/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tables, cpu = {}, (torch.float32, "cpu")
    for case, (width, tokens) in CASES.items():
        density = 2 * RANK / width
        only = ["lora r8", *(f"{name} {density:g}" for name in ("mask", "peft mask", "shira"))]
        if tokens is None:
            methods = model_methods("opt-125m-4-layers", [density], 4, 64, *cpu, only)
        else:
            methods = layer_methods(width, density, tokens, *cpu, only)
        one_token = (50 * options.rounds, forward)
        tables[case] = compare(methods, *(one_token if tokens == 1 else (options.rounds,)))
        print(f"\n{case}")
        for name, row in tables[case].items():
            figures = "  ".join(f"{row[f'to {other}']:.3f} of {other}" for other in ("mask", "shira", "lora r8"))
            print(f"  {name:<22} {row['milliseconds']:8.3f} ms  {figures}  trained {row['trained']:>9,}", flush=True)
    if options.write:
        settings = {"rounds": options.rounds, "rank": RANK, "clock": "process time"}
        write_result(options.write, {"settings": settings, "tables": tables})


if __name__ == "__main__":
    main()

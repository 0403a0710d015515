"""What a sparse training step costs beside its peers: time, peak memory, saved activations, adapter size.

    python benchmarks/engine.py layer [--width 768 2048 5120] [--density 0.1 0.01 0.001 0.0001 1e-05]
    python benchmarks/engine.py model [--shape opt-125m] [--density 0.1 0.02 0.01 0.001 1e-05]

All methods take turns in one process; a round runs each of them once, and every figure is the median over rounds of
the ratio to the frozen limit *of the same round*, with the quartiles. The limit trains nothing: the forward pass and
the gradient of the input, which every method needs. A step is forward, backward and the optimiser's update (fused
AdamW). On one thread of a CPU its processor time counts, elsewhere the time by the clock. Weights are random: speed
does not depend on them. On a GPU each step is also captured as a CUDA graph and replayed: its time is the GPU's alone,
while a plain step may wait for the host's Python. Where IST-DASLab's spops is installed, masks whose gradient it
computes are methods, too. `--write` stores the table with its stamp in results/benchmarks/, where a chapter reads it.
"""

import argparse
import copy
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from engine_methods import SHAPES, layer_methods, model_methods, spops_version
from recorded import write_result

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def time_in_turn(steps: dict, rounds: int, clock=time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each of `rounds` steps by method; a round runs all methods, always in a circle.

    So each method starts with the caches as another one left them. If the order turned round by round, the first would
    follow itself, and find its own weights there: that made the limit look 2 % faster than it is.
    """
    seconds = {name: [] for name in steps}
    cuda = torch.cuda.is_available()
    for number in range(rounds + 2):  # the first two rounds warm up
        for name in steps:
            if cuda:
                torch.cuda.synchronize()
            start = clock()
            steps[name]()
            if cuda:
                torch.cuda.synchronize()
            if number >= 2:
                seconds[name].append(clock() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], to: str = "frozen") -> dict[str, dict[str, float]]:
    """Median and quartiles of each method's step time relative to `to`, round by round."""
    rows = {}
    for name, times in seconds.items():
        relative = [own / limit for own, limit in zip(times, seconds[to], strict=True)]
        low, middle, high = statistics.quantiles(relative, n=4)
        rows[name] = {"milliseconds": 1e3 * statistics.median(times), "ratio": middle, "quartiles": [low, high]}
    return rows


def compared(methods: dict, rounds: int) -> dict[str, dict]:
    """Times, as `ratios` gives them, and counts of all methods; "graph" holds the times of captured steps."""
    alone = torch.get_num_threads() == 1 and not any(method.on_gpu for method in methods.values())
    clock = time.process_time if alone else time.perf_counter
    rows = ratios(time_in_turn({name: method.step for name, method in methods.items()}, rounds, clock))
    if all(method.on_gpu for method in methods.values()):  # not where a machine with a GPU measures its CPU
        torch.cuda.empty_cache()
        pool = torch.cuda.graph_pool_handle()  # one after the other, they can use the same memory
        graphs = {name: method.captured(pool) for name, method in methods.items()}
        graphs = {name: replay for name, replay in graphs.items() if replay}
        for name, row in ratios(time_in_turn(graphs, rounds)).items():
            rows[name]["graph"] = row
        del graphs
    for name, method in methods.items():
        rows[name] |= {"trained": method.trained, "saved_bytes": method.saved_bytes()}
        rows[name]["adapter_bytes"] = method.adapter_bytes()
    return rows


def run_layer(options, dtype) -> list[dict]:
    """One table for each width."""
    tables = []
    for width in options.width:
        for density in options.density:
            torch.manual_seed(0)
            methods = layer_methods(width, density, options.tokens, dtype, options.device, options.only)
            rows = compared(methods, options.rounds)
            tables.append({"width": width, "density": density, "tokens": options.tokens, "rows": rows})
            show(f"layer {width} x {width}, density {density:g}, {options.tokens} tokens, {options.dtype}", rows)
            del methods
            gc.collect()
    return tables


def run_model(options, dtype) -> list[dict]:
    """One table for the model, all densities side by side; the peak memory of each method alone."""
    torch.manual_seed(0)
    sizes = options.shape, options.density, options.batch, options.length, dtype, options.device
    methods = model_methods(*sizes, options.only)
    rows = compared(methods, options.rounds)
    del methods  # their memory is wanted
    gc.collect()
    for name in rows if options.memory else ():
        rows[name]["peak_bytes"] = peak_of(name, options, dtype)
    show(f"{options.shape}, {options.batch} x {options.length} tokens, {options.dtype}", rows)
    return [{"shape": options.shape, "batch": options.batch, "length": options.length, "rows": rows}]


def peak_of(name: str, options, dtype) -> int:
    """Peak memory of three steps of one method: on a GPU as PyTorch counts it, else of a process of its own."""
    if options.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        three_steps_alone(name, options, dtype)
        return torch.cuda.max_memory_allocated()
    own = {key: getattr(options, key) for key in ("shape", "dtype", "device", "batch", "length", "threads")}
    command = [sys.executable, __file__, "peak", "--only", name, "--density", *options.density]
    command += [part for key, value in own.items() for part in (f"--{key}", value)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def three_steps_alone(name: str, options, dtype) -> None:
    """Make a model, apply one method and train three steps."""
    torch.manual_seed(0)
    sizes = options.shape, options.density, options.batch, options.length, dtype, options.device
    (method,) = model_methods(*sizes, [name], alone=True).values()
    for _ in range(3):
        method.step()


def resident_bytes(field: str) -> int:
    """Memory of this process now (VmRSS) or at its peak (VmHWM); Linux only.

    Not `ru_maxrss`, which begins with the size of the process that started this one.
    """
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def run_peak(options, dtype) -> None:
    """Print as JSON what one method adds at its peak to the memory after the imports; called by `peak_of`."""
    before = resident_bytes("VmRSS")
    three_steps_alone(*options.only, options, dtype)
    print(json.dumps({"peak_bytes": resident_bytes("VmHWM") - before}))


def show(title: str, rows: dict) -> None:
    """Print one table."""
    print(f"\n{title}")
    for name, row in rows.items():
        low, high = row["quartiles"]
        peak = f"  peak {row['peak_bytes'] / 1e6:7,.0f} MB" if "peak_bytes" in row else ""
        graph = f"  graph {row['graph']['milliseconds']:8.3f} ms {row['graph']['ratio']:.3f}" if "graph" in row else ""
        print(
            f"  {name:<24} {row['milliseconds']:9.2f} ms  {row['ratio']:.3f} ({low:.3f} to {high:.3f})  "
            f"trained {row['trained']:>11,}  saved {row['saved_bytes'] / 1e6:8.1f} MB  "
            f"file {row['adapter_bytes'] / 1e3:10,.1f} kB{peak}{graph}",
            flush=True,
        )


def main() -> None:
    """Parse the command line, run, print and perhaps store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["layer", "model", "peak"])
    parser.add_argument("--width", type=int, nargs="+", default=[768, 2048, 5120])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="opt-125m")
    parser.add_argument("--density", type=float, nargs="+", default=[0.1, 0.01, 0.001, 1e-4, 1e-5])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of methods, beside the frozen limit")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the peak memory")
    parser.add_argument("--write", metavar="NAME", help="store as results/benchmarks/NAME.json")
    options = parser.parse_args()
    if options.what != "peak" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # glibc gives large blocks back to the system and fetches them again at every step, for all methods alike: noise
        # of several per cent. Told to keep them, it does not; the allocator reads this at the start of a process.
        keep = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**33)}
        os.execve(sys.executable, [sys.executable, "-W", "ignore", *sys.argv], os.environ | keep)
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype]
    if options.what == "peak":
        return run_peak(options, dtype)
    tables = (run_layer if options.what == "layer" else run_model)(options, dtype)
    if options.write:
        settings = {key: value for key, value in copy.copy(vars(options)).items() if key not in ("write", "only")}
        spops = spops_version()
        write_result(options.write, {"settings": settings, "tables": tables}, **({"spops": spops} if spops else {}))
    return None


if __name__ == "__main__":
    main()

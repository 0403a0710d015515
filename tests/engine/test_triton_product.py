"""The Triton kernels: run in Triton's interpreter, compiled for an H200, and run on a GPU where there is one.

triton_kernels.py holds the tests of what they compute. It runs in a process of its own, because Triton looks at
TRITON_INTERPRET when it is imported, and because torch.compile, in other tests, must not see it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

triton = pytest.importorskip("triton", reason="the package triton is not installed (it is for Linux)")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from rmbook import sample_mask  # noqa: E402
from rmbook.engine import merge_triton, product_triton  # noqa: E402

KERNELS = Path(__file__).with_name("triton_kernels.py")


@pytest.mark.parametrize("where", ["interpreter", "gpu"])
def test_the_kernels_compute_what_they_should(where):
    if where == "gpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU on this machine")
    if where == "interpreter" and Version(triton.__version__) < Version("3.7"):
        pytest.skip(f"Triton's interpreter fails with NumPy 2.4 before Triton 3.7, and this is {triton.__version__}")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if where == "interpreter" else "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(KERNELS)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(run.stdout[-8000:], run.stderr[-2000:])
    assert run.returncode == 0 and re.search(r"\d+ passed", run.stdout)


@pytest.mark.parametrize("module, needed", [(product_triton, "sampled_product"), (merge_triton, "merge")])
def test_tensors_on_the_cpu_are_refused(module, needed):
    mask = sample_mask((5, 6), 0.5, 0, "w")
    arguments = (torch.ones(3, 5), torch.ones(3, 6), mask.row_starts, mask.columns)
    if needed == "merge":
        arguments = (torch.ones(5, 6), *torch.ones(3, mask.nnz), mask.positions)
    with pytest.raises(RuntimeError, match="on a GPU, got cpu"):
        getattr(module, needed)(*arguments)


# ---------------------------------------------------- what the compiler makes of them for an H200, without having one


@pytest.fixture
def ptx(tmp_path, monkeypatch):
    """Compiles a kernel for compute capability 9.0; arguments by name: a Triton type, or the value of a constant."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compiled(kernel, **arguments):
        types = {n: a if isinstance(a, str) else "constexpr" for n, a in arguments.items()}
        constants = {n: a for n, a in arguments.items() if not isinstance(a, str)}
        order = [types[name] for name in kernel.arg_names]  # also: all are named
        aligned = {(k,): [["tt.divisibility", 16]] for k, t in enumerate(order) if t[0] == "*" or t == "i32 of 16"}
        types = {name: t.removesuffix(" of 16") for name, t in types.items()}
        source = ASTSource(kernel, types, {(kernel.arg_names.index(n),): a for n, a in constants.items()}, aligned)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

    return compiled


@pytest.mark.parametrize("element, reads", [("bf16", 2), ("fp32", 4)])
def test_the_product_reads_16_bytes_at_a_time_and_uses_no_atomics(ptx, element, reads):
    for entries, tokens, _ in product_triton.TILES.values():
        code = ptx(
            product_triton._product_kernel, left=f"*{element}", right=f"*{element}", row_starts="*i32",
            columns="*i32", sums="*fp32", nnz="i32", out="i32", bisections="i32", tokens="i32", slice_steps="i32",
            left_token=1, left_row="i32 of 16", right_token=1, right_column="i32 of 16",
            MASKED=False, ENTRIES=entries, TOKENS=tokens,
        )  # fmt: skip
        loads = re.findall(r"ld\.global[\w.:]*\.v4\.b32", code)
        assert len(loads) >= entries * tokens * reads / 2 / 128 / 4  # of both operands, by 128 threads
        assert not re.search(r"\batom|\bred\.", code)


@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32", "fp64"])
def test_the_other_kernels_compile(ptx, element):
    pointer, value = f"*{element}", "*fp64" if element == "fp64" else "*fp32"
    ptx(
        product_triton._transpose_kernel, left=pointer, right=pointer, left_out=pointer, right_out=pointer,
        tokens="i32", padded="i32", out="i32", width="i32", left_tiles="i32", TILE=product_triton.TRANSPOSE_TILE,
    )  # fmt: skip
    ptx(
        product_triton._pick_kernel,
        dense=pointer,
        row_starts="*i32",
        columns="*i32",
        result=value,
        width="i32",
        BLOCK=128,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_merge_rounds_to_the_nearest(ptx, dtype):
    """The interpreter cuts bfloat16 off instead, so what a GPU does is read from the compiled code."""
    element = merge_triton.ELEMENT[dtype]
    one = ptx(
        merge_triton._merge_kernel, weight=f"*{element}", merged="*fp32", values="*fp32", original=f"*{element}",
        positions="*i32", nnz="i32", BLOCK=merge_triton.BLOCK,
    )  # fmt: skip
    many = ptx(
        merge_triton._merge_layers_kernel, table="*i64", starts="*i32", layers="i32", bisections="i32",
        WEIGHT=element, VALUE=merge_triton.ELEMENT[torch.float32], POSITION=merge_triton.ELEMENT[torch.int64],
        BLOCK=merge_triton.BLOCK,
    )  # fmt: skip
    name = "bf16" if dtype == torch.bfloat16 else "f16"
    for code in (one, many):
        narrowing = re.findall(r"cvt[\w.]*\.f32\s", code)
        assert narrowing and all(re.match(rf"cvt\.rn\.{name}(x2)?\.f32", c) for c in narrowing)
        assert ".ftz" not in code  # numbers below the smallest normal one are not flushed to zero

"""Shared helpers of the tests."""

import gc
import os
from pathlib import Path

import pytest

pytest_plugins = ["tiny_runs"]  # fixtures of tiny runs

# Before torch is loaded: its threads else spin while they wait, which starves tiny models where others use the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Where several processes test, each has its share of the cores, and so have the kernels and commands that it starts.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


def pytest_collection_finish():
    """Spare the garbage collector the libraries that are loaded by now: it would go through them again and again."""
    gc.collect()
    gc.freeze()


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The project's folder of reference material; its tests skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine: it holds the paper's tables and real records")
    return SHARED


class TwoLayers(nn.Module):
    """A small network with two targets and one layer that is not a target."""

    def __init__(self, dtype=torch.float32, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(24, 40, bias=bias, dtype=dtype)
        self.second = nn.Linear(40, 16, bias=bias, dtype=dtype)
        self.last = nn.Linear(16, 3, bias=bias, dtype=dtype)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.fixture
def two_layers() -> TwoLayers:
    return TwoLayers()


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    """Every parameter's exact bytes, read past `state_dict`, which masked layers override."""
    return {
        n: p.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, p in model.named_parameters()
    }


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {
            a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor) and a.layout == torch.strided
        }
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            fresh = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            if fresh and tensor.untyped_storage().data_ptr() not in inputs:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

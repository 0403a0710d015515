"""A chapter's kernel is a fork of a process that has loaded the large libraries: it does what any other kernel does."""

import asyncio
import multiprocessing
import signal
import sys
import tempfile

import nbformat
import pytest
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from kernels import ForkedProcess, use_forked_kernels
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
LOOKS = [
    "import pandas as pd, numpy as np\ntable = pd.DataFrame(np.arange(60).reshape(2, 30) / 7)\nprint(table)\ntable",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()",
    "import os\nfrom pathlib import Path\nprint(Path.cwd(), __name__, os.getpid() == os.getpgid(0))",
    "import torch\ntorch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()",
    "import multiprocessing\nwith multiprocessing.Pool(2) as pool:\n    print(pool.map(abs, [-1, 2]))",
]


def run(codes, folder, **options) -> list:
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    resources = {"metadata": {"path": str(folder)}}
    notebook = nbformat.v4.new_notebook(cells=cells)
    asyncio.run(NotebookClient(notebook, kernel_name="python3", resources=resources, **options).async_execute())
    return [[dict(output) for output in cell.outputs] for cell in notebook.cells]


@pytest.fixture(autouse=True)
def forked():
    use_forked_kernels()
    yield KernelProvisionerFactory.instance()
    use_forked_kernels()


def test_outputs_are_those_of_an_ordinary_kernel(forked, tmp_path):
    found = run(LOOKS, tmp_path)
    forked.default_provisioner_name = "local-provisioner"
    assert found == run(LOOKS, tmp_path)
    assert "image/png" in found[1][0]["data"] and str(tmp_path) in found[2][0]["text"]


def test_no_other_program_can_take_what_a_kernel_listens_at(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    look = "from ipykernel.connect import get_connection_info\nget_connection_info(unpack=True)['transport']"
    assert run([look], tmp_path)[0][0]["data"]["text/plain"] == "'ipc'"
    assert not [*tmp_path.iterdir()]  # nothing is left


def test_a_signal_to_a_kernel_that_has_ended_is_no_error():
    process = multiprocessing.get_context("spawn").Process(target=int)  # the server would start without the libraries
    process.start()
    process.join()
    ForkedProcess(process).send_signal(signal.SIGINT)


def test_kernels_share_nothing_but_what_was_loaded_before(tmp_path):
    changes = "torch.manual_seed(7)\nos.environ['LEFT'] = 'here'\nos.chdir('/')\ntorch.left = 1"
    run([f"import os, torch\n{changes}"], tmp_path)
    (seen,) = run(["import os, sys\nprint('torch' in sys.modules, os.environ.get('LEFT'), os.getcwd())"], tmp_path)
    assert seen[0]["text"] == f"True None {tmp_path}\n"
    (seen,) = run(["import torch\nhasattr(torch, 'left'), torch.initial_seed() == 7"], tmp_path)
    assert seen[0]["data"]["text/plain"] == "(False, False)"


def test_a_kernel_that_dies_or_hangs_or_fails_is_noticed(tmp_path):
    with pytest.raises(DeadKernelError):
        run(["import os\nos._exit(3)"], tmp_path)
    with pytest.raises(CellTimeoutError):
        run(["while True: pass"], tmp_path, timeout=1)
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        run(["while True: pass"], tmp_path, timeout=1, interrupt_on_timeout=True)

"""Start the chapters' kernels from a process that has the large libraries loaded already.

A chapter's kernel would spend five seconds on importing torch, transformers and peft. Here they are imported once; each
kernel is a fork of that process: a new process that shares nothing else with other chapters.
"""

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

from jupyter_client.provisioning import LocalProvisioner
from jupyter_client.provisioning.factory import KernelProvisionerFactory

LOADED = ["ipykernel.kernelapp", "rmbook.evidence.experiment", "rmbook.plots"]
LOADED += ["rmbook.offline.minilm", "rmbook.theory.regression", "rmbook.widgets.curve_explorer"]
LAUNCHER = ["-m", "ipykernel_launcher"]


class ForkedProcess:
    """A forked process with the part of subprocess.Popen's interface that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, process: multiprocessing.Process):
        self.process, self.pid = process, process.pid
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs."""
        return self.process.exitcode

    def wait(self) -> int:
        """Return the exit status once there is one."""
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkedKernel(LocalProvisioner):
    """Starts ipykernel in a fork, and any other kernel as usual."""

    async def pre_launch(self, **options):
        """Choose where the kernel listens; see LocalProvisioner."""
        if self.parent.transport != "ipc":  # else it starts again, where it was
            # Files, not ports: while the libraries are loaded another program may take a port that was free.
            self.parent.transport, self.parent.cache_ports = "ipc", False
            self.parent.ip = str(Path(tempfile.gettempdir()) / f"kernel-{self.kernel_id[:13]}")
        return await super().pre_launch(**options)

    async def launch_kernel(self, cmd, **options):
        """Start the kernel; see LocalProvisioner."""
        if cmd[1:3] != LAUNCHER:
            return await super().launch_kernel(cmd, **options)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED)  # has an effect before the first kernel only
        folder = str(options.get("cwd") or Path.cwd())
        arguments = [*cmd[3:], f"--IPKernelApp.parent_handle={os.getpid()}"]
        process = context.Process(target=serve, args=(arguments, options["env"], folder))
        own_main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:  # else the kernel would import this program, which takes two seconds
            process.start()
        finally:
            sys.modules["__main__"] = own_main
        self.process, self.pid, self.pgid, self.cwd = ForkedProcess(process), process.pid, process.pid, folder
        return self.connection_info


def serve(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Be a kernel, until it is told to end."""
    import matplotlib
    import pandas
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What these find out when they are loaded in a kernel.
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    pandas.set_option("display.max_columns", 20)
    gc.freeze()  # the collector need not go through the libraries
    launch_new_instance(argv=arguments)


def use_forked_kernels() -> None:
    """Make nbclient and nbval start their kernels here, on Linux; elsewhere a fork of loaded libraries is not safe."""
    if sys.platform == "linux":
        factory = KernelProvisionerFactory.instance()
        factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:ForkedKernel", factory.GROUP_NAME)
        factory.default_provisioner_name = "forked"

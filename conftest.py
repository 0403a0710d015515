"""How the chapters are run as tests: what nbval must not compare, how kernels wait, and what comes first."""

import json
import os
from pathlib import Path

import pytest

try:
    from kernels import use_forked_kernels
    from nbval.plugin import IPyNbFile

    use_forked_kernels()
except ImportError:  # where only the package's own tests are run
    IPyNbFile = ()

# Kernels inherit it. OpenMP's threads else spin while they wait for each other, and where anything else uses the cores
# a chapter's tiny models get fifty times slower than they are alone. One thread each, as several processes run at a
# time, and a second thread costs such models more than it brings.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collectstart(collector):
    """Ignore stderr (warnings, progress bars): it is neither stored by record.py nor shown in the pages."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Put what takes longest first, so that parallel processes end at about the same time."""

    def weight(path: Path) -> tuple[bool, float]:
        if path.suffix != ".ipynb":
            return False, path.stat().st_size
        return True, json.loads(path.read_text())["metadata"].get("rmbook", {}).get("seconds", 60)

    weights = {path: weight(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: (weights[item.path], str(item.path)), reverse=True)  # stable: a file's order stays

"""What nbval must not compare in the chapters, and how their kernels wait."""

import os

from nbval.plugin import IPyNbFile

# Kernels inherit it. OpenMP's threads else spin while they wait for each other, and where anything else uses the cores
# a chapter's tiny models get fifty times slower than they are alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collectstart(collector):
    """Ignore stderr (warnings, progress bars): it is neither stored by record.py nor shown in the pages."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)

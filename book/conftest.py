"""What nbval must not compare in the chapters."""

from nbval.plugin import IPyNbFile


def pytest_collectstart(collector):
    """Ignore stderr (warnings, progress bars): it is neither stored by record.py nor shown in the pages."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)

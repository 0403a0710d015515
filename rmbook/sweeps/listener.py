"""Who is told how a sweep goes."""

from rmbook.sweeps.ledger import Lease


class Listener:
    """A listener is told how a sweep goes; this one says nothing. See `rmbook.sweeps.display` for those that do."""

    def begun(self, lease: Lease, counts: dict[str, int]) -> None:
        """A run was begun or resumed. `counts`: number of runs in each state."""

    def ended(self, lease: Lease, state: str, note: str, counts: dict[str, int]) -> None:
        """A run is done, diverged, failed, pending (will be tried again) or lost (to another process)."""

    def waiting(self, counts: dict[str, int]) -> None:
        """Nothing is pending, but other processes have runs in hand."""

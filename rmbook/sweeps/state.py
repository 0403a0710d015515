"""What is known of a sweep's runs, from its ledger and its folders together; nothing here needs torch."""

from dataclasses import asdict

from rmbook.sweeps.folder import SweepFolder, outcome
from rmbook.sweeps.ledger import Ledger, read_ledger


def open_ledger(place: SweepFolder, owner: str = "reader", **settings) -> Ledger:
    """Open the ledger of a sweep, made anew from its folders if it is lost, and brought up to what they say."""
    ledger = Ledger(place.ledger, owner, **settings)
    if not any(ledger.counts().values()):
        ledger.add(place.plans(), wanted=False)
    for key in ledger.keys("pending", "leased", "failed"):
        if result := place.result(key):
            ledger.record(key, *outcome(result))
    return ledger


def read_rows(place: SweepFolder) -> list[dict]:
    """Return what the rows of `open_ledger` would be, and change nothing: the folder may be another person's.

    Raises:
        LedgerError: the ledger cannot be read.
        RunError: the plans are damaged.
    """
    empty = {"state": "pending", "attempts": 0, "result": None, "error": None, "claimed": None}
    rows = read_ledger(place.ledger) or [asdict(run) | empty for run in place.plans()]
    for row in rows:
        if row["state"] in ("pending", "leased", "failed") and (result := place.result(row["key"])):
            state, summary = outcome(result)
            row |= {"state": state, "result": summary, "error": None}
    return rows

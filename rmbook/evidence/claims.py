"""The paper's claims as claims.yaml lists them, each with the function that computes its evidence."""

from functools import partial
from pathlib import Path

from rmbook.errors import ConfigError, closest
from rmbook.evidence import claim_evidence, claim_scores, claim_theory
from rmbook.evidence.claim import Claim, Evidence
from rmbook.evidence.grids import load_runs
from rmbook.yaml_files import read_yaml

MEASURES = vars(claim_theory) | vars(claim_scores) | vars(claim_evidence)


def read_claims(path: Path) -> tuple[Claim, ...]:
    """Read a list of claims; the file says how one is written.

    Raises:
        ConfigError: the file is no YAML, a claim has an unknown entry or lacks one, or a function has another name.
    """
    return tuple(_claim(row) for row in read_yaml(path))


def _claim(row: dict) -> Claim:
    function, *arguments = row.pop("evidence", [None])
    if function not in (None, *MEASURES):
        hint = closest(function, MEASURES)
        raise ConfigError(f"claim {row['name']}: no function {function} computes evidence: {hint}")
    row |= {key: tuple(row[key]) for key in ("sources", "records") if key in row}
    measure = function and partial(_measure, function, row.get("records", ()), arguments)
    try:
        return Claim(**row, measure=measure)
    except TypeError as error:
        raise ConfigError(f"claim {row.get('name')}: {error}") from None


def _measure(function: str, records: tuple[str, ...], arguments: list) -> Evidence:
    return MEASURES[function](*(load_runs(record.removeprefix("science/")) for record in records), *arguments)


CLAIMS = read_claims(Path(__file__).with_suffix(".yaml"))

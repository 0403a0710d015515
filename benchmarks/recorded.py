"""Results of benchmarks as files in results/benchmarks/, each with the stamp of the command that made it."""

import shlex
import sys
from pathlib import Path

from rmbook.files import write_json
from rmbook.stamps import stamp

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def command_stamp() -> dict:
    """Return the stamp of the command that this process carries out."""
    return stamp(shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))


def write_result(name: str, content: dict, **versions: str) -> None:
    """Write what was measured to results/benchmarks/NAME.json, with its stamp and the versions of other packages."""
    made = command_stamp()
    made["versions"] |= versions
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", {"stamp": made} | content)

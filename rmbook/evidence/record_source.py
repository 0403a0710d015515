"""Where the chapters' SST-2 records come from: original files, the hub, or sentences that are generated here."""

import os
import threading
import urllib.error
import urllib.request

from huggingface_hub import constants

from rmbook.errors import TaskError
from rmbook.tasks.catalog import load_examples

ANSWER_SECONDS = 3.0  # how long the hub is waited for


def choose_records(data_dir: str | None, hub: bool, generated: bool = False) -> str:
    """Where records come from: "original files", "hub" or "generated".

    Args:
        data_dir: folder of original files, if the reader names one; it goes first.
        hub: whether the hub has given the records.
        generated: whether the reader asks for generated sentences.
    """
    if generated:
        return "generated"
    return "original files" if data_dir else "hub" if hub else "generated"


def find_source() -> tuple[str, str | None]:
    """The source by the environment and the network, and the folder of original files where that is the source.

    Environment: RMBOOK_DATA_DIR names a folder with SST-2's original files; RMBOOK_RECORDS=generated asks for generated
    sentences. A hub that does not answer is waited for some seconds at most; with HF_HUB_OFFLINE or HF_DATASETS_OFFLINE
    its cache is looked at, and nothing else.

    Raises:
        TaskError: RMBOOK_DATA_DIR has no such files.
    """
    data_dir = os.environ.get("RMBOOK_DATA_DIR")
    wanted = os.environ.get("RMBOOK_RECORDS") == "generated"
    if data_dir and not wanted:
        load_examples("SST-2", "validation", data_dir)  # a wrong folder should be named now
    source = choose_records(data_dir, not (data_dir or wanted) and _hub_has_records(), wanted)
    return source, data_dir if source == "original files" else None


def _hub_has_records() -> bool:
    offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "0") not in ("", "0")
    if not offline and not hub_answers():
        return False
    try:
        for split in ("train", "validation"):
            load_examples("SST-2", split)
    except TaskError:
        return False
    return True


def hub_answers(address: str = constants.ENDPOINT, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether a server answers in time, whatever it says; looking up its name counts, which has no limit of its own."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()

"""Models and records that are made on this machine, for grids that need no network: "made:opt", "made:sentences"."""

from rmbook.digits import cache_folder
from rmbook.files import replacing_folder
from rmbook.fingerprints import source_fingerprint
from rmbook.offline_files import tiny_checkpoint, write_generated_records
from rmbook.run_config import ConfigError, closest

MADE = ("made:opt", "made:llama", "made:sentences")
SENTENCES = {"train": 2000, "test": 1000}


def resolve(name: str) -> str:
    """The folder that "made:opt", "made:llama" (checkpoints) or "made:sentences" (records of SST-2) stands for.

    It is made when it is first asked for, some 10 s for a checkpoint, and then kept in rmbook's cache. Other names are
    given back as they are.

    Raises:
        ConfigError: it begins with "made:" and is none of these.
    """
    if not name.startswith("made:"):
        return name
    if name not in MADE:
        raise ConfigError(f"{name} cannot be made: {closest(name, MADE)}")
    if name != "made:sentences":
        return str(tiny_checkpoint(name.removeprefix("made:")))
    folder = cache_folder() / f"made-sentences-{source_fingerprint('offline_files')[:8]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing_folder(folder) as temporary:
                write_generated_records(temporary, **SENTENCES)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return str(folder)

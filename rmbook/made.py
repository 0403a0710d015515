"""Models and records that are made on this machine, for grids that need no network: "made:opt", "made:sentences"."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from rmbook.digits import cache_folder
from rmbook.fingerprints import source_fingerprint
from rmbook.run_config import ConfigError, closest
from rmbook.sentences import sentiment_sentences
from rmbook.tiny_models import make_tiny_checkpoint

MADE = ("made:opt", "made:llama", "made:sentences")
COUNTS = {"train": 2000, "test": 1000}  # sentences


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
    kind, version = name.removeprefix("made:"), source_fingerprint("tiny_models", "sentences")[:8]
    folder = cache_folder() / f"made-{kind}-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _write_sentences(temporary) if kind == "sentences" else make_tiny_checkpoint(temporary, kind)
            temporary.chmod(0o755)
            with contextlib.suppress(OSError):  # another process was faster
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return str(folder)


def _write_sentences(folder: Path) -> None:
    for split, name in (("train", "train.tsv"), ("test", "dev.tsv")):
        pairs = zip(*sentiment_sentences(split, COUNTS[split]), strict=True)
        text = "".join(f"{sentence}\t{label}\n" for sentence, label in pairs)
        (folder / name).write_text(f"sentence\tlabel\n{text}")

"""What the chapters on language models need where there is no network, made here: a tiny checkpoint, and records."""

import hashlib
import shutil
from pathlib import Path

from rmbook.models.files import ModelError, check_files
from rmbook.offline import sentences, tiny_language
from rmbook.offline.digits import cache_folder
from rmbook.offline.sentences import sentiment_sentences
from rmbook.offline.tiny_language import make_tiny_checkpoint
from rmbook.tasks.language import LANGUAGE_TASKS


def tiny_checkpoint(kind: str, *, seed: int = 0, pretrain_steps: int = tiny_language.PRETRAIN_STEPS) -> Path:
    """The folder of a tiny checkpoint; made the first time, then from the cache.

    The cache is keyed by the arguments, and by the code and the packaged weights that checkpoints are made with. A
    damaged folder is made again.

    Args:
        kind, seed, pretrain_steps: see `rmbook.offline.tiny_language.make_tiny_checkpoint`.
    """
    code = "".join(Path(module.__file__).read_text() for module in (tiny_language, sentences))
    weights = b"".join(path.read_bytes() for path in tiny_language.WEIGHTS.values())
    key = hashlib.sha256(f"{kind} {seed} {pretrain_steps} {code}".encode() + weights).hexdigest()[:12]
    folder = cache_folder() / f"tiny_{kind}_{key}"
    if not _is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            make_tiny_checkpoint(folder, kind, seed=seed, pretrain_steps=pretrain_steps)
        except OSError:  # two processes have made it at the same time: the first one's is as good
            if not _is_whole(folder):
                raise
    return folder


def write_generated_records(folder: Path, train: int, test: int, seed: int = 0) -> Path:
    """Sentences of `rmbook.offline.sentences` in SST-2's original format: SST-2/train.tsv and SST-2/dev.tsv.

    No adjective and no noun of the test sentences is in a training sentence, so a model must have known them before.

    Args:
        folder: to write to; made if need be.
        train, test: number of sentences; "dev" in the original's name is GLUE's word for the split that is tested on.
        seed: of the sentences.

    Returns:
        `folder`, which is what `load_examples` takes as data_dir.
    """
    task = LANGUAGE_TASKS["SST-2"]
    target = Path(folder) / task.folder
    target.mkdir(parents=True, exist_ok=True)
    for split, part, count in (("train", "train", train), ("validation", "test", test)):
        lines = (
            f"{sentence} \t{label}\n" for sentence, label in zip(*sentiment_sentences(part, count, seed), strict=True)
        )
        (target / task.files[split]).write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")
    return Path(folder)


def _is_whole(folder: Path) -> bool:
    try:
        check_files(folder.name, folder)
    except (ModelError, OSError):
        return False
    return True

"""Finding the files of a model, in a folder, the hub's cache or the hub itself, and whether they are whole.

Only safetensors count as weights: other formats can run code when they are read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import safe_open

from rmbook.errors import RmbookError, closest, first_line
from rmbook.files import UnreadableFileError
from rmbook.json_files import read_json

if TYPE_CHECKING:
    import torch

KNOWN_MODELS = (  # the paper's first, then open ones whose layers rmbook.methods.architectures names
    *(f"facebook/opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")),
    *(f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b")),
    *(f"openai/clip-vit-{name}" for name in ("base-patch16", "base-patch32", "large-patch14")),
    *(f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")),
    *(f"meta-llama/Llama-3.2-{size}" for size in ("1B", "3B")),
    *(f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B")),
    *(f"HuggingFaceTB/SmolLM2-{size}" for size in ("135M", "360M", "1.7B")),
    "mistralai/Mistral-7B-v0.3",
)
SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # of PEFT; transformers applies such an adapter without being asked
PREPROCESSING = "preprocessor_config.json"  # of models of images
FILES = (  # what is downloaded: neither other formats of the weights nor the second copies that some repositories have
    *("config.json", "generation_config.json", SAFE, SAFE_INDEX, "model-*.safetensors"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    PREPROCESSING,
)
CONVERTER = "SFconvertbot"
LARGEST_INDEX = 10**8  # bytes
ANSWER_SECONDS = 5.0  # how long a hub that does not answer is waited for


class ModelError(RmbookError, ValueError):
    """A model cannot be loaded; one line that says what came, what was expected and what to do."""


def find_model(
    name: str | os.PathLike, revision: str | None, device: torch.device | str | None
) -> tuple[str, Path, torch.device]:
    """The name as text, the folder with all files of a model, checked, and a device that is there; the CPU if None.

    Raises:
        ModelError: as `find_folder` and `check_files`; or there is no such device.
    """
    import torch

    name, place = os.fspath(name), torch.device("cpu" if device is None else device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {place} was asked for, but torch {torch.__version__} sees no CUDA device here.")
    folder = find_folder(name, revision)
    check_files(name, folder)
    return name, folder, place


def find_folder(name: str, revision: str | None, whole: bool = True) -> Path:
    """The folder of a model: `name` itself if it is one, or that in the hub's cache, which is filled if need be.

    Args:
        name: a folder, or a repository of the hub.
        revision: of the repository.
        whole: False if config.json is all that is wanted.

    Raises:
        ModelError: no such folder or repository, no access, no safetensors in it, or the hub is out of reach.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise ModelError(f"{name} is a local folder, which has no revision {revision!r}: leave revision out.")
        return folder
    if not name or folder.exists() or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        found = "is a file" if name and folder.exists() else "does not exist"
        raise ModelError(f"{name!r} {found}: give a folder that save_pretrained wrote, or a repository of the hub.")
    cached, problem = find_cached(name, revision, whole)
    return cached or _download(name, revision, whole, problem)


def find_cached(name: str, revision: str | None = None, whole: bool = True) -> tuple[Path | None, str | None]:
    """The folder of a repository in the hub's cache, or None and what its copy there lacks; nothing is downloaded."""
    problem = None
    for candidate in [revision] if revision else [None, *_cached_conversions(name)]:
        try:
            cached = _snapshot(name, candidate, whole, local_files_only=True)
            check_files(name, cached, whole)
            return cached, None
        except ModelError as error:
            problem = problem or str(error)
        except Exception:  # noqa: BLE001 - not in the cache; which errors say so varies between versions
            pass
    return None, problem


def _download(name: str, revision: str | None, whole: bool, problem: str | None) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise ModelError(_out_of_reach(name, revision, problem, "HF_HUB_OFFLINE is set"))
    try:
        # The download itself would wait forever for a server that does not answer; this question does not.
        info = huggingface_hub.model_info(name, revision=revision, timeout=ANSWER_SECONDS)
        if lacking := _problem({file.rfilename for file in info.siblings}, name, whole):
            converted = None if revision else _conversion(name)
            if converted is None:
                raise ModelError(f"{name}: {lacking}")
            return find_folder(name, converted, whole)
        return _snapshot(name, revision, whole)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - offline shows as any of a dozen errors of three libraries
        raise ModelError(_refusal(name, revision, problem, error)) from None


def _refusal(name: str, revision: str | None, problem: str | None, error: Exception) -> str:
    match error:
        case GatedRepoError():
            return f"{name} is gated: accept its licence on https://huggingface.co/{name}, then run `hf auth login`."
        case RevisionNotFoundError():
            return f"{name} has no revision {revision!r} on the hub; give one that it has, or none."
        case RepositoryNotFoundError():
            hint = f"the hub has no model {name!r}, or it is private (then run `hf auth login`). {_close(name)}"
            return hint.rstrip()
        case HFValidationError():
            return f"{name!r} is neither a folder nor a name that the hub allows, such as facebook/opt-1.3b."
    return _out_of_reach(name, revision, problem, first_line(error))


def find_commit(name: str, revision: str | None) -> Path:
    """The folder of config.json of what `find_folder` would load: it can be the hub's conversion to safetensors.

    No weights are downloaded. A run that is planned keeps this folder's commit as its revision.

    Raises:
        ModelError: as `find_folder` with whole=False.
    """
    folder = find_folder(name, revision, whole=False)
    local = Path(name).expanduser().is_dir()
    if local or revision or not _problem({path.name for path in folder.iterdir()}, name, whole=True):
        return folder
    with contextlib.suppress(Exception):  # the hub is out of reach: the run itself will say what is missing
        if cached := _cached_conversions(name):
            return _snapshot(name, cached[0], whole=False, local_files_only=True)
        info = huggingface_hub.model_info(name, revision=folder.name, timeout=ANSWER_SECONDS)
        if _problem({file.rfilename for file in info.siblings}, name, whole=True) and (offered := _conversion(name)):
            return find_folder(name, offered, whole=False)
    return folder


def _snapshot(name: str, revision: str | None, whole: bool, **arguments) -> Path:
    patterns = list(FILES) if whole else ["config.json"]
    return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns, **arguments))


def _conversion(name: str) -> str | None:
    """Return where the hub's own robot offers the weights as safetensors, as it does for OPT; None if it does not."""
    offers = huggingface_hub.get_repo_discussions(name, author=CONVERTER, discussion_type="pull_request")
    # The server was asked for this author's; what it answers is looked at all the same: anybody can open a request.
    return next((f"refs/pr/{o.num}" for o in offers if o.author == CONVERTER and "safetensors" in o.title), None)


def _cached_conversions(name: str) -> list[str]:
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return sorted(str(path.relative_to(folder / "refs")) for path in folder.glob("refs/refs/pr/*"))


def _out_of_reach(name: str, revision: str | None, problem: str | None, reason: str) -> str:
    if problem:  # of the copy in the cache
        return f"{problem} (The hub is out of reach: {reason}.)"
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    return (
        f"{name!r} is no folder here and not (wholly) in the cache of the hub, which is out of reach ({reason}). "
        f"Once online, run `{command}`. {_close(name)}"
    ).rstrip()


def _close(name: str) -> str:
    hint = "" if name in KNOWN_MODELS else closest(name, KNOWN_MODELS)
    return hint[:1].upper() + hint[1:]


def _problem(files: set[str], name: str, whole: bool) -> str | None:
    if "config.json" not in files:
        return "there is no config.json, so this is no checkpoint; give the folder that save_pretrained wrote."
    if not whole:
        return None
    if not files & {SAFE, SAFE_INDEX}:
        if not any(file.startswith("pytorch_model") and file.endswith(".bin") for file in files):
            return f"there are no weights: expected {SAFE}, or {SAFE_INDEX} and its parts; get the checkpoint again."
        new = f"{Path(name).name}-safetensors"
        return (
            "the weights are only in pytorch_model.bin, a format that can run code. Convert them once: "
            f'python -c "from rmbook import convert_checkpoint as c; c({name!r}, {new!r})" '
            f"and load {new!r}."
        )
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        if "tokenizer.model" in files:
            return (
                "its tokenizer is only in tokenizer.model, which transformers would convert into one with other tokens "
                "for double spaces: add tokenizer.json, as the model's page on the hub has it."
            )
        return "there is no tokenizer (tokenizer.json, or vocab.json and merges.txt): add its files."
    return None


def check_files(name: str, folder: Path, whole: bool = True) -> None:
    """Raise `ModelError` unless the folder has a configuration, a tokenizer and all weights, none of them cut short.

    The weights' headers are read, not the weights; with whole=False only config.json need be there.
    """
    files = {path.name for path in folder.iterdir() if path.is_file()}  # a pipe would be waited for
    if ADAPTER in files:
        raise ModelError(
            f"{name}: there is an {ADAPTER}, so that transformers would change the weights by another adapter: "
            "give the folder of the base model alone."
        )
    if problem := _problem(files, name, whole):
        raise ModelError(f"{name}: {problem}")
    if not whole:
        return
    parts = {SAFE}
    if SAFE not in files:
        try:
            parts = set(read_json(folder / SAFE_INDEX, LARGEST_INDEX)["weight_map"].values())
            if not parts or not all(type(part) is str for part in parts):
                raise ValueError("no names of files")
        except (UnreadableFileError, ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{folder / SAFE_INDEX} is damaged: expected the index of sharded weights.") from None
    if missing := sorted(parts - files):
        count = f"{len(missing)} of {len(parts)} parts of the weights"
        raise ModelError(f"{name}: {missing[0]} is missing ({count}): get it again.")
    for part in sorted(parts):
        try:
            safe_open(folder / part, "pt").__exit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - SafetensorError, and OSError for an empty file
            raise ModelError(
                f"{folder / part} is cut short or damaged ({first_line(error)}): get it again, or save it again."
            ) from None


def share(folder: Path) -> None:
    """Make a new checkpoint's files readable for everyone, as usual files are: safetensors writes private ones."""
    for path in folder.iterdir():
        path.chmod(0o644)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bar, which in a notebook stays on the page, and no report of what rmbook itself checks and raises."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()

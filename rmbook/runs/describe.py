"""Descriptions in words: of a run, of an adapter, and of what a method would train in a model."""

import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPConfig

from rmbook.adapters.adapter_file import check_adapter
from rmbook.engine.targets import find_targets
from rmbook.masks.recipe import MaskRecipe
from rmbook.masks.sample import ratio_to_density
from rmbook.methods.apply import apply_method
from rmbook.methods.architectures import conv1d_to_linear, resolve_targets
from rmbook.methods.saved import read_about
from rmbook.methods.settings import MaskSettings
from rmbook.models.clip import ClipClassifier, classifier_without_weights
from rmbook.models.configuration import empty_model, read_config
from rmbook.models.files import check_files, find_folder
from rmbook.models.language import read_configuration
from rmbook.offline.made import resolve
from rmbook.runs.config import MASKS, RunConfig
from rmbook.runs.folder import run_config
from rmbook.runs.result import RunError, read_result
from rmbook.tensor_files import read_header


def describe_path(path: Path) -> str:
    """Lines about a run's folder or an adapter file.

    Raises:
        RunError: it is neither.
        AdapterCorruptError, AdapterError: the file cannot be used.
    """
    if path.is_dir():
        adapter = path / "adapter.safetensors"
        return "\n".join([*_run_lines(path), *(_adapter_lines(adapter) if adapter.exists() else [])])
    if not path.exists():
        raise RunError(f"there is nothing at {path}: give the folder of a run, or an adapter file.")
    return "\n".join(_adapter_lines(path))


def describe_method(model_name: str, **values) -> str:
    """Lines about what a method would train, from the model's config.json alone: no weights are read.

    Args:
        model_name: on the hub, or a folder.
        values: of method, ratio, density, targets, settings and seed, as in `RunConfig`.

    Raises:
        ModelError, ConfigError, MethodError, TargetError, ValueError: what came does not fit.
    """
    config = RunConfig(model=model_name, task="RTE", learning_rate=1.0, **values) if values else None
    model = _without_weights(config.model if config else model_name)
    total = sum(parameter.numel() for parameter in model.parameters())
    encoder = " (the image encoder and its projection)" if isinstance(model, ClipClassifier) else ""
    lines = [f"{model_name}: {type(model).__name__}, {total:,} parameters{encoder}"]
    if config is None:
        return lines[0]
    if config.method not in MASKS:
        settings = asdict(config.method_settings(config.train_size))
        method = apply_method(model, config.method, targets=config.targets, seed=config.seed, **settings)
        return "\n".join([*lines, f"{config.method} trains {method.trainable:,} of them, ratio {method.ratio:.4%}"])
    targets = resolve_targets(model, config.targets)
    shapes = {name: tuple(layer.weight.shape) for name, layer in find_targets(model, targets).items()}
    held = sum(rows * columns for rows, columns in shapes.values())
    density = config.density or ratio_to_density(config.ratio or 0.0, total, held)
    settings = config.method_settings(config.train_size)
    assert isinstance(settings, MaskSettings)
    recipe = MaskRecipe(targets, density, config.seed, settings.structure)
    trained = sum(recipe.draw({name: shape})[name].nnz for name, shape in shapes.items())  # one layer in memory
    lines.append(f"{config.method} trains {trained:,} of them, ratio {trained / total:.6%}")
    lines.append(f"in {len(shapes)} layers ({', '.join(targets)}) at density {density:.6g}, seed {config.seed}")
    return "\n".join(lines)


def _without_weights(model_name: str) -> nn.Module:
    model_name = resolve(model_name)
    folder = find_folder(model_name, None, whole=False)
    check_files(model_name, folder, whole=False)
    if isinstance(config := read_config(model_name, folder), CLIPConfig):
        empty_model(model_name, config)
        return classifier_without_weights(config)
    with torch.device("meta"):
        return conv1d_to_linear(empty_model(model_name, read_configuration(model_name)))


def _run_lines(folder: Path) -> list[str]:
    config, found = run_config(folder), read_result(folder)
    lines = [
        f"run in {folder}",
        *(f"  {name}: {value}" for name, value in config.to_dict().items() if value not in (None, {})),
    ]
    if found is None:
        return [*lines, f"not finished: `rmbook train --resume {folder}` resumes it"]
    lines.append(
        f"{found['status']} after {found['steps']} steps in {found['seconds']:.0f} s, made {found['stamp']['date']}"
    )
    lines.append(f"trained {found['trainable']:,} of {found['total']:,} parameters, ratio {found['ratio']:.6%}")
    for row in found["history"]:
        best = " (best)" if row["epoch"] == found["best_epoch"] else ""
        known = ", ".join(
            f"{name.replace('_', ' ')} {row[name]:.4f}"
            for name in ("train_loss", "dev_loss", "dev_accuracy")
            if row[name] is not None
        )
        lines.append(f"  epoch {row['epoch']}: {known}{best}")
    return lines + [f"test {name} {score:.4f}" for name, score in (found["test"] or {}).items()]


def _adapter_lines(path: Path) -> list[str]:
    about = read_about(path)
    size = f"{path.stat().st_size:,} bytes"
    if about is not None:
        count = sum(math.prod(layout.shape) for layout in read_header(path)[1].values())
        base = about["base_fingerprint"][:12]
        return [f"adapter {path}: {size}", f"  {about['method']}, {count:,} numbers, base {base}..."]
    header = check_adapter(path)
    dtypes = ", ".join(sorted({str(values.dtype).removeprefix("torch.") for values in header.values.values()}))
    trained = sum(math.prod(values.shape) for values in header.values.values())
    lines = [f"adapter {path}: {size}", f"  {trained:,} values ({dtypes}) in {len(header.shapes)} layers"]
    if header.recipe:
        recipe, targets = header.recipe, ", ".join(header.recipe.targets)
        drawn = f"{recipe.structure}, density {recipe.density:.6g}, seed {recipe.seed}, targets {targets}"
        lines.append(f"  drawn: {drawn}")
    return [*lines, f"  base {header.base_fingerprint[:12]}..."]

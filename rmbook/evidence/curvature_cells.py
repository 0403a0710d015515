"""The Hessian's norm before training under one mask: the cells of a grid of kind "curvature"."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.experiment import TOLERANCE, Experiment, look_at, prepare_model, write_result
from rmbook.landscape.curvature import hessian_norm
from rmbook.models.reuse import BaseModels


@dataclass(frozen=True)
class CurvatureCell:
    """Settings of a cell.

    Attributes:
        density: of the mask, in each target layer.
        seed: of the mask.
        backbone: see `rmbook.evidence.backbones.load_backbone`.
        examples: of the training data, the first ones; a product with the Hessian takes as long as three gradients.
        tolerance: of the residual; the norm's own error is about its square.
    """

    density: float
    seed: int = 0
    backbone: str = "vit"
    examples: int = 128
    tolerance: float = TOLERANCE


def measure_cell(cell: CurvatureCell) -> dict:
    """Return the settings and: trainable, loss, norm, eigenvalue (with its sign), products, converged, seconds."""
    start, backbone = time.perf_counter(), load_backbone(cell.backbone)
    settings = Experiment(1.0, density=cell.density, seed=cell.seed, backbone=cell.backbone)  # no step is taken
    landscape = look_at(prepare_model(backbone, settings), backbone, cell.examples)
    found = hessian_norm(landscape, tolerance=cell.tolerance)
    return asdict(cell) | {
        "trainable": landscape.size,
        "loss": landscape.loss(),
        "norm": found.norm,
        "eigenvalue": found.eigenvalue,
        "products": found.iterations,
        "converged": found.converged,
        "seconds": round(time.perf_counter() - start, 2),
    }


def perform_curvature(config: dict, work: Path, bases: BaseModels | None = None, stop: Callable | None = None) -> None:
    """Perform one cell of a sweep, see `rmbook.sweeps.driver`; an interrupted one begins anew.

    Args:
        config: the fields of `CurvatureCell`.
        work: folder for its result.json.
        bases, stop: not used.
    """
    write_result(work, measure_cell(CurvatureCell(**config)) | {"status": "completed"}, config)

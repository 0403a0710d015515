"""The Hessian's norm before training under one mask: the cells of a grid of kind "curvature"."""

import time
from dataclasses import asdict, dataclass

from rmbook.evidence.backbones import load_backbone
from rmbook.evidence.experiment import TOLERANCE, Experiment, look_at, prepare_model
from rmbook.landscape.curvature import hessian_norm


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

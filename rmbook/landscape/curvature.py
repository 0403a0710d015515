"""The norm of the Hessian of the mean loss over the trainable entries.

It takes Hessian-vector products (`Landscape.hessian_product`), so nothing of the Hessian's size, (n, n), is ever made.
"""

from dataclasses import dataclass

import numpy as np
import torch

from rmbook.checks import check_size
from rmbook.landscape.landscape import Landscape


@dataclass(frozen=True, eq=False)
class HessianNorm:
    """Result of `hessian_norm`.

    Attributes:
        eigenvalue: the one of largest magnitude, with its sign.
        residual: |H v - eigenvalue v| / |eigenvalue| for the unit vector v found. Some eigenvalue lies within
            residual * |eigenvalue| of the one found.
        iterations: Hessian-vector products taken.
        converged: whether the residual is at most the tolerance.
        vector: v, (n,), if asked for.
    """

    eigenvalue: float
    residual: float
    iterations: int
    converged: bool
    vector: torch.Tensor | None = None

    @property
    def norm(self) -> float:
        """The l2 norm of the Hessian, |eigenvalue|."""
        return abs(self.eigenvalue)


def hessian_norm(
    landscape: Landscape,
    point: torch.Tensor | None = None,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
    keep_vector: bool = False,
) -> HessianNorm:
    """Compute the l2 norm of the Hessian by power iteration, with the best pair from the last two vectors.

    Plain power iteration v -> H v / |H v| never settles between two eigenvalues of opposite sign and about the same
    size. Their two eigenvectors span the same plane as two successive vectors, so an eigenvalue problem of size 2 x 2
    there (Rayleigh and Ritz) tells them apart, at no further product.

    Args:
        landscape: whose Hessian.
        point: where, (n,); the model's own if None.
        tolerance: for the residual. An eigenvalue's error is at most the residual, mostly about its square. In float32
            rounding keeps the residual above about 1e-6.
        max_iterations: Hessian-vector products at most.
        seed: of the first vector, which is random.
        keep_vector: return the eigenvector, too.

    Raises:
        ValueError: a product is infinite or not a number; a setting is out of range.
    """
    check_size(max_iterations, "max_iterations")
    point = landscape.point() if point is None else point
    vector, before = landscape.random_vector(seed), None
    vector /= vector.norm()
    for iteration in range(1, max_iterations + 1):
        product = _product(landscape, vector, point)
        size = product.norm()
        if size == 0:  # for a random vector: the Hessian is zero
            return HessianNorm(0.0, 0.0, iteration, True, vector if keep_vector else None)
        eigenvalue, best, best_product = _ritz(before, (vector, product))
        residual = float((best_product - eigenvalue * best).norm()) / abs(eigenvalue) if eigenvalue else np.inf
        if residual <= tolerance:
            break
        before, vector = (vector, product), product / size
    return HessianNorm(eigenvalue, residual, iteration, residual <= tolerance, best if keep_vector else None)


def _product(landscape, vector, point) -> torch.Tensor:
    product = landscape.hessian_product(vector, point)
    if not product.isfinite().all():
        raise ValueError(
            "a Hessian-vector product is infinite or not a number: the loss cannot be differentiated twice here. Has "
            "training diverged? If not, compute in float64: Landscape(..., double=True)."
        )
    return product


def _ritz(before, last) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The pair of largest magnitude in the span of the last two vectors: eigenvalue, unit vector x, H x."""
    vector, product = last
    if before is not None:
        along = before[0] @ vector
        other = vector - along * before[0]  # orthogonal to the vector before
        length = other.norm()
        if length > torch.finfo(vector.dtype).eps ** 0.5:  # else both are the same, up to rounding
            other, other_product = other / length, (product - along * before[1]) / length
            cross = before[0] @ other_product
            square = [[before[0] @ before[1], cross], [cross, other @ other_product]]
            values, vectors = np.linalg.eigh(np.array([[float(entry) for entry in row] for row in square]))
            place = int(np.abs(values).argmax())
            a, b = vectors[:, place].tolist()
            return float(values[place]), a * before[0] + b * other, a * before[1] + b * other_product
    return float(vector @ product), vector, product

"""The Hessian of the mean loss over the trainable entries: its norm, largest eigenvalues and trace.

All from Hessian-vector products (`Landscape.hessian_product`), so nothing of the Hessian's size (n, n) is ever made.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from rmbook.checks import check_seed, check_size
from rmbook.landscape.landscape import Landscape

ENDS = {"magnitude": "LM", "largest": "LA", "smallest": "SA"}


@dataclass(frozen=True, eq=False)
class HessianNorm:
    """What `hessian_norm` found.

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
    """The l2 norm of the Hessian by power iteration, with the best pair from the last two vectors.

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


@dataclass(frozen=True, eq=False)
class TopEigenvalues:
    """What `top_eigenvalues` found.

    Attributes:
        eigenvalues: (k,) float64, from the wanted end of the spectrum inwards; fewer than k if not converged.
        residuals: |H v - eigenvalue v| for their unit vectors, (k,); each bounds its eigenvalue's error.
        products: Hessian-vector products taken.
        converged: whether all k were found to the tolerance.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    products: int
    converged: bool


def top_eigenvalues(
    landscape: Landscape,
    k: int = 5,
    which: str = "magnitude",
    point: torch.Tensor | None = None,
    *,
    tolerance: float = 1e-4,
    max_restarts: int = 100,
    seed: int = 0,
) -> TopEigenvalues:
    """The first k eigenvalues of the Hessian by Lanczos' method (scipy's `eigsh`); a small Hessian is made dense.

    It keeps 2k + 1 vectors, at least 20, of n float64 numbers on the CPU.

    Args:
        landscape: whose Hessian.
        k: how many.
        which: "magnitude", "largest" (most positive first) or "smallest" (most negative first).
        point: where, (n,); the model's own if None.
        tolerance: relative, for each eigenvalue's residual.
        max_restarts: of Lanczos' method, each some 2k products.
        seed: of the first vector, which is random.

    Raises:
        ValueError: k is not between 1 and n, or `which` is unknown; a product is infinite or not a number.
    """
    if check_size(k, "k") > landscape.size:
        raise ValueError(f"k must be at most {landscape.size}, the number of trainable entries, got {k}.")
    if which not in ENDS:
        raise ValueError(f"which must be one of {', '.join(ENDS)}, got {which!r}.")
    point = landscape.point() if point is None else point
    products = 0

    def multiply(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        product = _product(landscape, torch.from_numpy(np.array(vector.ravel())), point)
        return product.double().cpu().numpy()

    start, size, converged = landscape.random_vector(seed).double().cpu().numpy(), landscape.size, True
    if size <= max(2 * k + 1, 20):
        dense = np.stack([multiply(row) for row in np.eye(size)])
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
    elif not multiply(start).any():  # the Hessian is zero, which eigsh refuses
        return TopEigenvalues(np.zeros(k), np.zeros(k), products, True)
    else:
        operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, k, which=ENDS[which], v0=start, tol=tolerance, maxiter=max_restarts)
        except ArpackNoConvergence as partial:
            values, vectors, converged = partial.eigenvalues, partial.eigenvectors, False
    order = np.argsort({"magnitude": -np.abs(values), "largest": -values, "smallest": values}[which])[:k]
    pairs = [(values[place], vectors[:, place]) for place in order]
    residuals = [np.linalg.norm(multiply(vector) - value * vector) for value, vector in pairs]
    return TopEigenvalues(values[order], np.array(residuals), products, converged)


@dataclass(frozen=True)
class HessianTrace:
    """The trace of the Hessian, the estimate's standard error (0 if it is exact), and the products taken."""

    value: float
    standard_error: float
    products: int


def hessian_trace(
    landscape: Landscape, point: torch.Tensor | None = None, *, sketch: int = 10, probes: int = 20, seed: int = 0
) -> HessianTrace:
    """The trace of the Hessian by Hutch++ (Meyer et al., 2021): exact on a sketch of its range, estimated on the rest.

    Hutchinson's estimate of the rest is the mean of z' H z over random vectors z, of which every one has the trace as
    its mean. With `sketch=0` it is all. It is exact if n products are no more than 2 sketch + probes.

    Args:
        landscape: whose Hessian.
        point: where, (n,); the model's own if None.
        sketch: dimensions of the sketch, each 2 products and one vector of n numbers in memory; 0 or more.
        probes: random vectors for the rest, each a product; 2 or more, for the standard error.
        seed: of the random vectors.

    Raises:
        ValueError: a product is infinite or not a number; a setting is out of range.
    """
    if check_size(probes, "probes") < 2 or sketch < 0:
        raise ValueError(f"expected at least 2 probes and a sketch of 0 or more, got {probes} and {sketch}.")
    point = landscape.point() if point is None else point
    size, products = landscape.size, 2 * sketch + probes
    if size <= products:
        exact = sum(
            float(_product(landscape, row, point) @ row) for row in torch.eye(size, dtype=point.dtype).to(point)
        )
        return HessianTrace(exact, 0.0, size)
    generator = torch.Generator().manual_seed(check_seed(seed) % 2**63)

    def signs() -> torch.Tensor:
        return (torch.randint(0, 2, (size,), generator=generator) * 2 - 1).to(point)

    basis, known = point.new_zeros(size, 0), 0.0
    if sketch:
        basis = torch.linalg.qr(torch.stack([_product(landscape, signs(), point) for _ in range(sketch)], dim=1))[0]
        known = sum(float(_product(landscape, column, point) @ column) for column in basis.T)
    samples = []
    for _ in range(probes):
        probe = signs()
        probe -= basis @ (basis.T @ probe)
        samples.append(float(_product(landscape, probe, point) @ probe))
    return HessianTrace(known + float(np.mean(samples)), float(np.std(samples, ddof=1)) / probes**0.5, products)


def dense_hessian(landscape: Landscape, point: torch.Tensor | None = None) -> torch.Tensor:
    """The whole Hessian, (n, n), one product a row: for small n, to teach and to test."""
    point = landscape.point() if point is None else point
    return torch.stack([_product(landscape, row, point) for row in torch.eye(landscape.size).to(point)])


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

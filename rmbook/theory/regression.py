"""Random masks on overparameterised linear regression: the model of section 5 of the paper, exactly.

Equation (1) with the pretrained weights merged into the targets is L(w) = |y - X M w|^2 / (2n), where X (n, d) has
many more columns than rows and M = diag(m_1, ..., m_d) has i.i.d. Bernoulli(p) entries. (The paper writes
Binom(p).) Everything that its analysis needs follows from the n x n Gram matrix X M X' and from the chosen columns of
X, so nothing here ever makes a (d, d) matrix, or a copy of X.

Functions take the masks of a whole grid of densities and seeds (`ColumnMasks`) and return one result for each of
them: `masks.shape` is the first part of every result's shape. All numbers are float64.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rmbook.checks import check_density, check_scale, check_seed, check_size
from rmbook.masks.sample import keyed_stream, sample_mask

COLUMN_BLOCK = 1024  # columns copied at a time: 512 KiB for 64 examples, which stays in cache
MASK_NAME = "rmbook.regression"  # a key of random numbers, whatever this module is called: never change it
SHARED_MASKS = 8  # masks whose Gram matrices are made together where that pays: their bits fill one byte
SHARE_FROM_WIDTH = 2**16  # below this many columns, the sets of columns would be too small to multiply efficiently


@dataclass(frozen=True, eq=False)
class ColumnMasks:
    """Masks M = diag(m_1, ..., m_d) of section 5.1, one for each pair of a density and a seed; drawn when asked for.

    A seed decides everything random about its run: the mask, the batches, the noise. Masks of one seed at two
    densities come from the same random numbers, so compare densities on common seeds but do not count them as
    independent. In the book: `eq-masked-regression` in masked_linear_regression.

    Attributes:
        width: d, the number of columns of X; at least 1.
        densities: p, a number in [0, 1] or an array of them.
        seeds: an integer or an array of them.
    """

    width: int
    densities: np.ndarray
    seeds: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "width", check_size(self.width, "width, the number of columns of X,"))
        for name, check, dtype in (("densities", check_density, np.float64), ("seeds", check_seed, object)):
            values = np.array(getattr(self, name), dtype=object)
            checked = np.array([check(value) for value in values.flat], dtype=dtype)
            object.__setattr__(self, name, checked.reshape(values.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the densities followed by the shape of the seeds: () when both are plain numbers."""
        return self.densities.shape + self.seeds.shape

    def density(self, index: tuple[int, ...]) -> float:
        """Return the density of one mask."""
        return float(self.densities[index[: self.densities.ndim]])

    def columns(self, index: tuple[int, ...]) -> np.ndarray:
        """Return the sorted positions of the columns that one mask chooses, (k,); this costs O(k), not O(d)."""
        seed = self.seeds[index[self.densities.ndim :]]
        return sample_mask((1, self.width), self.density(index), seed, MASK_NAME).positions.numpy()

    def dense(self) -> np.ndarray:
        """Return the diagonals m of all masks, (*shape, d) bool: for teaching and tests; this costs O(d) a mask."""
        diagonals = np.zeros((*self.shape, self.width), dtype=bool)
        for index in np.ndindex(self.shape):
            diagonals[(*index, self.columns(index))] = True
        return diagonals

    def generator(self, index: tuple[int, ...], purpose: str) -> np.random.Generator:
        """Return random numbers that depend on the mask's seed and on what they are for, not on its density."""
        return seeded_generator(self.seeds[index[self.densities.ndim :]], purpose)


def seeded_generator(seed: int, purpose: str) -> np.random.Generator:
    """Return random numbers that depend on a seed (any integer) and on what they are for."""
    return np.random.Generator(keyed_stream(f"rmbook {purpose} 1\0{check_seed(seed)}"))


def sample_regression(
    n: int, d: int, seed: int, *, entry_bound: float = 1.0, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a random problem that meets the assumptions of Theorem 5.1 and Proposition 5.3: y = X w* + noise.

    In the book: `ch-masked-linear-regression` in masked_linear_regression.

    Args:
        n: examples, at least 1.
        d: features, at least 1.
        seed: any integer.
        entry_bound: r; the entries of X are uniform in [0, r].
        noise: sigma, the standard deviation of the Gaussian noise; in units of y.

    Returns:
        The features X (n, d), stored column by column, which makes taking columns fast; the targets y (n,); and the
        true weights w* (d,), normal with variance 1 / d. All float64.
    """
    n, d = check_size(n, "n"), check_size(d, "d")
    entry_bound, noise = check_scale(entry_bound, "entry_bound"), check_scale(noise, "noise")
    generator = seeded_generator(seed, "regression")
    features = generator.random((d, n)).T
    features *= entry_bound
    true_weights = generator.standard_normal(d) / d**0.5
    return features, features @ true_weights + noise * generator.standard_normal(n), true_weights


def loss(features: ArrayLike, targets: ArrayLike, weights: ArrayLike, masks=1.0, pretrained=0.0) -> np.ndarray:
    """Return the loss of equation (1): |y - X (w~ + M w)|^2 / (2n).

    In the book: `eq-masked-regression` in masked_linear_regression.

    Args:
        features: X, (n, d).
        targets: y, (n,).
        weights: w, (..., d).
        masks: the diagonal m of M, broadcastable to (..., d); `ColumnMasks.dense` makes it.
        pretrained: w~, (d,) or 0. The other functions take 0: merge it into the targets, y - X w~.

    Returns:
        The loss, (...), in squared units of y.
    """
    features = check_features(features)
    weights = np.asarray(weights, dtype=np.float64)
    if np.any(np.not_equal(masks, 1.0)) or np.any(pretrained):  # a copy of a long path costs more than the product
        weights = pretrained + np.multiply(masks, weights)
    # As two matrices, which is several times faster than many small products.
    residual = weights.reshape(-1, weights.shape[-1]) @ features.T - check_targets(targets, features)
    return (np.einsum("kn,kn->k", residual, residual) / (2 * len(features))).reshape(weights.shape[:-1])[()]


def gram(features: ArrayLike, masks: ColumnMasks) -> np.ndarray:
    """Return the Gram matrices X M X' from the chosen columns alone, (*masks.shape, n, n).

    M X' X M (d, d) has the eigenvalues of X M X' and d - n zeros. A mask costs O(n^2 k) for its k columns, or less in a
    large grid of dense masks, which share the work for the columns that they share.
    In the book: `lem-gram` in masked_linear_regression.
    """
    features = check_features(features, masks)
    n, d = features.shape
    result = np.zeros((math.prod(masks.shape), n, n))
    indices = list(np.ndindex(masks.shape))
    for start in range(0, len(indices), SHARED_MASKS):
        together = [masks.columns(index) for index in indices[start : start + SHARED_MASKS]]
        if d < SHARE_FROM_WIDTH or sum(map(len, together)) < d / 2:
            for place, columns in enumerate(together, start):
                result[place] = _gram_of(features, columns)
            continue
        # Sort the columns by which of these masks choose them; each of the 2^8 sets is multiplied once.
        chosen_by = np.zeros(d, dtype=np.uint8)
        for bit, columns in enumerate(together):
            chosen_by[columns] |= np.uint8(1 << bit)
        order = np.argsort(chosen_by, kind="stable")
        bounds = np.searchsorted(chosen_by[order], np.arange(2**SHARED_MASKS + 1))
        for pattern in range(1, 2**SHARED_MASKS):
            part = _gram_of(features, order[bounds[pattern] : bounds[pattern + 1]])
            for bit in range(len(together)):
                if pattern >> bit & 1:
                    result[start + bit] += part
    return result.reshape(*masks.shape, n, n)


def gram_eigenvalues(features: ArrayLike, masks: ColumnMasks) -> np.ndarray:
    """Return the n largest eigenvalues lambda_i of M X' X M (section 5.1), in falling order: (*masks.shape, n).

    Their error is about 1e-15 lambda_1, so an exact zero comes out as 0 or as about that.
    In the book: `lem-gram` in masked_linear_regression.
    """
    return np.maximum(np.linalg.eigvalsh(gram(features, masks))[..., ::-1], 0.0)


def largest_stable_rate(features: ArrayLike, masks: ColumnMasks) -> np.ndarray:
    """Return 2n / lambda_1, (*masks.shape): below it, and only there, gradient descent converges from every start.

    This is Proposition 5.2. The rate is infinite where the mask leaves nothing to train.
    In the book: `thm-stable-step` in how_large_a_step.
    """
    largest = gram_eigenvalues(features, masks)[..., 0]
    with np.errstate(divide="ignore"):
        return 2 * np.shape(features)[0] / largest


def masked_svd(features: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the nonzero singular values of X M and their vectors, on the chosen columns: U (n, r), s (r,), V (k, r).

    X M = U diag(s) V' and lambda_i = s_i^2. A value counts as zero below s_1 max(n, k) 2^-52, as in
    `numpy.linalg.matrix_rank`. This costs O(n k min(n, k)), and copies the chosen columns.
    In the book: `tool-pseudo-inverse` in proofs.
    """
    if len(columns) == 0:
        return np.empty((len(features), 0)), np.empty(0), np.empty((0, 0))
    left, values, right = np.linalg.svd(take_columns(features, columns), full_matrices=False)
    rank = int((values > values[0] * max(len(features), len(columns)) * np.finfo(float).eps).sum())
    return left[:, :rank], values[:rank], right[:rank].T


def take_columns(features: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return X[:, columns], (n, k), in the order in which X is stored."""
    if features.flags.f_contiguous:
        return features.T.take(columns, axis=0).T  # whole columns, each in one piece
    return features.take(columns, axis=1)


def check_features(features: ArrayLike, masks: ColumnMasks | None = None) -> np.ndarray:
    """Return X as float64 (the same memory if it is float64 already), or raise ValueError.

    It must be finite, (n, d) with n and d at least 1, and have the masks' width.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or features.size == 0:
        raise ValueError(f"X must have the shape (n, d) with n and d at least 1, got {features.shape}.")
    size = 64 * COLUMN_BLOCK  # by blocks: no (n, d) array of truth values
    if not all(np.isfinite(features[:, start : start + size]).all() for start in range(0, features.shape[1], size)):
        raise ValueError("X has entries that are infinite or not a number; remove or replace them.")
    if masks is not None and masks.width != features.shape[1]:
        raise ValueError(f"the masks are for {masks.width} columns, but X has {features.shape[1]}.")
    return features


def check_targets(targets: ArrayLike, features: np.ndarray) -> np.ndarray:
    """Return y as float64, or raise ValueError if it is not finite or not one number for each example."""
    return check_vector(targets, len(features), "y, one number for each row of X,")


def check_vector(values: ArrayLike, length: int, name: str) -> np.ndarray:
    """Return a vector of the given length as float64, or raise ValueError."""
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (length,) or not np.isfinite(values).all():
        raise ValueError(f"{name} must be {length} finite numbers, got {values!r} of shape {values.shape}.")
    return values


def _gram_of(features: np.ndarray, columns: np.ndarray) -> np.ndarray:
    total = np.zeros((len(features), len(features)))
    for start in range(0, len(columns), COLUMN_BLOCK):
        block = take_columns(features, columns[start : start + COLUMN_BLOCK])
        total += block @ block.T
    return total

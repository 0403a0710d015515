"""Random masks: exact Bernoulli positions of a matrix in O(number of positions) time and memory.

A mask in the paper (Xu & Zhang 2024, section 3.1) is a 0/1 matrix with i.i.d. Bernoulli(density) entries.
Drawing one uniform number for every entry costs O(out * in); here only the *gaps* between chosen entries are
drawn. Gaps of i.i.d. Bernoulli trials are geometric, so their running sum gives exactly the same distribution
at a cost that depends on how many entries are chosen, not on how many there are.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
import torch

from rmbook.checks import check_density, check_seed, check_shape


def positions_dtype(numel: int) -> torch.dtype:
    """Return the type of flat positions in a matrix: int32 while it can hold them."""
    return torch.int32 if numel <= 2**31 else torch.int64


def ratio_to_density(ratio: float, total_parameters: int, target_parameters: int) -> float:
    """Density inside the target matrices that trains a given share of the whole model.

    The paper's "Params" column counts trainable entries over **all** parameters of the model, while masks live
    only in some matrices, so density = ratio * total_parameters / target_parameters.

    Args:
        ratio: wanted trainable entries / all parameters of the model, in [0, 1].
        total_parameters: number of parameters of the model (tied ones counted once).
        target_parameters: number of entries of the target matrices.

    Raises:
        ValueError: if `ratio` is not in [0, 1] or is larger than the targets can hold.

    Example:
        >>> ratio_to_density(0.001, total_parameters=125_000_000, target_parameters=14_000_000)  # masks in few matrices
        0.008928571428571428
    """
    if isinstance(ratio, bool) or not isinstance(ratio, Real):
        raise ValueError(f"ratio must be a number in [0, 1], got {ratio!r} of type {type(ratio).__name__}.")
    ratio = float(ratio)
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio is trainable / all parameters and must lie in [0, 1], got {ratio}.")
    if not 0 < target_parameters <= total_parameters:
        raise ValueError(
            f"target_parameters must be between 1 and total_parameters, got {target_parameters} of {total_parameters}."
        )
    if ratio * total_parameters > target_parameters:
        raise ValueError(
            f"ratio {ratio:g} asks for {ratio * total_parameters:,.0f} trainable entries, but the targets hold only "
            f"{target_parameters:,} of the model's {total_parameters:,} parameters. "
            f"The largest possible ratio here is {target_parameters / total_parameters:.6g}; "
            "lower the ratio or name more targets."
        )
    return ratio * total_parameters / target_parameters


def density_to_ratio(density: float, total_parameters: int, target_parameters: int) -> float:
    """Inverse of `ratio_to_density`: the expected share of all parameters that a density trains.

    Example:
        >>> density_to_ratio(1.0, total_parameters=100, target_parameters=25)
        0.25
    """
    if not 0 < target_parameters <= total_parameters:
        raise ValueError(
            f"target_parameters must be between 1 and total_parameters, got {target_parameters} of {total_parameters}."
        )
    return check_density(density) * target_parameters / total_parameters


@dataclass(frozen=True, eq=False)
class Mask:
    """Which entries of an (out, in) matrix are trained.

    Attributes:
        shape: (out, in).
        positions: flat row-major positions, sorted and unique, (nnz,); int32, or int64 where the matrix has more
            than 2**31 entries.

    Example:
        >>> mask = Mask.checked((2, 3), torch.tensor([1, 5]))
        >>> mask.rows, mask.columns
        (tensor([0, 1], dtype=torch.int32), tensor([1, 2], dtype=torch.int32))
        >>> mask.dense(torch.int64)
        tensor([[0, 1, 0],
                [0, 0, 1]])
    """

    shape: tuple[int, int]
    positions: torch.Tensor

    @classmethod
    def checked(cls, shape: tuple[int, int], positions: torch.Tensor) -> "Mask":
        """Return a mask at positions that come from outside; raise ValueError if they are not as described above."""
        shape, numel = check_shape(shape), shape[0] * shape[1]
        if positions.dim() != 1 or positions.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"positions must be an int32 or int64 vector, got {positions.dtype} of shape {tuple(positions.shape)}."
            )
        positions = positions.contiguous()
        if positions.numel() and not (0 <= int(positions.min()) and int(positions.max()) < numel):
            raise ValueError(f"positions must lie in [0, {numel}), the entries of a matrix of shape {shape}.")
        if not bool((positions.diff() > 0).all()):
            raise ValueError("positions must rise: sorted, and each only once.")
        return cls(shape, positions.to(positions_dtype(numel)))

    @property
    def nnz(self) -> int:
        """Number of chosen entries."""
        return int(self.positions.numel())

    @property
    def numel(self) -> int:
        """Number of entries of the matrix."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def rows(self) -> torch.Tensor:
        """Output index of each position, (nnz,)."""
        return torch.div(self.positions, self.shape[1], rounding_mode="floor")

    @cached_property
    def columns(self) -> torch.Tensor:
        """Input index of each position, (nnz,) int32: with `row_starts` the CSR form of the mask."""
        return torch.remainder(self.positions, self.shape[1]).to(torch.int32)

    @cached_property
    def row_starts(self) -> torch.Tensor:
        """CSR row pointer: row r owns positions[row_starts[r]:row_starts[r + 1]]; (out + 1,) int32."""
        starts = torch.arange(self.shape[0] + 1, device=self.positions.device) * self.shape[1]  # int64: may pass 2**31
        return torch.searchsorted(self.positions.long(), starts).to(torch.int32)

    def to(self, device: torch.device | str) -> "Mask":
        """Return the mask with its positions on `device`; itself if they are there already."""
        positions = self.positions.to(device)
        return self if positions is self.positions else Mask(self.shape, positions)

    def dense(self, dtype: torch.dtype = torch.bool) -> torch.Tensor:
        """The mask as an (out, in) matrix of zeros and ones: for teaching and tests, it costs O(out * in)."""
        matrix = torch.zeros(self.numel, dtype=dtype, device=self.positions.device)
        matrix[self.positions.long()] = 1
        return matrix.view(self.shape)

    def digest(self) -> str:
        """SHA-256 of shape and positions: two masks are equal exactly when their digests are."""
        positions = self.positions.cpu().to(torch.int64).numpy().astype("<i8")
        return hashlib.sha256(repr(tuple(self.shape)).encode() + positions.tobytes()).hexdigest()


def sample_mask(shape: tuple[int, int], density: float, seed: int, name: str) -> Mask:
    """Draw i.i.d. Bernoulli(density) positions of an (out, in) matrix (section 3.1 of the paper).

    The draw depends on (seed, name, shape, density) alone: not on the order in which layers are visited, on the
    device, on the number of threads or on any global random state. Different names give independent masks.

    Args:
        shape: (out, in), both at least 1.
        density: probability that an entry is chosen, in [0, 1].
        seed: any integer.
        name: the parameter's name in its model, for example "layers.0.q_proj.weight".

    Raises:
        ValueError: for a density outside [0, 1], a seed that is no integer or a shape that is no matrix.

    Example:
        >>> mask = sample_mask((4, 5), density=0.3, seed=0, name="q_proj.weight")
        >>> mask.positions  # on average, 6 of 20
        tensor([ 0,  3,  4,  6,  8,  9, 13, 16, 18], dtype=torch.int32)
        >>> mask.digest() == sample_mask((4, 5), density=0.3, seed=0, name="q_proj.weight").digest()
        True
    """
    shape, density, seed = check_shape(shape), check_density(density), check_seed(seed)
    raw = keyed_stream(f"rmbook mask 1\0{seed}\0{name}")
    return Mask(shape, _bernoulli_positions(math.prod(shape), density, raw))


def keyed_stream(text: str) -> np.random.Philox:
    """Return a stream of random bits that depends on `text` alone.

    The generator counts, and a hash of the text is its key. NumPy guarantees the raw stream of Philox across versions
    (`random_raw`), and that alone: not what its `Generator` makes of it.
    """
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))


def _bernoulli_positions(numel: int, density: float, raw: np.random.BitGenerator) -> torch.Tensor:
    """Positions of successes among `numel` Bernoulli(density) trials, by geometric gaps.

    The number of failures before the next success is floor(log(1 - U) / log(1 - density)) for uniform U. U has
    53 random bits, so probabilities are exact to about 1e-16; a comparison `rand < density` in float32 is off by
    +1.3 % at density 1e-6, and the paper's `rand > 1 - density` by -4.6 %.
    """
    dtype = positions_dtype(numel)
    if density == 0.0:
        return torch.empty(0, dtype=dtype)
    if density == 1.0:
        return torch.arange(numel, dtype=dtype)
    log_failure = math.log1p(-density)
    chunks, last = [], -1
    while last < numel - 1:
        expected = (numel - 1 - last) * density
        count = int(expected + 4 * math.sqrt(expected)) + 16  # one round is nearly always enough
        bits = raw.random_raw(count)
        bits >>= np.uint64(11)  # 53 random bits
        uniform = torch.from_numpy(bits.view(np.int64)).to(torch.float64)  # then in place: fewer allocations
        # torch's log1p gives the same bits on every instruction set it supports; NumPy's does not.
        gaps = uniform.mul_(-(2.0**-53)).log1p_().div_(log_failure).clamp_(max=numel)  # clamp: no int64 overflow
        positions = gaps.to(torch.int64).add_(1)
        positions[0] += last
        positions.cumsum_(0)
        last = int(positions[-1])
        chunks.append(positions[: torch.searchsorted(positions, numel)].to(dtype))
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

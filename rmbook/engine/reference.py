"""The masked layer in its dense form: slow, plain, and differentiable any number of times."""

import torch
import torch.nn.functional as F

from rmbook.masks.sample import Mask


def masked_linear_reference(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, mask: Mask, values: torch.Tensor
) -> torch.Tensor:
    """y = x (W + S)^T + b with a dense S, differentiable any number of times.

    The reference that the fast layer is tested against, and the form to use for curvature (Hessian-vector
    products), which the fast layer refuses. It costs a dense copy and a dense gradient.

    Args:
        input: (..., in).
        weight: (out, in), the unmasked weight W.
        bias: (out,) or None.
        mask: positions of S in an (out, in) matrix.
        values: (nnz,) entries of S at the mask's positions.

    Returns:
        (..., out).

    Example:
        >>> mask = Mask.checked((2, 2), torch.tensor([3]))  # the entry in the lower right corner
        >>> masked_linear_reference(torch.tensor([1.0, 2.0]), torch.eye(2), None, mask, torch.tensor([10.0]))
        tensor([ 1., 22.])
    """
    delta = torch.zeros(mask.numel, dtype=values.dtype, device=values.device)
    delta = delta.index_put((mask.positions.long(),), values).view(mask.shape)  # (out, in)
    return F.linear(input, (weight + delta).to(weight.dtype), bias)  # rounded once, as the fast layer does

"""How alike two representations of the same cells are, whatever their channels.

Shapes: `n` cells (rows), `C1, C2` channels.
"""

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment with the unbiased estimator of HSIC.

    `CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` with `K = X X'`, `L = Y Y'`; Kornblith et al. 2019, section 3,
    https://arxiv.org/abs/1905.00414. With zero diagonals in K and L,

    `HSIC(K, L) = (tr(K L) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 / (n-2) 1'K L1) / (n (n-3))`,

    the estimator of Song et al. 2012 (https://jmlr.org/papers/v13/song12a.html), which Nguyen et al. 2021
    (https://arxiv.org/abs/2010.15327) put into CKA: the plain one grows with channels over cells, even between
    unrelated features, so that coarse levels would look alike. Does not change when either side is rotated, scaled or
    shifted.

    Args:
        x: (n, C1) one row a cell, n >= 4.
        y: (n, C2) the same cells.

    Returns:
        Scalar in float64: 1 for the same features up to rotation and scale, about 0 for unrelated ones, and a little
        below 0 by chance. NaN where one side is constant.

    Raises:
        ValueError: not two matrices of the same number of rows, or fewer than 4 rows.
    """
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 4:
        raise ValueError(f'x and y must be (n, C) with the same n >= 4, got {tuple(x.shape)} and {tuple(y.shape)}.')
    with torch.autocast(x.device.type, enabled=False):
        k, other = (_gram(value) for value in (x, y))
        own = torch.stack([_hsic(k, k), _hsic(other, other)])
        return torch.where((own > 0).all(), _hsic(k, other) / own.clamp(min=0).prod().sqrt(), torch.nan)


def _gram(value: Tensor) -> Tensor:
    """(n, C) -> (n, n) inner products of centred rows, each side scaled to the same size, with a zero diagonal."""
    value = value.double() - value.double().mean(dim=0)
    value = value / value.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return (value @ value.T).fill_diagonal_(0)


def _hsic(k: Tensor, other: Tensor) -> Tensor:
    n = len(k)
    sums = k.sum(dim=0), other.sum(dim=0)
    trace, product = (k * other).sum(), sums[0] @ sums[1]
    return (trace + sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * product) / (n * (n - 3))

"""Min-max normalisation of feature maps to [0, 1].

Shapes: `N` images, `C` channels, `H, W` cells.
"""

from typing import Literal

import torch
from torch import Tensor

Scope = Literal['image', 'batch', 'channel']
AXES: dict[str, tuple[int, ...]] = {'image': (1, 2, 3), 'batch': (0, 1, 2, 3), 'channel': (2, 3)}


def min_max(x: Tensor, *, scope: Scope = 'image', detach_extremes: bool = False, eps: float = 1e-6) -> Tensor:
    """Rescale a feature map so that its smallest value is 0 and its largest is 1.

    `(x - min x) / (max x - min x)`, *de Rijk et al. 2022 (psi), https://arxiv.org/abs/2211.13133*.
    Not published: over which axes, and what becomes of a constant map. This project's choice: one image over
    (C, H, W), which keeps the proportions of the channels and is the same in one process as in several; a map whose
    range is at most `eps` has no structure and becomes 0 without gradient, where a small divisor would send a
    gradient of 1 / eps into a dead feature.

    Args:
        x: (N, C, H, W), any range.
        scope: what shares its extremes: 'image' over (C, H, W), 'channel' over (H, W) of one image and channel,
            'batch' over (N, C, H, W). 'batch' depends on what else is in the batch of this process, so two
            processes do not equal one with the whole batch.
        detach_extremes: treat minimum and maximum as constants. Otherwise the two extreme elements of each map
            receive the gradient of the whole map's offset and scale.
        eps: largest range that counts as constant, in the units of `x`.

    Returns:
        (N, C, H, W), in [0, 1].

    Raises:
        ValueError: `x` has not four axes, or `scope` is unknown.
    """
    if x.dim() != 4:
        raise ValueError(f'x must have the shape (N, C, H, W), got {tuple(x.shape)}.')
    low, scale = offset_and_scale(x, scope=scope, detach_extremes=detach_extremes, eps=eps)
    return (x - low) * scale


def offset_and_scale(x: Tensor, *, scope: Scope, detach_extremes: bool, eps: float) -> tuple[Tensor, Tensor]:
    """The two numbers a map is rescaled by: minimum and 1 / range (0 where the map is constant)."""
    if scope not in AXES:
        raise ValueError(f'scope must be one of {sorted(AXES)}, got {scope!r}.')
    source = x.detach() if detach_extremes else x
    low = source.amin(AXES[scope], keepdim=True)
    extent = source.amax(AXES[scope], keepdim=True) - low
    flat = extent <= eps
    # the inner `where` keeps 1 / 0 out of the backward pass, where 0 * inf would be NaN
    scale = torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, extent))
    return low, scale


class Normaliser:
    """`min_max` with its settings, or nothing at all.

    Args:
        scope: as in `min_max`; None leaves maps as they are.
        detach_extremes: as in `min_max`.
        eps: as in `min_max`; >= 0.

    Raises:
        ValueError: `scope` is unknown or `eps` negative.
    """

    def __init__(self, scope: Scope | None, *, detach_extremes: bool = False, eps: float = 1e-6) -> None:
        if scope is not None and scope not in AXES:
            raise ValueError(f'normalize must be None or one of {sorted(AXES)}, got {scope!r}.')
        if eps < 0:
            raise ValueError(f'eps must be >= 0, got {eps}.')
        self.scope, self.detach_extremes, self.eps = scope, detach_extremes, eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise one (N, C, H, W) map."""
        if self.scope is None:
            return x
        return min_max(x, scope=self.scope, detach_extremes=self.detach_extremes, eps=self.eps)

"""Min-max normalisation of feature maps to [0, 1].

Shapes: `N` images, `C` channels, `H, W` cells.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmkd.functional.reading import read_is_free

Scope = Literal['image', 'batch', 'channel']
Part = tuple[slice, slice]  # of images and of channels
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
    check_scope(scope)
    source = x.detach() if detach_extremes else x
    low = source.amin(AXES[scope], keepdim=True)
    return (x - low) / divisor_of(source.amax(AXES[scope], keepdim=True) - low, eps)


def divisor_of(extent: Tensor, eps: float) -> Tensor:
    """The range of a map; infinite where the map is constant, so that the quotient is 0 and its gradient too."""
    return torch.where(extent <= eps, math.inf, extent)


def check_scope(scope: str | None, name: str = 'scope') -> None:
    """Refuse an unknown scope."""
    if scope not in AXES:
        raise ValueError(f'{name} must be one of {sorted(AXES)}, got {scope!r}.')


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
        if scope is not None:
            check_scope(scope, name='normalize')
        if eps < 0:
            raise ValueError(f'eps must be >= 0, got {eps}.')
        self.scope, self.detach_extremes, self.eps = scope, detach_extremes, eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise one (N, C, H, W) map."""
        if self.scope is None:
            return x
        return min_max(x, scope=self.scope, detach_extremes=self.detach_extremes, eps=self.eps)


@dataclass
class Rescaling:
    """`min_max` of a map that is worked on part by part, and the way back of its gradient by hand.

    Args:
        normaliser: scope and treatment of the extremes.
        extremes: minimum and maximum of each plane, (N, C, 1, 1) each.
        shared: minimum and maximum of what shares them, expanded to (N, C, 1, 1).
        divisor: (N, C, 1, 1) range, infinite where constant.
        sums: (2, N, C, 1, 1) sums of the gradient, and of gradient times normalised map.
    """

    normaliser: Normaliser
    extremes: tuple[Tensor, Tensor]
    shared: tuple[Tensor, Tensor]
    divisor: Tensor
    sums: Tensor

    @classmethod
    def of(cls, x: Tensor, normaliser: Normaliser) -> 'Rescaling | None':
        """Rescaling of a map, None where the maps are compared as they are."""
        if normaliser.scope is None:
            return None
        axes = AXES[normaliser.scope]
        extremes = low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        shared = low.amin(axes, keepdim=True).expand_as(low), high.amax(axes, keepdim=True).expand_as(high)
        divisor = divisor_of(shared[1] - shared[0], normaliser.eps)
        return cls(normaliser, extremes, shared, divisor, torch.stack((torch.zeros_like(low),) * 2))

    def apply(self, value: Tensor, part: Part, out: Tensor) -> None:
        """Normalise a part of the map."""
        torch.sub(value, self.shared[0][part], out=out).div_(self.divisor[part])

    def pull_back(self, gradient: Tensor, normalised: Tensor, part: Part) -> Tensor:
        """Gradient with respect to the part as it came; its share of the extremes' gradient is noted."""
        if not self.normaliser.detach_extremes:
            self.sums[0][part] = gradient.sum((2, 3), keepdim=True)
            self.sums[1][part] = (gradient * normalised).sum((2, 3), keepdim=True)
        return gradient / self.divisor[part]

    def add_gradient_of_extremes(self, gradient: Tensor, x: Tensor) -> None:
        """Add to `gradient`, in place, what reaches the extreme elements through minimum and range.

        With z = (x - low) / (high - low): dz/dlow = (z - 1) / (high - low), dz/dhigh = -z / (high - low). Elements
        that share an extreme share its gradient.
        """
        if self.normaliser.detach_extremes:
            return
        axes = AXES[self.normaliser.scope]
        total, along = self.sums.sum([axis + 1 for axis in axes], keepdim=True)
        for of_plane, of_group, share in zip(self.extremes, self.shared, (along - total, -along), strict=True):
            planes = _planes_to_search(of_plane, of_group)
            hits = (x[planes] == of_group[planes]).to(x.dtype)
            count = torch.zeros_like(of_plane)
            count[planes] = hits.sum((-2, -1), keepdim=True)
            each = share / count.sum(axes, keepdim=True) / self.divisor
            gradient[planes] += hits * each[planes]


def _planes_to_search(of_plane: Tensor, of_group: Tensor) -> Any:
    """Index of the planes that hold an extreme, which are few; all of them where to ask would wait for a GPU."""
    return (of_plane == of_group)[..., 0, 0].nonzero(as_tuple=True) if read_is_free(of_plane) else ...

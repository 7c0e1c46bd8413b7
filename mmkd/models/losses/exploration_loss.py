"""Inheritance and exploration: one part of the student's channels follows the teacher, the other goes its own way.

Shapes: `N` images, `B` channels of a factor, `C` of the teacher, `H, W` cells, `D = B H W`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.models.losses.base import check_pair
from mmkd.models.losses.checks import at_least_float32, check_weight, refuse_unused
from mmkd.models.losses.reconstruction import unpack_coded
from mmkd.models.losses.relative import relative_error
from mmkd.registry import MODELS


@MODELS.register_module()
class ExplorationLoss(nn.Module):
    """Factor distances of `ExplorationCoder` and `FactorAutoEncoder`, and error of the teacher's reconstruction.

    `inherit_weight * d(f_t, f_I) - explore_weight * d(f_t, f_E) + reconstruction_weight * relative_error(rec, F_t)`
    with `d(x, y) = mean |x / ||x|| - y / ||y|||` over the D entries of an image; Huang et al. 2021 (IE-KD)
    (https://arxiv.org/abs/2107.00181). `d <= 2 / sqrt(D)`: it shrinks with the map, so that its default form here is
    `sqrt(D) d`, in [0, 2]; the loss is therefore >= -2 `loss_weight * explore_weight`.

    Args:
        inherit_weight: scale of the pull of the inheriting part.
        explore_weight: scale of the push of the exploring part.
        reconstruction_weight: scale of the auto-encoder's own term, > 0. In the paper it is trained beforehand.
        explore: 'l1' pushes the factor away; 'cosine' adds `explore_weight * mean |cos(f_t, f_E)|` over the images
            instead, which asks for independence and not for the opposite (both forms are in the authors' code).
        scale_free: multiply `d` by sqrt(D); False is the paper's.
        loss_weight: scale of the whole, >= 0.

    Raises:
        ValueError: an unknown form or a weight out of range.
    """

    def __init__(
        self,
        *,
        inherit_weight: float = 0.5,
        explore_weight: float = 0.1,
        reconstruction_weight: float = 1.0,
        explore: Literal['l1', 'cosine'] = 'l1',
        scale_free: bool = True,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if explore not in ('l1', 'cosine'):
            raise ValueError(f"explore must be 'l1' or 'cosine', got {explore!r}.")
        if min(inherit_weight, explore_weight) < 0 or not reconstruction_weight > 0:
            raise ValueError(
                'inherit_weight and explore_weight must be >= 0 and reconstruction_weight > 0, '
                f'got {inherit_weight}, {explore_weight} and {reconstruction_weight}.'
            )
        self.inherit_weight, self.explore_weight = inherit_weight, explore_weight
        self.reconstruction_weight = reconstruction_weight
        self.explore, self.scale_free = explore, scale_free
        self.loss_weight = check_weight(loss_weight)

    def forward(
        self,
        preds_S: Sequence[Tensor],
        preds_T: Sequence[Tensor],
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """All terms, mean over the images.

        Args:
            preds_S: (N, B, H, W) factors of the inheriting and of the exploring part.
            preds_T: the teacher's (N, B, H, W) factor, its (N, C, H, W) reconstruction and feature.
            mask: not used; must be None.
            labels: not used; must be None.
            avg_factor: not used; must be None.

        Returns:
            Scalar, at least float32; may be negative, within the bound above.

        Raises:
            TypeError: a side is not what its connector gives.
            ValueError: shapes do not fit, or an unused argument is given.
        """
        refuse_unused(self, mask=mask, labels=labels, avg_factor=avg_factor)
        if isinstance(preds_S, Tensor) or len(preds_S) != 2:
            raise TypeError(f'preds_S must be the two factors of ExplorationCoder, got {type(preds_S).__name__}.')
        check_pair(*preds_S)
        factor, reconstruction, feature = unpack_coded(preds_T, preds_S[0].shape)
        with torch.autocast(factor.device.type, enabled=False):
            inherit, explore = (at_least_float32(part) for part in preds_S)
            loss = self.inherit_weight * self._distance(factor, inherit) + self._explore(factor, explore)
            return self.loss_weight * (loss + self.reconstruction_weight * relative_error(reconstruction, feature))

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = F.normalize(x.flatten(1)), F.normalize(y.flatten(1))
        scale = math.sqrt(x.shape[1]) if self.scale_free else 1.0
        return scale * (x - y).abs().mean()

    def _explore(self, factor: Tensor, explore: Tensor) -> Tensor:
        if self.explore == 'l1':
            return -self.explore_weight * self._distance(factor, explore)
        return self.explore_weight * F.cosine_similarity(factor.flatten(1), explore.flatten(1)).abs().mean()

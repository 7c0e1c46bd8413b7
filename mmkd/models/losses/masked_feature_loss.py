"""Difference of two normalised features, weighted by where the objects are.

Shapes: `N` images, `C` channels, `H, W` cells of one feature level.
"""

from typing import Literal

import torch
from torch import Tensor

from mmkd.models.losses.base import FeatureLoss, check_pair, weighted_mean
from mmkd.models.losses.checks import at_least_float32, refuse_unused
from mmkd.registry import MODELS


@MODELS.register_module()
class MaskedFeatureLoss(FeatureLoss):
    """Mean square difference inside the mask, and with a weight of its own outside.

    `L = sum M d / (C sum M) + w_bg sum (1 - M) d / (C sum (1 - M))` with `d = (norm(S) - norm(sg(T)))^2`, `sg` = no
    gradient. Without a mask, the plain mean of d. A cell with M < 0 is neither inside nor outside: it is in no sum.

    Idea: Jia et al. 2024 (MSSD), abstract, https://doi.org/10.1007/s44267-024-00040-3. The formula is not published;
    this project's choice, see `docs/mssd.md`. It also serves a pair of teacher and student.

    Args:
        normalize: `channel`: each channel of each image has mean 0 and variance 1 over its cells (never over the batch,
            so that several processes equal one); `none`: features as they are (FitNet's mean square error).
        background_weight: w_bg, >= 0. Every cell with M = 0 is background, the padding too, unless
            `GaussianMask(padding=-1)` takes it out.
        gate: the mask acts on the target instead: the student's whole map is drawn towards
            `T (M + w_bg (1 - M))`, that is, to respond where the objects are; an image whose mask is empty gives 0.
            Where M < 0 the target is 0, as in the background without w_bg.
        eps: added to the variance, > 0; a constant channel, as on a map of one cell, becomes 0.
        loss_weight: scale of the loss, >= 0.

    Raises:
        ValueError: unknown `normalize`, a negative weight, or eps <= 0.
    """

    def __init__(
        self,
        *,
        normalize: Literal['channel', 'none'] = 'channel',
        background_weight: float = 0.0,
        gate: bool = False,
        eps: float = 1e-6,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight=loss_weight)
        if normalize not in ('channel', 'none'):
            raise ValueError(f"normalize must be 'channel' or 'none', got {normalize!r}.")
        if background_weight < 0:
            raise ValueError(f'background_weight must be >= 0, got {background_weight}.')
        if not eps > 0:
            raise ValueError(f'eps must be > 0, got {eps}.')
        self.normalize = normalize
        self.background_weight = background_weight
        self.gate = gate
        self.eps = eps

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Squared difference of the normalised features."""
        return (self._normalized(student) - self._normalized(teacher)).square()

    def _normalized(self, feature: Tensor) -> Tensor:
        if self.normalize == 'none':
            return feature
        variance, mean = torch.var_mean(feature, dim=(2, 3), correction=0, keepdim=True)
        return (feature - mean) * (variance + self.eps).rsqrt()

    def forward(
        self,
        preds_S: Tensor,
        preds_T: Tensor,
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """As `FeatureLoss`, with foreground and background.

        Args:
            preds_S: (N, C, H, W) the student's feature, or the taught level's.
            preds_T: (N, C, H, W) the teacher's feature, or the teaching level's.
            mask: (N, 1, H, W) in [0, 1], or negative where a cell counts on neither side.
            labels: not used; must be None.
            avg_factor: replaces the sum of `mask` over all processes; not with a background weight.

        Returns:
            Scalar >= 0, at least float32.

        Raises:
            TypeError: a prediction is not a tensor.
            ValueError: shapes that do not fit, an argument that cannot be used, or `gate` in training without a mask.
        """
        check_pair(preds_S, preds_T)
        refuse_unused(self, labels=labels)
        if avg_factor is not None and (self.background_weight or self.gate):
            raise ValueError('avg_factor divides the foreground alone: it cannot go with background_weight or gate.')
        if mask is None and self.gate:
            if self.training:
                raise ValueError('gate=True needs mask=.')
            mask = torch.ones_like(preds_T[:, :1])  # the distiller's dry forward has no ground truth
        mask = None if mask is None else mask.detach()
        with torch.autocast(preds_S.device.type, enabled=False):
            student, teacher = at_least_float32(preds_S), at_least_float32(preds_T.detach())
            return self.loss_weight * self._reduced(student, teacher, mask, avg_factor)

    def _reduced(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, avg_factor: Tensor | float | None
    ) -> Tensor:
        if self.gate:
            gate = mask.clamp(min=0) + self.background_weight * _outside(mask)
            if gate.shape != (len(teacher), 1, *teacher.shape[2:]):
                raise ValueError(f'mask {tuple(mask.shape)} does not fit features {tuple(teacher.shape)}.')
            values = self.elementwise(student, teacher * gate.to(teacher.dtype))
            return (values * (gate.amax(dim=(1, 2, 3), keepdim=True) > 0)).mean()
        values = self.elementwise(student, teacher)
        if mask is None:
            return weighted_mean(values, None, avg_factor)
        mask = mask.to(values.dtype)
        loss = weighted_mean(values, mask, avg_factor)
        if self.background_weight == 0:
            return loss
        return loss + self.background_weight * weighted_mean(values, _outside(mask))


def _outside(mask: Tensor) -> Tensor:
    """Background weight of every cell, `1 - M`; 0 where M < 0."""
    return (1 - mask) * (mask >= 0)

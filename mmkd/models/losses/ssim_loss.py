"""SSIM distillation of feature maps (de Rijk et al., NeurIPS 2022).

Shapes: `N` images, `C` channels, `H, W` cells of one feature level, `K` side of the window.
"""

from typing import Any

import torch
from torch import Tensor

from mmkd.functional.normalisation import Normaliser, Scope
from mmkd.functional.ssim import SSIMOptions, fitting_window, plain_ssim_map
from mmkd.functional.ssim_fused import Settings, fused_dissimilarity_sum, uncompiled
from mmkd.models.losses.base import FeatureLoss, check_pair, mean_over_ranks
from mmkd.registry import MODELS


@MODELS.register_module()
class SSIMLoss(FeatureLoss):
    """Structural dissimilarity of student and teacher features after min-max normalisation.

    `mean (1 - SSIM(psi(S), psi(T))) / 2`, psi = min-max to [0, 1]. *de Rijk et al. 2022,
    https://arxiv.org/abs/2211.13133*. Its weight lambda is `loss_weight`: 2 or 4 in the paper. Module form of
    `mmkd.functional.ssim.ssim_map` and `mmkd.functional.normalisation.min_max`, where this project's choices are
    listed. Normalisation sees every cell of a map, also those outside a `mask`; with 'valid' borders the mask is
    cropped to the cells that the result has.

    Args:
        data_range: D of the compared maps; 1 when they are normalised.
        normalize: scope of the min-max normalisation, or None to compare the features as they are. 'batch' is the
            one scope whose result depends on the rest of the batch.
        detach_extremes: no gradient through the student's minimum and maximum.
        eps: largest range of a map that counts as constant.
        fused: use the form of `mmkd.functional.ssim_fused` where it applies (exponents 1; `torch.compile` leaves it as
            it is): the same value and gradient in less time and memory, but no second derivative.
        loss_weight: lambda.
        **options: the fields of `mmkd.functional.ssim.SSIMOptions`.

    Raises:
        TypeError: an option that `SSIMOptions` does not have.
        ValueError: a value out of its range.
    """

    _sum = staticmethod(fused_dissimilarity_sum)

    def __init__(
        self,
        *,
        data_range: float,
        normalize: Scope | None = 'image',
        detach_extremes: bool = False,
        eps: float = 1e-6,
        fused: bool = True,
        loss_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(loss_weight=loss_weight)
        if data_range <= 0:
            raise ValueError(f'data_range must be > 0, got {data_range}.')
        self.data_range = data_range
        self.normaliser = Normaliser(normalize, detach_extremes=detach_extremes, eps=eps)
        self.options = SSIMOptions(**options)
        self.fused = fused and self.options.is_standard
        if self.fused:  # of the class: an instance that held a function made here could not be pickled
            SSIMLoss._sum = staticmethod(uncompiled())

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(1 - SSIM) / 2 of every element: (N, C, H, W) maps -> (N, C, H', W'), smaller for 'valid' borders."""
        similarity = plain_ssim_map(self.normaliser(student), self.normaliser(teacher), self.data_range, self.options)
        return (1 - similarity) / 2

    def forward(
        self,
        preds_S: Tensor,
        preds_T: Tensor,
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """As `FeatureLoss.forward`; `mask` has the grid of the features, whatever the borders."""
        check_pair(preds_S, preds_T)
        self._check_mask(preds_S, mask, avg_factor)
        mask = self._crop(mask)
        if labels is not None or not self.fused:
            return super().forward(preds_S, preds_T, mask=mask, labels=labels, avg_factor=avg_factor)
        with torch.autocast(preds_S.device.type, enabled=False):
            dtype = torch.promote_types(preds_S.dtype, torch.float32)
            settings = Settings(self.data_range, self.options, self.normaliser)
            mask = None if mask is None else mask.detach().to(dtype).clamp(min=0)
            total = self._sum(preds_S.to(dtype), preds_T.to(dtype), mask, settings)
            return self.loss_weight * total / self._divisor(preds_S, mask, avg_factor)

    def _divisor(self, feature: Tensor, mask: Tensor | None, avg_factor: Tensor | float | None) -> Tensor | float:
        """Number of elements, or channels times weight of the cells, that the sum is a mean over."""
        n, c, h, w = feature.shape
        if mask is not None:
            return c * (mean_over_ranks(mask.sum()).clamp(min=1e-6) if avg_factor is None else avg_factor)
        border = 0 if self.options.padding == 'same' else self._border(h, w)
        return n * c * (h - 2 * border) * (w - 2 * border)

    def _border(self, height: int, width: int) -> int:
        """Cells that 'valid' borders cut off on each side."""
        return fitting_window(self.options.window_size, height, width, 'valid') // 2

    @staticmethod
    def _check_mask(feature: Tensor, mask: Tensor | None, avg_factor: Tensor | float | None) -> None:
        n, _, h, w = feature.shape
        if mask is not None and tuple(mask.shape) != (n, 1, h, w):
            raise ValueError(f'mask must have shape {(n, 1, h, w)}, got {tuple(mask.shape)}.')
        if mask is None and avg_factor is not None:
            raise ValueError(f'avg_factor needs a mask, got avg_factor={avg_factor} and mask=None.')

    def _crop(self, mask: Tensor | None) -> Tensor | None:
        """The cells of `mask` that a map with 'valid' borders has."""
        if mask is None or self.options.padding == 'same':
            return mask
        height, width = mask.shape[2:]
        border = self._border(height, width)
        return mask[..., border : height - border, border : width - border]

    def extra_repr(self) -> str:
        """Settings shown when the model is printed."""
        return f'data_range={self.data_range}, {self.options}, fused={self.fused}, loss_weight={self.loss_weight}'

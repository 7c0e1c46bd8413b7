"""What every loss on a pair of feature maps shares: checks, float32, mask, mean and weight.

Shapes: `N` images, `C` channels, `H, W` cells of one feature level.
"""

from abc import abstractmethod

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn


def check_pair(preds_S: Tensor, preds_T: Tensor) -> None:
    """Refuse a pair of maps that only broadcasting would make fit.

    Raises:
        TypeError: one of them is not a tensor.
        ValueError: their shapes differ.
    """
    for name, value in (('preds_S', preds_S), ('preds_T', preds_T)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be one tensor, got {type(value).__name__}; several levels need PyramidLoss.')
    if preds_S.shape != preds_T.shape:
        raise ValueError(
            f'preds_S and preds_T must have the same shape, got {tuple(preds_S.shape)} and {tuple(preds_T.shape)}; '
            'a connector brings channels and sizes together.'
        )


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a normaliser (mask sum, number of positives) over all processes, without gradient.

    With gradients averaged by DDP, a sum divided by this mean gives, over all processes, the total sum divided
    by the total normaliser: several processes equal one with the whole batch.
    """
    value = value.detach().clone()
    all_reduce(value, op='mean')
    return value


def weighted_mean(values: Tensor, mask: Tensor | None = None, avg_factor: Tensor | float | None = None) -> Tensor:
    """Mean over batch, channels and cells, or the mean weighted by `mask`.

    Args:
        values: (N, C, H, W) one value an element.
        mask: (N, 1, H, W) weights, or None for the plain mean. What is negative (padding) counts as 0.
        avg_factor: number of cells to divide by instead of the sum of `mask` over all processes.

    Returns:
        Scalar; 0 that still depends on `values` where the mask is empty.

    Raises:
        ValueError: `mask` does not fit `values`, or `avg_factor` comes without a mask.
    """
    if mask is None:
        if avg_factor is not None:
            raise ValueError(f'avg_factor needs a mask, got avg_factor={avg_factor} and mask=None.')
        return values.mean()
    n, c, h, w = values.shape
    if tuple(mask.shape) != (n, 1, h, w):
        raise ValueError(f'mask must have shape {(n, 1, h, w)}, got {tuple(mask.shape)}.')
    mask = mask.detach().to(values.dtype).clamp(min=0)  # a weight: a learned one would only shrink
    if avg_factor is None:
        avg_factor = mean_over_ranks(mask.sum()).clamp(min=1e-6)
    return (values * mask).sum() / (c * avg_factor)


class FeatureLoss(nn.Module):
    """Base of the losses that give one value an element of a pair of equally shaped maps.

    Args:
        loss_weight: scale of the loss, >= 0.

    Raises:
        ValueError: `loss_weight` is negative.
    """

    def __init__(self, *, loss_weight: float = 1.0) -> None:
        super().__init__()
        if loss_weight < 0:
            raise ValueError(f'loss_weight must be >= 0, got {loss_weight}.')
        self.loss_weight = loss_weight

    @abstractmethod
    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Value of every element: two float (N, C, H, W) maps -> (N, C, H, W)."""

    def forward(
        self,
        preds_S: Tensor,
        preds_T: Tensor,
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Weighted mean of `elementwise`; the teacher's side is a target and gets no gradient.

        Args:
            preds_S: (N, C, H, W) the student's feature.
            preds_T: (N, C, H, W) the teacher's feature.
            mask: (N, 1, H, W) weights of the cells; negative ones count as 0.
            labels: not used by feature losses; must be None.
            avg_factor: replaces the sum of `mask` over all processes as the divisor.

        Returns:
            Scalar, at least float32.

        Raises:
            TypeError: a prediction is not a tensor.
            ValueError: shapes that do not fit, or labels given.
        """
        check_pair(preds_S, preds_T)
        if labels is not None:
            raise ValueError(f'{type(self).__name__} compares features and takes no labels.')
        with torch.autocast(preds_S.device.type, enabled=False):
            dtype = torch.promote_types(preds_S.dtype, torch.float32)
            values = self.elementwise(preds_S.to(dtype), preds_T.detach().to(dtype))
            return self.loss_weight * weighted_mean(values, mask, avg_factor)

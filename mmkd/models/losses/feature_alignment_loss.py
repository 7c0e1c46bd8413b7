"""Distance and difference of distribution between an aligned student feature and the teacher's.

Shapes: `N` images, `C` channels of the teacher, `n` segments of the student, `H, W` cells.
"""

import torch
from torch import Tensor, nn

from mmkd.models.losses.checks import at_least_float32, check_weight, refuse_unused
from mmkd.models.losses.relative import larger_energy
from mmkd.registry import MODELS


@MODELS.register_module()
class FeatureAlignmentLoss(nn.Module):
    """Mean squares of every segment against the teacher's map, plus the difference of its channel statistics.

    `sum_segments [distance_weight * mean (S - T)^2 + statistics_weight * (mean_c (mu_S - mu_T)^2
    + mean_c (sigma_S - sigma_T)^2)]`
    with `mu`, `sigma` over the cells of one image and channel, `sigma = sqrt(variance + 1e-5)`. The first term is that
    of NORM (Liu et al. 2023, https://arxiv.org/abs/2305.13803), which also sums over the segments; with n = 1 it is the
    mean squared error. The second: not published for detectors, this project's choice for 'bringing the student's
    feature distribution closer to the teacher's' (Yao et al. 2025, https://doi.org/10.32604/cmc.2025.060609, abstract
    only).

    Magnitudes of features differ between models by orders; `relative` divides an image's terms by
    `larger_energy`, so that a weight can be carried from one pair to another and the first term is at most 4.

    Args:
        distance_weight: scale of the first term, >= 0.
        statistics_weight: scale of the second term, >= 0.
        relative: divide by the larger mean square of each image; False is plain, as NORM.
        loss_weight: scale of both, >= 0.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(
        self,
        *,
        distance_weight: float = 1.0,
        statistics_weight: float = 1.0,
        relative: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if min(distance_weight, statistics_weight) < 0 or distance_weight == statistics_weight == 0:
            raise ValueError(f'Weights must be >= 0, one of them > 0, got {distance_weight} and {statistics_weight}.')
        self.distance_weight, self.statistics_weight = distance_weight, statistics_weight
        self.relative = relative
        self.loss_weight = check_weight(loss_weight)

    def forward(
        self,
        preds_S: Tensor,
        preds_T: Tensor,
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Mean over images, channels and cells, sum over segments; the teacher's side gets no gradient.

        Args:
            preds_S: (N, n * C, H, W) the aligned student feature; n is found from the channels.
            preds_T: (N, C, H, W) the teacher's feature.
            mask: not used; must be None.
            labels: not used; must be None.
            avg_factor: not used; must be None.

        Returns:
            Scalar, at least float32, >= 0.

        Raises:
            TypeError: a prediction is not a tensor.
            ValueError: shapes do not fit, or an unused argument is given.
        """
        refuse_unused(self, mask=mask, labels=labels, avg_factor=avg_factor)
        segments = _num_segments(preds_S, preds_T)
        with torch.autocast(preds_S.device.type, enabled=False):
            # (N, n * C, H, W) -> (N, n, C, H, W)
            student = at_least_float32(preds_S).unflatten(1, (segments, -1))
            teacher = at_least_float32(preds_T.detach()).unsqueeze(1)
            loss = student.new_zeros(len(student))
            if self.distance_weight:
                loss = loss + self.distance_weight * (student - teacher).square().mean((1, 2, 3, 4))
            if self.statistics_weight:
                loss = loss + self.statistics_weight * _statistics_difference(student, teacher)
            if self.relative:
                loss = loss / larger_energy(student, teacher)
            return self.loss_weight * segments * loss.mean()


def _num_segments(preds_S: Tensor, preds_T: Tensor) -> int:
    for name, value in (('preds_S', preds_S), ('preds_T', preds_T)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be one tensor, got {type(value).__name__}; use PyramidLoss for levels.')
    shape_s, shape_t = tuple(preds_S.shape), tuple(preds_T.shape)
    if len(shape_t) != 4 or shape_s[:1] + shape_s[2:] != shape_t[:1] + shape_t[2:] or shape_s[1] % shape_t[1]:
        raise ValueError(f'preds_S must be (N, n * C, H, W) for preds_T (N, C, H, W), got {shape_s} and {shape_t}.')
    return shape_s[1] // shape_t[1]


def _statistics_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) mean squared difference of the channels' means, plus that of their standard deviations."""
    means, deviations = (
        [side.mean((-2, -1)) for side in (student, teacher)],
        [(side.var((-2, -1), unbiased=False) + 1e-5).sqrt() for side in (student, teacher)],
    )
    return sum((s - t).square().mean((1, 2)) for s, t in (means, deviations))

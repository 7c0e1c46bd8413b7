"""The student follows the transition network, which follows the teacher.

Shapes: `N` images, `B` channels of the transition, `C` of the teacher, `H, W` cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmkd.models.losses.checks import at_least_float32, check_weight, refuse_unused
from mmkd.models.losses.reconstruction import unpack_coded
from mmkd.models.losses.relative import relative_error
from mmkd.registry import MODELS


@MODELS.register_module()
class GuidanceLoss(nn.Module):
    """Distance of the two codes of `IntermediateGuidance`, and error of the teacher's reconstruction.

    `mean (u(code_s) - u(code_t))^2 + reconstruction_weight * relative_error(rec, F_t)`, `u` divides an image's code
    by the root of its mean square, so that the first term lies in [0, 4] and cannot be lowered by shrinking the code.
    Not published; this project's choice, see `IntermediateGuidance`. The first term trains the student and its code,
    the second one only the transition network.

    Args:
        reconstruction_weight: scale of the second term, > 0.
        loss_weight: scale of both, >= 0.

    Raises:
        ValueError: a weight out of range.
    """

    def __init__(self, *, reconstruction_weight: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        if not reconstruction_weight > 0:
            raise ValueError(f'reconstruction_weight must be > 0, got {reconstruction_weight}.')
        self.reconstruction_weight = reconstruction_weight
        self.loss_weight = check_weight(loss_weight)

    def forward(
        self,
        preds_S: Tensor,
        preds_T: Sequence[Tensor],
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Both terms, mean over the images.

        Args:
            preds_S: (N, B, H, W) the student's code.
            preds_T: the teacher's (N, B, H, W) code, its (N, C, H, W) reconstruction and feature.
            mask: not used; must be None.
            labels: not used; must be None.
            avg_factor: not used; must be None.

        Returns:
            Scalar, at least float32.

        Raises:
            TypeError: `preds_T` is not what the teacher's side of `IntermediateGuidance` gives.
            ValueError: shapes do not fit, or an unused argument is given.
        """
        refuse_unused(self, mask=mask, labels=labels, avg_factor=avg_factor)
        code_t, reconstruction, feature = unpack_coded(preds_T, preds_S.shape)
        with torch.autocast(preds_S.device.type, enabled=False):
            guide = (_unit_scale(at_least_float32(preds_S)) - _unit_scale(code_t)).square().mean()
            return self.loss_weight * (guide + self.reconstruction_weight * relative_error(reconstruction, feature))


def _unit_scale(code: Tensor) -> Tensor:
    """Code of each image divided by the root of its mean square; zeros stay zeros."""
    mean_square = code.square().mean((1, 2, 3), keepdim=True)
    return code * (mean_square + 1e-12).rsqrt()

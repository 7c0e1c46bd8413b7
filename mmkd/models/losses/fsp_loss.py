"""Relations between layers: the student turns one layer into the next as the teacher does.

Shapes: `N` images, `L` levels, `C_l` channels of level l, `H_l, W_l` its cells.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmkd.functional.relation import fsp_matrix
from mmkd.models.losses.checks import check_weight, refuse_unused
from mmkd.models.losses.relative import larger_energy
from mmkd.registry import MODELS


@MODELS.register_module()
class FSPLoss(nn.Module):
    """Squared difference of the `fsp_matrix` of every two adjacent levels.

    `1 / (L - 1) sum_l mean_ij (G_s - G_t)^2`; Yim et al. 2017, equation 2
    (https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html). Differs from the paper:
    the mean over matrix entries and pairs instead of the sum, so that the weight does not depend on channels. The grids
    of the two sides may differ, their channels may not: a 1x1 connector brings them together.

    Args:
        relative: divide each pair's value by `larger_energy` of the two matrices of that image. Without, the loss grows
            with the fourth power of the feature's scale; False is as the paper.
        loss_weight: scale of the loss, >= 0.

    Raises:
        ValueError: the weight is negative.
    """

    def __init__(self, *, relative: bool = False, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.relative = relative
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
        """Mean over images, pairs of levels and matrix entries; the teacher's side gets no gradient.

        Args:
            preds_S: one (N, C_l, H_l, W_l) map a level of the student, adjacent levels next to each other.
            preds_T: the same of the teacher, with the same channels.
            mask: not used; must be None.
            labels: not used; must be None.
            avg_factor: not used; must be None.

        Returns:
            Scalar, at least float32.

        Raises:
            TypeError: a side is one tensor.
            ValueError: fewer than two levels, levels or channels that differ, or an unused argument.
        """
        refuse_unused(self, mask=mask, labels=labels, avg_factor=avg_factor)
        if isinstance(preds_S, Tensor) or isinstance(preds_T, Tensor):
            raise TypeError('FSPLoss compares relations between levels: give one tensor a level, not a single tensor.')
        channels = [[level.shape[:2] for level in side] for side in (preds_S, preds_T)]
        if len(preds_S) < 2 or channels[0] != channels[1]:
            raise ValueError(
                'FSPLoss needs at least two levels, with the same images and channels on both sides, '
                f'got (N, C) {[tuple(c) for c in channels[0]]} and {[tuple(c) for c in channels[1]]}.'
            )
        with torch.autocast(preds_S[0].device.type, enabled=False):
            student = _relations(preds_S)
            teacher = _relations([level.detach() for level in preds_T])
            differences = [self._difference(s, t) for s, t in zip(student, teacher, strict=True)]
            return self.loss_weight * torch.stack(differences).mean()

    def _difference(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Two (N, C1, C2) matrices -> scalar."""
        difference = (student - teacher).square().mean((1, 2))
        if self.relative:
            difference = difference / larger_energy(student, teacher)
        return difference.mean()


def _relations(levels: Sequence[Tensor]) -> list[Tensor]:
    return [fsp_matrix(fine, coarse) for fine, coarse in pairwise(levels)]

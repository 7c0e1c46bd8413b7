"""Soft targets: the teacher's class scores at a temperature.

Shapes: `P` rows, `C` logits of a row.
"""

from typing import Literal

from torch import Tensor

from mmkd.functional.divergence import binary_kl_divergence, kl_divergence
from mmkd.models.losses.logit_loss import LogitLoss
from mmkd.registry import MODELS


@MODELS.register_module()
class SoftTargetLoss(LogitLoss):
    """Module form of `kl_divergence` (softmax) and of the sum of `binary_kl_divergence` over the classes (sigmoid).

    Hinton et al. 2015, section 2 (https://arxiv.org/abs/1503.02531); as the paper for softmax, with the mean over rows.
    The sigmoid form is this project's choice for dense heads. `labels` only say which rows are foreground and may be
    left out for rows of logits.

    Args:
        mode: as in `LogitLoss`.
        tau: as in `LogitLoss`.
        foreground_weight: as in `LogitLoss`.
        background_weight: as in `LogitLoss`.
        loss_weight: as in `LogitLoss`.
    """

    def __init__(
        self,
        *,
        mode: Literal['softmax', 'sigmoid'],
        tau: float = 4.0,
        foreground_weight: float = 1.0,
        background_weight: float | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            mode=mode,
            tau=tau,
            foreground_weight=foreground_weight,
            background_weight=background_weight,
            loss_weight=loss_weight,
        )

    def rowwise(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Divergence of every row; labels play no part in it."""
        if self.mode == 'softmax':
            return kl_divergence(student, teacher, tau=self.tau)
        return binary_kl_divergence(student, teacher, tau=self.tau).sum(-1)

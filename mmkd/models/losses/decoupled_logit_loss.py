"""Logit distillation with its target-class and non-target-class parts weighted apart.

Shapes: `P` rows, `C` logits of a row, `K` classes.
"""

from typing import Literal

from torch import Tensor

from mmkd.functional.divergence import decoupled_binary_kl_divergence, decoupled_kl_divergence
from mmkd.models.losses.logit_loss import LogitLoss
from mmkd.registry import MODELS


@MODELS.register_module()
class DecoupledLogitLoss(LogitLoss):
    """Module form of `decoupled_kl_divergence` and `decoupled_binary_kl_divergence`.

    `target_weight * TCKD + non_target_weight * NCKD` of every row; Zhao et al. 2022 (DKD), section 3
    (https://arxiv.org/abs/2203.08679), in RoI heads as the authors' detection code: the teacher's RoI head judges the
    student's own sampled proposals, background is a class. For dense heads and for the weights of foreground and
    background: not published; this project's choice (see `docs/ikd.md`). The mean is over rows; MMRazor's `DKDLoss`
    sums instead for every reduction but 'batchmean'.

    Args:
        mode: as in `LogitLoss`.
        target_weight: scale of the target-class part (the paper's alpha).
        non_target_weight: scale of the non-target part (the paper's beta; 0.25 is its detection default).
        tau: as in `LogitLoss`; 1 is the paper's detection default.
        foreground_weight: as in `LogitLoss`.
        background_weight: as in `LogitLoss`.
        loss_weight: as in `LogitLoss`.

    Raises:
        ValueError: as `LogitLoss`, or a negative part weight.
    """

    def __init__(
        self,
        *,
        mode: Literal['softmax', 'sigmoid'],
        target_weight: float = 1.0,
        non_target_weight: float = 0.25,
        tau: float = 1.0,
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
        if min(target_weight, non_target_weight) < 0:
            raise ValueError(f'Weights must be >= 0, got {target_weight} and {non_target_weight}.')
        self.target_weight, self.non_target_weight = target_weight, non_target_weight

    def rowwise(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Weighted sum of the two parts of every row.

        Raises:
            ValueError: no labels.
        """
        if labels is None:
            raise ValueError('DecoupledLogitLoss needs labels=: the target class of every row.')
        parts = decoupled_kl_divergence if self.mode == 'softmax' else decoupled_binary_kl_divergence
        target, non_target = parts(student, teacher, labels, tau=self.tau)
        return self.target_weight * target + self.non_target_weight * non_target

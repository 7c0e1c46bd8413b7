"""One loss on every level of a feature pyramid.

Shapes: `N` images, `C` channels, `H, W` cells of a level, `L` levels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd.registry import MODELS


@MODELS.register_module()
class PyramidLoss(nn.Module):
    """A loss applied level by level, in place of a copied block for each level in the config.

    `L_l = w_l loss(S_l, T_l)`, one value a level; MMEngine and MMRazor sum a list of losses. The same loss module
    serves every level.

    Args:
        loss: the loss on one pair of maps, or its config. Its `loss_weight` is the only weight common to all levels:
            `PyramidLoss.loss_weight` reads and sets it.
        level_weights: w_l, one a level; None for 1 everywhere.

    Raises:
        ValueError: a level weight is negative, or all are 0.
    """

    def __init__(self, *, loss: dict | nn.Module, level_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if level_weights is not None and (min(level_weights) < 0 or max(level_weights) == 0):
            raise ValueError(
                f'level_weights must be >= 0 and not all 0, got {list(level_weights)}; loss_weight=0 switches it off.'
            )
        self.loss = loss if isinstance(loss, nn.Module) else MODELS.build(loss)
        self.level_weights = None if level_weights is None else tuple(level_weights)

    @property
    def loss_weight(self) -> float:
        """Weight of the inner loss; 1 if that has none."""
        return getattr(self.loss, 'loss_weight', 1.0)

    @loss_weight.setter
    def loss_weight(self, value: float) -> None:
        if not hasattr(self.loss, 'loss_weight'):
            raise AttributeError(f'{type(self.loss).__name__} has no loss_weight to set.')
        self.loss.loss_weight = value

    def forward(
        self,
        preds_S: Sequence[Tensor],
        preds_T: Sequence[Tensor],
        *,
        mask: Sequence[Tensor] | None = None,
        labels: Sequence[Tensor] | None = None,
        avg_factor: Sequence[Tensor | float] | None = None,
    ) -> list[Tensor]:
        """The loss of every level, finest first as in the inputs.

        Args:
            preds_S: L maps (N, C, H, W) of the student.
            preds_T: L maps of the teacher.
            mask: L masks (N, 1, H, W).
            labels: one entry a level.
            avg_factor: one divisor a level.

        Returns:
            L scalars.

        Raises:
            TypeError: an argument is not a sequence of levels.
            ValueError: the numbers of levels differ.
        """
        levels = self._count_levels(preds_S=preds_S, preds_T=preds_T, mask=mask, labels=labels, avg_factor=avg_factor)
        optional = {'mask': mask, 'labels': labels, 'avg_factor': avg_factor}
        given = {name: value for name, value in optional.items() if value is not None}
        weights = self.level_weights or (1.0,) * levels
        return [
            weight * self.loss(student, teacher, **{name: value[level] for name, value in given.items()})
            for level, (weight, student, teacher) in enumerate(zip(weights, preds_S, preds_T, strict=True))
        ]

    def _count_levels(self, **arguments: Any) -> int:
        counts = {}
        for name, value in arguments.items():
            if value is None:
                continue
            if not isinstance(value, list | tuple):
                raise TypeError(
                    f'{name} must be a tuple with one entry a level, got {type(value).__name__}; '
                    'a single map goes to the inner loss directly.'
                )
            counts[name] = len(value)
        if self.level_weights is not None:
            counts['level_weights'] = len(self.level_weights)
        if len(set(counts.values())) > 1:
            raise ValueError(
                f'Every argument must have the same number of levels, got {counts}; '
                'record the same levels on both sides, or select them by stride.'
            )
        return counts['preds_S']

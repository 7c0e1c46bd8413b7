"""What the losses on class logits share: rows from maps, foreground and background, normaliser.

Shapes: `N` images, `A` anchors of a cell, `K` classes, `C` logits of a row (K + 1 with softmax, K with sigmoid), `P`
rows.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from mmkd.functional.dense import flatten_levels, infer_num_classes
from mmkd.functional.reading import read_is_free
from mmkd.models.losses.base import check_pair, mean_over_ranks
from mmkd.models.losses.checks import at_least_float32, check_weight, refuse_unused

Logits = Tensor | Sequence[Tensor]


class LogitLoss(nn.Module):
    """Base of the losses that give one value a row of class logits.

    `loss_weight / D * (foreground_weight * sum over foreground + background_weight * sum over background)`.

    Args:
        mode: 'softmax' for heads whose last logit is background (RoI heads), 'sigmoid' for one binary logit a class
            (RetinaNet, FCOS, GFL, YOLOX). Foreground are labels below K; the label K is background; rows with a
            negative label are left out.
        tau: temperature, > 0.
        foreground_weight: scale of the rows that hold an object.
        background_weight: scale of the other rows; None means 1 for softmax, where the sampler has already balanced
            the rows, and 0 for sigmoid, where nearly all points are background.
        loss_weight: scale of the loss, >= 0.

    Raises:
        ValueError: unknown mode, `tau` not positive, or a negative weight.
    """

    def __init__(
        self,
        *,
        mode: Literal['softmax', 'sigmoid'],
        tau: float = 1.0,
        foreground_weight: float = 1.0,
        background_weight: float | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if mode not in ('softmax', 'sigmoid'):
            raise ValueError(f"mode must be 'softmax' or 'sigmoid', got {mode!r}.")
        # Without labels every row counts as 1: refused only where the user asked for another weight.
        self._needs_labels = foreground_weight != 1 or background_weight not in (None, 1)
        if background_weight is None:
            background_weight = 1.0 if mode == 'softmax' else 0.0
        if min(foreground_weight, background_weight) < 0:
            raise ValueError(f'Weights must be >= 0, got {foreground_weight} and {background_weight}.')
        if not tau > 0:
            raise ValueError(f'tau must be > 0, got {tau}.')
        self.mode, self.tau = mode, tau
        self.foreground_weight, self.background_weight = foreground_weight, background_weight
        self.loss_weight = check_weight(loss_weight)

    @abstractmethod
    def rowwise(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Value of every row: two (P, C) float logits and the (P,) labels -> (P,)."""

    def forward(
        self,
        preds_S: Logits,
        preds_T: Logits,
        *,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Weighted sum over the rows, divided by the normaliser; the teacher's side gets no gradient.

        Args:
            preds_S: (P, C) logits, or one (N, A * C, H, W) map a level of a dense head.
            preds_T: the same of the teacher, for the same boxes or points.
            mask: not used; must be None.
            labels: (P,) class of each row, image-major for maps.
            avg_factor: divisor. None means the mean over all processes of the number of foreground rows (sigmoid with
                labels), or of the number of rows that are not left out (otherwise); at least 1 row in all processes.

        Returns:
            Scalar, at least float32; 0 that still depends on `preds_S` where no row counts.

        Raises:
            TypeError: predictions are neither tensors nor sequences of tensors.
            ValueError: shapes or labels do not fit (labels that are too high: on the CPU alone, elsewhere the look
                would wait for the device), `mask` is given, or weights that need labels come without.
        """
        refuse_unused(self, mask=mask)
        student, teacher = self._rows(preds_S, preds_T, labels)
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
            weights = self._row_weights(student, labels)
            if avg_factor is None:
                avg_factor = mean_over_ranks(self._count(student, labels)).clamp(min=1 / get_world_size())
            if labels is not None:
                student, teacher, labels, weights = self._counting(student, teacher, labels, weights)
            values = self.rowwise(student, teacher, labels) * weights
            return self.loss_weight * values.sum() / avg_factor

    def _counting(self, student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """The rows whose weight is not 0.

        Picking them asks the device how many there are. Where neither foreground nor background is left out, rows
        without a label are few (an RoI head has none): they stay, with weight 0 and as if of class 0.
        """
        if not read_is_free(weights) and min(self.foreground_weight, self.background_weight) > 0:
            return student, teacher, labels.clamp(min=0), weights
        chosen = (weights > 0).nonzero()[:, 0]
        return student[chosen], teacher[chosen], labels[chosen], weights[chosen]

    def _rows(self, preds_S: Logits, preds_T: Logits, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(preds_S, Tensor) or isinstance(preds_T, Tensor):
            check_pair(preds_S, preds_T)
            if preds_S.dim() != 2:
                raise ValueError(f'Logits must be (P, C) or one map a level, got {tuple(preds_S.shape)}.')
            return preds_S, preds_T
        if len(preds_S) != len(preds_T):
            raise ValueError(f'Student and teacher have {len(preds_S)} and {len(preds_T)} levels of logits.')
        for student, teacher in zip(preds_S, preds_T, strict=True):
            check_pair(student, teacher)
        if labels is None:
            raise ValueError(f'{type(self).__name__} needs labels= to read the maps of a dense head.')
        classes = infer_num_classes(preds_S, labels.numel())
        return flatten_levels(preds_S, classes), flatten_levels(preds_T, classes)

    def _background(self, logits: Tensor) -> int:
        """The label of background: the last logit of a softmax, one past the logits of a sigmoid."""
        return logits.shape[1] - (self.mode == 'softmax')

    def _row_weights(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            if self._needs_labels:
                raise ValueError('Weights for foreground and background need labels=.')
            return logits.new_ones(len(logits))
        background = self._background(logits)
        if labels.shape != logits.shape[:1]:
            raise ValueError(f'labels must be ({len(logits)},), one a row, got {tuple(labels.shape)}.')
        if labels.numel() and read_is_free(labels) and labels.max() > background:
            raise ValueError(f'labels must be at most {background} (background), got {int(labels.max())}.')
        weights = logits.new_full(labels.shape, self.background_weight)
        weights[labels < background] = self.foreground_weight
        weights[labels < 0] = 0
        return weights

    def _count(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return logits.new_full((), len(logits))
        counted = labels >= 0
        if self.mode == 'sigmoid':
            counted &= labels < self._background(logits)
        return counted.sum().to(logits.dtype)

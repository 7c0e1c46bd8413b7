"""Attention transfer: the student looks where the teacher looks.

Shapes: `N` images, `C` channels (they may differ between the sides), `H, W` cells.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mmkd.functional.attention import attention_map
from mmkd.models.losses.checks import check_weight, refuse_unused
from mmkd.registry import MODELS


@MODELS.register_module()
class AttentionMapLoss(nn.Module):
    """Distance of two `attention_map`s, mean over the images.

    With `d = A_s - A_t`, Zagoruyko and Komodakis 2017, equation 2 (https://arxiv.org/abs/1612.03928), is the norm
    `||d||_2`; the authors' code (szagoruyko/attention-transfer, utils.py) takes the mean of `d^2` over the cells.
    `||d||^2 <= 2` whatever the grid, so that mean shrinks as 1 / (H W): its weight must be chosen for each size of map.
    Choices here: 'sum' of `d^2` over the cells (default; free of that scale), 'mean' (the code), 'norm' (the paper).

    Args:
        p: power of `attention_map`, >= 1.
        reduction: what becomes of the cells.
        loss_weight: scale of the loss, >= 0.

    Raises:
        ValueError: unknown reduction, `p` below 1 or a negative weight.
    """

    def __init__(
        self, *, p: float = 2.0, reduction: Literal['sum', 'mean', 'norm'] = 'sum', loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        if reduction not in ('sum', 'mean', 'norm'):
            raise ValueError(f"reduction must be 'sum', 'mean' or 'norm', got {reduction!r}.")
        if p < 1:
            raise ValueError(f'p must be >= 1, got {p}.')
        self.p, self.reduction = p, reduction
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
        """Mean distance over the images; the teacher's side gets no gradient.

        Args:
            preds_S: (N, C1, H, W) the student's feature.
            preds_T: (N, C2, H, W) the teacher's feature.
            mask: not used; must be None.
            labels: not used; must be None.
            avg_factor: not used; must be None.

        Returns:
            Scalar, at least float32, in [0, 2].

        Raises:
            ValueError: images or grids differ, or an unused argument is given.
        """
        refuse_unused(self, mask=mask, labels=labels, avg_factor=avg_factor)
        if preds_S.shape[:1] + preds_S.shape[2:] != preds_T.shape[:1] + preds_T.shape[2:]:
            raise ValueError(
                f'preds_S and preds_T must agree in N, H and W, got {tuple(preds_S.shape)} and {tuple(preds_T.shape)}.'
            )
        with torch.autocast(preds_S.device.type, enabled=False):
            squares = (attention_map(preds_S, p=self.p) - attention_map(preds_T.detach(), p=self.p)).square()
            return self.loss_weight * self._reduce(squares.flatten(1)).mean()

    def _reduce(self, squares: Tensor) -> Tensor:
        """(N, H * W) -> (N,)"""
        if self.reduction == 'mean':
            return squares.mean(1)
        total = squares.sum(1)
        if self.reduction == 'sum':
            return total
        # the root has no gradient at 0: equal maps take the branch without it
        equal = total == 0
        return torch.where(equal, 0.0, torch.where(equal, 1.0, total).sqrt())

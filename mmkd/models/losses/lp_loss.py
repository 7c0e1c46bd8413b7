"""Pixel-wise distances of normalised feature maps: the control arms of SSIM distillation.

Shapes: `N` images, `C` channels, `H, W` cells of one feature level.
"""

from torch import Tensor

from mmkd.functional.normalisation import Normaliser, Scope
from mmkd.models.losses.base import FeatureLoss
from mmkd.registry import MODELS


@MODELS.register_module()
class NormalizedLpLoss(FeatureLoss):
    """Mean |psi(S) - psi(T)|^p of the features after min-max normalisation psi.

    *de Rijk et al. 2022, the compared l1 and l2 losses, https://arxiv.org/abs/2211.13133*: the frame of `SSIMLoss`
    with another distance. Module form of `mmkd.functional.normalisation.min_max`. Its weight there is not published.

    Args:
        p: 1 for absolute, 2 for squared differences.
        normalize: scope of the min-max normalisation, or None to compare the features as they are.
        detach_extremes: no gradient through the student's minimum and maximum.
        eps: largest range of a map that counts as constant.
        loss_weight: scale of the loss.

    Raises:
        ValueError: `p` is neither 1 nor 2, or another value is out of its range.
    """

    def __init__(
        self,
        *,
        p: int,
        normalize: Scope | None = 'image',
        detach_extremes: bool = False,
        eps: float = 1e-6,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight=loss_weight)
        if p not in (1, 2):
            raise ValueError(f'p must be 1 or 2, got {p}.')
        self.p = p
        self.normaliser = Normaliser(normalize, detach_extremes=detach_extremes, eps=eps)

    def elementwise(self, student: Tensor, teacher: Tensor) -> Tensor:
        """|difference|^p of every element: two (N, C, H, W) maps -> (N, C, H, W)."""
        difference = self.normaliser(student) - self.normaliser(teacher)
        return difference.abs() if self.p == 1 else difference.square()

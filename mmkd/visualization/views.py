"""What of a pair of features is shown for each kind of loss: one value a cell.

Shapes: `C` channels, `H, W` cells of one level of one image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmkd.functional.attention import attention_map
from mmkd.models.losses.attention_map_loss import AttentionMapLoss
from mmkd.models.losses.base import FeatureLoss
from mmkd.models.losses.exploration_loss import ExplorationLoss
from mmkd.models.losses.feature_alignment_loss import FeatureAlignmentLoss
from mmkd.models.losses.guidance_loss import GuidanceLoss
from mmkd.models.losses.logit_loss import LogitLoss
from mmkd.models.losses.masked_feature_loss import MaskedFeatureLoss
from mmkd.models.losses.ssim_loss import SSIMLoss
from mmkd.visualization.features import activity_map
from mmkd.visualization.grid import Scale

Pair = Callable[[Tensor, Tensor], np.ndarray]


@dataclass(frozen=True)
class View:
    """How the two sides of a loss become maps.

    Args:
        value: (C, H, W) -> (H, W), the same for both sides; their difference is taken of it.
        label: what that value is.
        compared: both sides -> (H, W), what the loss sees in each cell; None where a loss has no value a cell.
        title: what that is.
        scale: its colours.
    """

    value: Callable[[Tensor], np.ndarray]
    label: str
    compared: Pair | None = None
    title: str = ''
    scale: Scale | None = None


def view_of(loss: nn.Module) -> View:
    """The view of a loss on one level.

    Args:
        loss: the loss itself, without `PyramidLoss` around it.

    Returns:
        What the loss compares, where it has a value for each cell; features' activity for any other.
    """
    if isinstance(loss, SSIMLoss):
        scale = Scale('mean SSIM', 'cividis', (None, 1.0))
        return View(activity_map, ACTIVITY, lambda s, t: 1 - 2 * _cells(loss, s, t), 'SSIM map', scale)
    if isinstance(loss, AttentionMapLoss):
        scale = Scale('squared diff.', 'magma')
        return View(lambda f: attention(f, loss.p), ATTENTION, _squares(loss.p), 'in the loss', scale)
    if isinstance(loss, LogitLoss):
        return View(highest_score, 'class score')
    if isinstance(loss, FeatureLoss):
        scale = Scale('mean loss', 'magma')
        return View(activity_map, ACTIVITY, lambda s, t: _cells(loss, s, t), 'loss of each cell', scale)
    if isinstance(loss, FeatureAlignmentLoss | GuidanceLoss | ExplorationLoss):
        scale = Scale('relative square', 'magma')
        return View(activity_map, ACTIVITY, relative_square, 'squared difference', scale)
    return View(activity_map, ACTIVITY)


# As long as a bar of a wide image is high; docs/visualization.md says what they mean.
ACTIVITY = 'activity / mean'
ATTENTION = 'attention'


def attention(feature: Tensor, p: float = 2.0) -> np.ndarray:
    """`mmkd.functional.attention.attention_map` of one image: (C, H, W) -> (H, W)."""
    return attention_map(feature[None], p=p)[0, 0].cpu().numpy()


def highest_score(logits: Tensor) -> np.ndarray:
    """Highest sigmoid score over the classes and anchors of a cell: (C, H, W) -> (H, W) in (0, 1)."""
    return logits.float().sigmoid().amax(0).cpu().numpy()


def relative_square(student: Tensor, teacher: Tensor) -> np.ndarray:
    """Mean squared difference of a cell's channels against the larger mean square of the two maps: (C, H, W) twice."""
    energy = torch.maximum(student.square().mean(), teacher.square().mean()).clamp(min=1e-12)
    return ((student - teacher).square().mean(0) / energy).cpu().numpy()


def gated_target(loss: nn.Module, teacher: Tensor, mask: np.ndarray | None) -> Tensor:
    """The target as the loss sees it: `MaskedFeatureLoss(gate=True)` weighs it with the mask."""
    if mask is None or not isinstance(loss, MaskedFeatureLoss) or not loss.gate:
        return teacher
    weight = torch.as_tensor(mask).to(teacher)
    return teacher * (weight.clamp(min=0) + loss.background_weight * (1 - weight) * (weight >= 0))


def _cells(loss: FeatureLoss, student: Tensor, teacher: Tensor) -> np.ndarray:
    values = loss.elementwise(student[None].float(), teacher[None].float())[0].mean(0).cpu().numpy()
    missing = [(have - got) // 2 for have, got in zip(student.shape[1:], values.shape, strict=True)]
    # 'valid' borders give fewer cells: what is not compared stays empty
    return np.pad(values, [(n, n) for n in missing], constant_values=np.nan)


def _squares(p: float) -> Pair:
    return lambda student, teacher: (attention(student, p) - attention(teacher, p)) ** 2

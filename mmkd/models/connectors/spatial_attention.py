"""A gate over the cells of a feature.

Shapes: `N` images, `C` channels, `H, W` cells of one feature level.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.registry import MODELS


class _CellNorm(nn.BatchNorm2d):
    """BatchNorm of one channel that takes its running statistics where the batch is a single cell."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class _ImageNorm(nn.Module):
    """Mean 0 and variance 1 over the cells of each image, then one scale and one offset."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, scores: Tensor) -> Tensor:
        return F.layer_norm(scores, scores.shape[1:], eps=1e-5) * self.weight + self.bias


_NORMS = {'batch': partial(_CellNorm, 1, eps=1e-5, momentum=0.01), 'image': _ImageNorm, 'none': nn.Identity}


@MODELS.register_module()
class SpatialAttention(nn.Module):
    """Spatial gate of CBAM: raises the cells where the student's feature is salient.

    `F * sigmoid(norm(conv7x7([max_c F; mean_c F])))`; Woo et al. 2018 (CBAM), section 3
    (https://arxiv.org/abs/1807.06521). The paper writes the mean before the maximum and no norm; here as the authors'
    code (Jongchan/attention-module, MODELS/cbam.py): maximum first, no bias, BatchNorm with eps 1e-5 and momentum 0.01;
    100 parameters. That this is the SAM of Yao et al. 2025 (https://doi.org/10.32604/cmc.2025.060609, abstract only) is
    this project's choice.

    Args:
        norm: 'batch' as the authors' code, whose statistics run over the batch: several processes then do not equal
            one. 'image' normalises each image by itself with the same parameters (also 100). 'none' has neither (98).
        enabled: False returns the feature as it came and has no parameters, for ablations.

    Raises:
        ValueError: unknown norm.
    """

    def __init__(self, *, norm: Literal['batch', 'image', 'none'] = 'batch', enabled: bool = True) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f'norm must be one of {sorted(_NORMS)}, got {norm!r}.')
        self.enabled = enabled
        if enabled:
            self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
            self.norm = _NORMS[norm]()

    def gate(self, feature: Tensor) -> Tensor:
        """Weight of every cell: (N, C, H, W) -> (N, 1, H, W) in (0, 1)."""
        pooled = torch.cat([feature.amax(1, keepdim=True), feature.mean(1, keepdim=True)], dim=1)
        return self.norm(self.conv(pooled)).sigmoid()

    def forward(self, feature: Tensor) -> Tensor:
        """Gated feature: (N, C, H, W) -> (N, C, H, W)."""
        return feature * self.gate(feature) if self.enabled else feature

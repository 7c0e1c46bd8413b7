"""A self-teacher for detectors, which begins with the student's own features.

Shapes: `N` images, `C` channels, `c_i` those of level i; levels are numbered from the finest, of any sizes H x W.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mmkd.models.self_teachers.bifpn import BiFPNSelfTeacher, Norm
from mmkd.registry import MODELS


@MODELS.register_module()
class ResidualBiFPNSelfTeacher(BiFPNSelfTeacher):
    """BiFPN whose result is added to the student's features: `F_i + g_i R_i`, a learned g a channel, 0 at first.

    For detectors. Not published; this project's choice: the self-teacher begins with the student's own features
    instead of normalised ones, whose gradient swamps a detector that is trained from scratch (`docs/frskd.md`). R is
    the fixed-channel BiFPN of `BiFPNSelfTeacher` before its last ReLU.

    Args:
        in_channels: c_i of each level, finest first; all equal.
        depth: number of separable convolutions in each block.
        num_layers: number of BiFPN layers.
        norm: `BN`, `GN` or `SyncBN`.
        up_mode: `nearest` or `bilinear`.

    Raises:
        TypeError: `in_channels` is not one number a level.
        ValueError: as `BiFPNSelfTeacher`, or levels of different channels.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        depth: int = 2,
        num_layers: int = 1,
        norm: Norm = 'BN',
        up_mode: Literal['nearest', 'bilinear'] = 'nearest',
    ) -> None:
        options = dict(depth=depth, num_layers=num_layers, norm=norm, up_mode=up_mode)
        super().__init__(in_channels=in_channels, out_channels='same', **options)
        self.gains = nn.ParameterList(torch.zeros(c, 1, 1) for c in self.out_channels)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Refined features.

        Args:
            feats: (N, C, H_i, W_i) of the student, finest first; they keep their gradient.

        Returns:
            (N, C, H_i, W_i), of any sign.

        Raises:
            ValueError: another number of levels than the network was built for.
        """
        refined = self.before_relu(feats)
        return tuple(feat + gain * more for feat, gain, more in zip(feats, self.gains, refined, strict=True))

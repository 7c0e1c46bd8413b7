"""Coders of inheritance and exploration: compact factors of a student's and a teacher's feature.

Shapes: `N` images, `C` channels, `B` channels of a factor, `H, W` cells of one feature level.
"""

import math

from torch import Tensor, nn

from mmkd.registry import MODELS

_WIDEST = 64


def _factor_width(in_channels: int, out_channels: int | None, factor_channels: int | None) -> int:
    """B: as told, else the geometric mean of the two sides' channels in whole eighths, at most 64."""
    if factor_channels is None:
        mean = math.sqrt(in_channels * out_channels) if out_channels else _WIDEST
        return min(8 * math.ceil(mean / 8), _WIDEST)
    if factor_channels < 2:
        raise ValueError(f'factor_channels must be >= 2, got {factor_channels}.')
    return factor_channels


def _coder(in_channels: int, factor_channels: int) -> nn.Sequential:
    """Three times conv3x3, norm, LeakyReLU, as in the authors' code, with GroupNorm for its BatchNorm."""
    # at least two channels a group: a group of one value would always be normalised to 0
    groups = 1 if factor_channels % 2 else math.gcd(factor_channels // 2, 8)
    layers: list[nn.Module] = []
    for channels in (in_channels, factor_channels, factor_channels):
        layers += [
            nn.Conv2d(channels, factor_channels, 3, padding=1),
            nn.GroupNorm(groups, factor_channels),
            nn.LeakyReLU(0.1, inplace=True),
        ]
    return nn.Sequential(*layers)


@MODELS.register_module()
class ExplorationCoder(nn.Module):
    """Splits the student's channels into a part that inherits and a part that explores, and codes both.

    Huang et al. 2021 (IE-KD) (https://arxiv.org/abs/2107.00181). Differs from the authors' code: GroupNorm
    instead of BatchNorm, so that no statistic runs over the batch.

    Args:
        in_channels: C of the student's feature, >= 2.
        out_channels: channels of the teacher's feature.
        factor_channels: B >= 2, the same as on the teacher's side. None means the geometric mean of `in_channels` and
            `out_channels`, rounded up to 8 channels, at most 64, the same on both sides (64 without `out_channels`).
        inherit_ratio: share of the channels that inherits, in (0, 1); each part has at least one.

    Raises:
        ValueError: fewer than two channels, B below 2, or a share outside (0, 1).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        factor_channels: int | None = None,
        inherit_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        if in_channels < 2:
            raise ValueError(f'in_channels must be >= 2 to be split, got {in_channels}.')
        if not 0 < inherit_ratio < 1:
            raise ValueError(f'inherit_ratio must be in (0, 1), got {inherit_ratio}.')
        self.inherited = min(max(round(inherit_ratio * in_channels), 1), in_channels - 1)
        factor_channels = _factor_width(in_channels, out_channels, factor_channels)
        self.inherit = _coder(self.inherited, factor_channels)
        self.explore = _coder(in_channels - self.inherited, factor_channels)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the inheriting and of the exploring part: (N, C, H, W) -> two (N, B, H, W)."""
        return self.inherit(feature[:, : self.inherited]), self.explore(feature[:, self.inherited :])


@MODELS.register_module()
class FactorAutoEncoder(nn.Module):
    """Codes the teacher's feature into a factor from which the feature can be made again.

    Huang et al. 2021 (IE-KD) (https://arxiv.org/abs/2107.00181). Differs from the paper: the authors train the
    auto-encoder for 30 epochs beforehand; here `ExplorationLoss` trains it along with the student (no gradient of the
    matching terms reaches it).

    Args:
        in_channels: C of the teacher's feature.
        out_channels: channels of the student's feature.
        factor_channels: B >= 2, the same as on the student's side; None as for `ExplorationCoder`.

    Raises:
        ValueError: B is below 2.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int | None = None, factor_channels: int | None = None
    ) -> None:
        super().__init__()
        factor_channels = _factor_width(in_channels, out_channels, factor_channels)
        self.encode = _coder(in_channels, factor_channels)
        self.decode = nn.Sequential(
            nn.Conv2d(factor_channels, factor_channels, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(factor_channels, in_channels, 3, padding=1),
        )

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) -> the (N, B, H, W) factor, the (N, C, H, W) reconstruction, and the feature it should equal."""
        feature = feature.detach()
        factor = self.encode(feature)
        return factor, self.decode(factor), feature

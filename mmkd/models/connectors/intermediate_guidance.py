"""A transition network between student and teacher.

Shapes: `N` images, `C` channels of the side the connector stands on, `B` channels of the transition, `H, W` cells.
"""

import math

from torch import Tensor, nn

from mmkd.registry import MODELS


@MODELS.register_module()
class IntermediateGuidance(nn.Module):
    """Code of a feature in a width between the student's and the teacher's; one connector for each side.

    The student's side gives its code alone. The teacher's side (`reconstruct=True`) is an auto-encoder and gives
    `(code, reconstruction, feature)`. `GuidanceLoss` takes both: it pulls the student's code to the teacher's, whose
    only training is to reconstruct the teacher's feature. So the transition cannot collapse: the matching term sends no
    gradient into it, and a code without the teacher's information cannot reconstruct.

    Min and Wang (M-KD, WASET abstract 148652) publish 'an intermediate transition layer' in an abstract only: the
    network, its width and its reconstruction are this project's choice. The student's regressor alone is that of
    FitNets (Romero et al. 2015, https://arxiv.org/abs/1412.6550).

    Args:
        in_channels: C of this side's feature.
        out_channels: channels of the other side's feature.
        hidden_channels: B; None means the geometric mean of the two, the same on both sides.
        kernel_size: of the convolutions, odd.
        reconstruct: True on the teacher's side.

    Raises:
        ValueError: B is not between the two widths, or the kernel is even.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        hidden_channels: int | None = None,
        kernel_size: int = 1,
        reconstruct: bool = False,
    ) -> None:
        super().__init__()
        low, high = sorted((in_channels, out_channels))
        width = round(math.sqrt(low * high)) if hidden_channels is None else hidden_channels
        if not low <= width <= high:
            raise ValueError(f'hidden_channels must lie between {low} and {high}, got {width}.')
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, got {kernel_size}.')
        self.reconstruct = reconstruct
        self.encode = _two_convs(in_channels, width, width, kernel_size)
        if reconstruct:
            self.decode = _two_convs(width, width, in_channels, kernel_size)

    def forward(self, feature: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Code of the feature.

        Args:
            feature: (N, C, H, W).

        Returns:
            (N, B, H, W); on the teacher's side also the (N, C, H, W) reconstruction, and the feature it should equal.
        """
        if not self.reconstruct:
            return self.encode(feature)
        feature = feature.detach()
        code = self.encode(feature)
        return code, self.decode(code), feature


def _two_convs(in_channels: int, hidden: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, kernel_size, padding=padding),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(hidden, out_channels, kernel_size, padding=padding),
    )

"""The 1x1 adaptation layer between a student's and a teacher's feature.

Shapes: `N` images, `C` channels, `H, W` cells of one feature level.
"""

from torch import Tensor, nn

from mmkd.registry import MODELS


@MODELS.register_module()
class ConvConnector(nn.Conv2d):
    """Learned 1x1 convolution with bias, without norm or activation, from the student's channels to the teacher's.

    *de Rijk et al. 2022 (phi), https://arxiv.org/abs/2211.13133*, where it is optional. Not published: norm,
    activation and initialisation. This project's choice: neither norm nor activation, weights from
    N(0, 1 / in_channels), which keeps the variance of the feature, and biases 0.

    Args:
        in_channels: C of the feature that is adapted.
        out_channels: C that it gets.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=self.in_channels**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W).

        Raises:
            TypeError: `feature` is a pyramid.
            ValueError: `feature` has other channels.
        """
        if not isinstance(feature, Tensor):
            raise TypeError(f'feature must be one tensor, got {type(feature).__name__}; PyramidConnector takes levels.')
        if feature.shape[1] != self.in_channels:
            raise ValueError(f'feature must have {self.in_channels} channels, got {feature.shape[1]}.')
        return super().forward(feature)

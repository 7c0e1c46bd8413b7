"""Relations between the layers of one network.

Shapes: `N` images, `C1, C2` channels, `H, W` cells.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def fsp_matrix(x: Tensor, y: Tensor) -> Tensor:
    """Flow of the solution procedure: inner products of the channels of two layers, averaged over the cells.

    `G_ij = 1 / (H W) sum_hw x_ihw y_jhw`; Yim et al. 2017, equation 1
    (https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html). As the paper where the
    layers share a grid. Where they do not, the paper max-pools and the common reimplementation averages; here the finer
    one is averaged down to (H, W) of the coarser one, each axis for itself, so that non-square maps work.

    Args:
        x: (N, C1, H1, W1).
        y: (N, C2, H2, W2).

    Returns:
        (N, C1, C2), at least float32. Its size does not depend on that of the grid.

    Raises:
        ValueError: one is not 4-dimensional or the number of images differs.
    """
    if x.dim() != 4 or y.dim() != 4 or x.shape[0] != y.shape[0]:
        raise ValueError(f'x and y must be (N, C, H, W) of the same N, got {tuple(x.shape)} and {tuple(y.shape)}.')
    height, width = min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3])
    with torch.autocast(x.device.type, enabled=False):
        x, y = (_on_grid(value, height, width).flatten(2) for value in (x, y))
        return x @ y.transpose(1, 2) / (height * width)


def _on_grid(feature: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H1, W1) -> (N, C, height, width), in at least float32."""
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    if feature.shape[2:] == (height, width):
        return feature
    return F.adaptive_avg_pool2d(feature, (height, width))

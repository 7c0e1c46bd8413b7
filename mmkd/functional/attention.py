"""Where a feature is strong: spatial attention maps without parameters.

Shapes: `N` images, `C` channels, `H, W` cells of one feature level.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_map(feature: Tensor, *, p: float = 2.0) -> Tensor:
    """Channel mean of the p-th power of the magnitude, as a unit vector over the cells of an image.

    `A = a / ||a||_2`, `a = mean_c |F_c|^p`; Zagoruyko and Komodakis 2017, section 3.1
    (https://arxiv.org/abs/1612.03928). The paper writes a sum over channels and so does not differ: the norm removes
    the factor. A feature that is zero everywhere gives a map of zeros.

    Args:
        feature: (N, C, H, W).
        p: power, >= 1; a larger one weighs the strongest channels more.

    Returns:
        (N, 1, H, W) values >= 0, at least float32; the squares of an image sum to 1.

    Raises:
        ValueError: `feature` is not 4-dimensional or `p` is below 1.
    """
    if feature.dim() != 4:
        raise ValueError(f'feature must be (N, C, H, W), got {tuple(feature.shape)}.')
    if p < 1:
        raise ValueError(f'p must be >= 1, got {p}.')
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    power = feature.square() if p == 2 else feature.abs().pow(p)
    strength = power.mean(1, keepdim=True)
    return F.normalize(strength.flatten(1), dim=1).view_as(strength)

"""Structural similarity of two feature maps.

Shapes: `N` images, `C` channels, `H, W` cells, `K` side of the window.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SSIMOptions:
    """What structural similarity depends on besides the two maps and their range.

    Args:
        window_size: K, odd, in cells; smaller maps shrink it, see `fitting_window`.
        sigma: standard deviation of the Gaussian window, in cells.
        k1: stabiliser of the luminance, C1 = (k1 D)^2.
        k2: stabiliser of contrast and structure, C2 = (k2 D)^2, C3 = C2 / 2.
        padding: 'same' mirrors the map at its border, the edge cell not repeated; 'valid' keeps only the cells whose
            whole window lies inside the map.
        exponents: (a, b, g) of luminance, contrast and structure.

    Raises:
        ValueError: a value is out of its range.
    """

    window_size: int = 11
    sigma: float = 1.5
    k1: float = 0.01
    k2: float = 0.03
    padding: Literal['same', 'valid'] = 'same'
    exponents: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.window_size < 1 or self.window_size % 2 == 0:
            raise ValueError(f'window_size must be odd and at least 1, got {self.window_size}.')
        if self.padding not in ('same', 'valid'):
            raise ValueError(f"padding must be 'same' or 'valid', got {self.padding!r}.")
        for name in ('sigma', 'k1', 'k2'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be > 0, got {getattr(self, name)}.')
        if len(self.exponents) != 3 or min(self.exponents) < 0 or max(self.exponents) == 0:
            raise ValueError(
                'exponents must be three numbers >= 0 (luminance, contrast, structure), not all 0, '
                f'got {self.exponents}.'
            )

    @property
    def is_standard(self) -> bool:
        """Whether luminance, contrast and structure count alike."""
        return tuple(self.exponents) == (1, 1, 1)


def ssim_map(x: Tensor, y: Tensor, *, data_range: float, **options: Any) -> Tensor:
    """Structural similarity of every cell and channel.

    ```
    l = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)
    c = (2 s_x s_y + C2) / (s_x^2 + s_y^2 + C2)        C1 = (k1 D)^2, C2 = (k2 D)^2, C3 = C2 / 2
    s = (s_xy + C3) / (s_x s_y + C3)                   SSIM = l^a c^b s^g
    ```
    with mean, variance and covariance under a Gaussian window, per channel. *Wang et al. 2004, eq. 6-13,
    https://doi.org/10.1109/TIP.2003.819861; for features de Rijk et al. 2022, https://arxiv.org/abs/2211.13133*.
    As the paper, with K = 11 and sigma = 1.5. Not published, this project's choice: mirrored borders, and the window
    of maps smaller than it (`fitting_window`).

    Where b = g, c * s is computed as (2 s_xy + C2) / (s_x^2 + s_y^2 + C2): the same value without the roots, whose
    derivative is infinite on flat patches. Otherwise variances are clamped at 0 and 1e-12 D^2 is added inside each
    root. A factor with a non-integer exponent is clamped at 1e-6 from below, since negative bases have no real power.

    Args:
        x: (N, C, H, W), any size from 1x1.
        y: (N, C, H, W).
        data_range: D, span of the values that `x` and `y` can take; 1 for maps normalised to [0, 1].
        **options: the fields of `SSIMOptions`.

    Returns:
        (N, C, H, W) for 'same', (N, C, H - K + 1, W - K + 1) for 'valid'; at most 1; at least float32, also inside
        autocast.

    Raises:
        TypeError: an option that `SSIMOptions` does not have.
        ValueError: different shapes, not four axes, an empty map, or a value out of its range.
    """
    settings = SSIMOptions(**options)
    check_maps(x, y, data_range)
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        return plain_ssim_map(x.to(dtype), y.to(dtype), data_range, settings)


def check_maps(x: Tensor, y: Tensor, data_range: float) -> None:
    """Refuse what has no structural similarity."""
    if x.shape != y.shape:
        raise ValueError(f'x and y must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}.')
    if x.dim() != 4 or 0 in x.shape[2:]:
        raise ValueError(f'x and y must have the shape (N, C, H, W) with at least one cell, got {tuple(x.shape)}.')
    if data_range <= 0:
        raise ValueError(f'data_range must be > 0, got {data_range}.')


def fitting_window(size: int, height: int, width: int, padding: str = 'same') -> int:
    """Side of the largest odd window, at most `size`, that a map can carry.

    Not published, this project's choice. The window stays square: the shorter axis decides for both, so that a
    7x10 map is not blurred differently along its axes. 'same' needs (K - 1) / 2 < min(H, W), as a border can be
    mirrored by at most one cell less than the map has; 'valid' needs K <= min(H, W). A 1x1 map has K = 1: no
    variance, and only its luminance counts.

    Args:
        size: K asked for, odd.
        height: H of the map.
        width: W of the map.
        padding: 'same' or 'valid'.

    Returns:
        K, odd, at least 1.
    """
    shorter = min(height, width)
    largest = 2 * shorter - 1 if padding == 'same' else shorter - (shorter + 1) % 2
    return min(size, largest)


def gaussian_window(size: int, sigma: float, like: Tensor) -> Tensor:
    """(K,) samples of a Gaussian at the cells' centres, with sum 1, in the type and on the device of `like`."""
    where = like.device if like.is_cuda else None  # a copy from the host would wait for the GPU
    cells = torch.arange(size, dtype=torch.float64, device=where) - (size - 1) / 2
    weights = torch.exp(-(cells**2) / (2 * sigma**2))
    return (weights / weights.sum()).to(like)


def blur(x: Tensor, window: Tensor, padding: str) -> Tensor:
    """Weighted mean of each cell's neighbourhood, per channel, one axis after the other."""
    channels, size = x.shape[1], window.numel()
    if x.is_cuda:  # cuDNN takes channels_last and single channels, maybe in TF32; torch's own depthwise kernel is exact
        if channels == 1:
            return blur(x.expand(-1, 2, -1, -1), window, padding)[:, :1]
        x = x.contiguous()
    if padding == 'same' and size > 1:
        x = F.pad(x, (size // 2,) * 4, mode='reflect')
    x = F.conv2d(x, window.view(1, 1, -1, 1).expand(channels, 1, size, 1), groups=channels)
    return F.conv2d(x, window.view(1, 1, 1, -1).expand(channels, 1, 1, size), groups=channels)


def plain_ssim_map(x: Tensor, y: Tensor, data_range: float, options: SSIMOptions) -> Tensor:
    """`ssim_map` of checked maps of one floating type, by differentiable operations."""
    size = fitting_window(options.window_size, *x.shape[2:], options.padding)
    window = gaussian_window(size, options.sigma, x)
    c1, c2 = (options.k1 * data_range) ** 2, (options.k2 * data_range) ** 2
    # one blur after the other: a stack of all maps is so large that its memory is asked from the system every time
    mean_x, mean_y = (blur(value, window, options.padding) for value in (x, y))
    means, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    covariance = blur(x * y, window, options.padding) - means
    luminance = (2 * means + c1) / (squares + c1)
    a, b, g = options.exponents
    if b == g:
        variances = blur(x * x + y * y, window, options.padding) - squares
        return power(luminance, a) * power((2 * covariance + c2) / (variances + c2), b)
    var_x = (blur(x * x, window, options.padding) - mean_x * mean_x).clamp(min=0)
    var_y = (blur(y * y, window, options.padding) - mean_y * mean_y).clamp(min=0)
    tiny = 1e-12 * data_range**2
    deviations = torch.sqrt(var_x + tiny) * torch.sqrt(var_y + tiny)
    contrast = (2 * deviations + c2) / (var_x + var_y + c2)
    structure = (covariance + c2 / 2) / (deviations + c2 / 2)
    return power(luminance, a) * power(contrast, b) * power(structure, g)


def power(base: Tensor, exponent: float) -> Tensor:
    """Power with finite derivative: integer exponents as they are, others of the base clamped at 1e-6."""
    if exponent == 1:
        return base
    if float(exponent).is_integer():
        return base ** int(exponent)
    return base.clamp(min=1e-6) ** exponent

"""Mean structural dissimilarity with a backward pass of its own: less time and memory than the plain form.

The plain form of `mmkd.functional.ssim` keeps some twenty maps for its backward pass. Here value and gradient are made
together, a few channels at a time so that they stay in the processor's cache, and only the gradient is kept.

Shapes: `N` images, `C` channels, `H, W` cells, `K` side of the window, `h, w` cells of the result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.functional.normalisation import Normaliser, Part, Rescaling
from mmkd.functional.ssim import SSIMOptions, check_maps, fitting_window, gaussian_window

# Elements of one map that are worked on together, by kind of device. CPU: measured best of 2^17 ... 2^20 with 1 MiB
# of second-level cache a core. Others: few, large kernels; not measured.
PART = {'cpu': 2**18}
PART_ELSEWHERE = 2**22
# Cells of a map up to which two matrix products are a faster blur than convolutions.
DENSE = 1024


@dataclass(frozen=True)
class Settings:
    """What the sum depends on besides its maps.

    Args:
        data_range: D of the normalised maps.
        options: of the similarity; its exponents must be 1.
        normaliser: min-max normalisation of both maps.
    """

    data_range: float
    options: SSIMOptions
    normaliser: Normaliser


def fused_dissimilarity_sum(x: Tensor, y: Tensor, weight: Tensor | None, settings: Settings) -> Tensor:
    """Sum of `weight * (1 - SSIM(psi(x), psi(y))) / 2` over all elements.

    Equal to the same sum of `mmkd.functional.ssim.plain_ssim_map` in value and gradient. Differentiable once, and with
    respect to `x` alone: `create_graph=True` raises a RuntimeError. Inside `torch.compile` use `uncompiled()`.

    Args:
        x: (N, C, H, W) float map.
        y: (N, C, H, W) the target, without gradient.
        weight: (N, 1, h, w) weight of each cell of the result, without gradient; None for 1.
        settings: normalisation, window and borders.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes that do not fit, or exponents other than 1.
    """
    check_maps(x, y, settings.data_range)
    if not settings.options.is_standard:
        raise ValueError(f'The fused form needs the exponents (1, 1, 1), got {settings.options.exponents}.')
    with_gradient = torch.is_grad_enabled() and x.requires_grad
    return _DissimilaritySum.apply(x, y.detach(), weight, settings, with_gradient)


@cache
def uncompiled() -> Callable[..., Tensor]:
    """`fused_dissimilarity_sum`, which a `torch.compile` around it leaves as it is.

    What a compiler makes of convolutions on a GPU may round more than SSIM's small differences survive. The first call
    loads torch's compiler, a second or two, and must not be inside of what is compiled.
    """
    return torch.compiler.disable(fused_dissimilarity_sum)


class _DissimilaritySum(torch.autograd.Function):
    """The sum is linear in its upstream gradient, so that the gradient can be made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor | None, settings: Settings, gradient: bool) -> Tensor:
        total, gradient = _FusedPass(x, settings, gradient).run(x, y, weight)
        ctx.save_for_backward(gradient)
        return total / 2

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; torch's once_differentiable would let this pass in silence
            raise RuntimeError('The fused form has no second derivative; SSIMLoss(fused=False) has.')
        (gradient,) = ctx.saved_tensors
        return upstream * -0.5 * gradient, None, None, None, None


class _FusedPass:
    """One pass over a pair of maps, part by part.

    With `z = psi(x)`, `t = psi(y)`, B the Gaussian blur and B' its adjoint, four maps are blurred:

    ```
    m = B z,   n = B t,   p = B (z t + C2/2),   w = B ((z - t)^2 / 2)
    a1 = m n + C1/2,   a2 = p - m n,   b1 = a1 + (m - n)^2 / 2,   b2 = a2 + w - (m - n)^2 / 2
    SSIM = a1 a2 / (b1 b2)
    dSSIM/dw = -SSIM / b2,   dSSIM/dp = a1 / (b1 b2) - SSIM / b2
    dSSIM/dm = (n (a2 - a1) - m SSIM (b2 - b1)) / (b1 b2)
    dSSIM/dz = B' dSSIM/dm + t B' dSSIM/dp + (z - t) B' dSSIM/dw
    ```

    These are half the terms of the closed form, written so that equal maps give a1 = b1 and a2 = b2 to the last bit.
    """

    def __init__(self, like: Tensor, settings: Settings, with_gradient: bool) -> None:
        self.options, self.normaliser = settings.options, settings.normaliser
        kind = {'dtype': like.dtype, 'device': like.device}
        self.half_c1 = torch.full((), (self.options.k1 * settings.data_range) ** 2 / 2, **kind)
        self.half_c2 = torch.full((), (self.options.k2 * settings.data_range) ** 2 / 2, **kind)
        self.nothing = torch.zeros((), **kind)
        size = fitting_window(self.options.window_size, *like.shape[2:], self.options.padding)
        self.window, self.radius = gaussian_window(size, self.options.sigma, like), size // 2
        self.with_gradient = with_gradient
        self.dense = like.shape[2] * like.shape[3] <= DENSE and not rounds_products(like)
        self.border = self.radius if self.options.padding == 'same' and not self.dense else 0
        # channels_last is the fastest layout of a depthwise convolution on the CPU
        with_channels_last = like.device.type == 'cpu' and not self.dense
        self.layout = torch.channels_last if with_channels_last else torch.contiguous_format
        if self.dense:
            self.down, self.across = (blur_matrix(cells, self.window, self.options.padding) for cells in like.shape[2:])

    def run(self, x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sum of 1 - SSIM and, if asked for, the gradient of the sum of SSIM with respect to `x`."""
        scales = [Rescaling.of(value, self.normaliser) for value in (x, y)]
        total = x.new_zeros(())
        gradient = torch.empty_like(x) if self.with_gradient else None
        for part in split_into_parts(x):
            stack = self._fill(part, (x, y), scales)
            weights = None if weight is None else weight[part[0]].to(x.dtype)
            value, slopes = self._compare(self._blur(stack).chunk(4), weights)
            total += value
            if gradient is not None:
                slope = self._pull_back(slopes, stack)
                z = inner(stack.chunk(4)[0], self.border)
                gradient[part] = slope if scales[0] is None else scales[0].pull_back(slope, z, part)
        if gradient is not None and scales[0] is not None:
            scales[0].add_gradient_of_extremes(gradient, x)
        return total, gradient

    def _fill(self, part: Part, maps: tuple[Tensor, Tensor], scales: 'list[Rescaling | None]') -> Tensor:
        """The four maps to be blurred, with mirrored borders, stacked along the images."""
        images, channels, height, width = maps[0][part].shape
        shape = (4 * images, channels, height + 2 * self.border, width + 2 * self.border)
        stack = torch.empty(shape, dtype=maps[0].dtype, device=maps[0].device, memory_format=self.layout)
        z, t, product, difference = stack.chunk(4)
        for target, source, scale in zip((z, t), maps, scales, strict=True):
            cells = inner(target, self.border)
            if scale is None:
                cells.copy_(source[part])
            else:
                scale.apply(source[part], part, out=cells)
            mirror(target, self.border)
        torch.addcmul(self.half_c2, z, t, out=product)
        e = z - t
        torch.addcmul(self.nothing, e, e, value=0.5, out=difference)
        return stack

    def _blur(self, stack: Tensor, adjoint: bool = False) -> Tensor:
        """Windowed mean of each channel, or the adjoint of that."""
        if self.dense:
            down, across = (self.down.mT, self.across) if adjoint else (self.down, self.across.mT)
            return down @ (stack @ across)
        if stack.shape[1] == 1:  # of one group it would be an ordinary convolution, which cuDNN may compute in TF32
            return self._blur(stack.transpose(0, 1), adjoint).transpose(0, 1)
        padding = 2 * self.radius if adjoint else 0
        channels, size = stack.shape[1], self.window.numel()
        down = self.window.view(1, 1, -1, 1).expand(channels, 1, size, 1)
        across = self.window.view(1, 1, 1, -1).expand(channels, 1, 1, size)
        stack = F.conv2d(stack, down, padding=(padding, 0), groups=channels)
        return F.conv2d(stack, across, padding=(0, padding), groups=channels)

    def _compare(self, blurred: tuple[Tensor, ...], weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weighted sum of 1 - SSIM, and the three weighted slopes of SSIM stacked along the images."""
        m, n, p, w = blurred
        d = m - n
        a1 = torch.addcmul(self.half_c1, m, n)
        a2 = p.addcmul_(m, n, value=-1)
        b1 = torch.addcmul(a1, d, d, value=0.5)
        b2 = w.addcmul_(d, d, value=-0.5).add_(a2)
        denominator = b1 * b2
        similarity = (a1 * a2).div_(denominator)
        value = torch.sub(1, similarity, out=d)
        value = (value if weight is None else value.mul_(weight)).sum()
        if not self.with_gradient:
            return value, None
        shape = (3 * len(m), *m.shape[1:])
        slopes = torch.empty(shape, dtype=m.dtype, device=m.device, memory_format=self.layout)
        of_m, of_p, of_w = slopes.chunk(3)
        torch.div(similarity, b2, out=of_w).neg_()
        torch.div(a1, denominator, out=of_p).add_(of_w)
        torch.mul(a2.sub_(a1), n, out=of_m)
        of_m.addcmul_(b2.sub_(b1).mul_(similarity), m, value=-1).div_(denominator)
        if weight is not None:
            slopes.unflatten(0, (3, len(m))).mul_(weight)
        return value, slopes

    def _pull_back(self, slopes: Tensor, stack: Tensor) -> Tensor:
        """Gradient of the part's sum with respect to its normalised map."""
        z, t, *_ = stack.chunk(4)
        of_m, of_p, of_w = self._blur(slopes, adjoint=True).chunk(3)
        return fold_border(of_m.addcmul_(of_p, t).addcmul_(of_w, z - t), self.border)


def split_into_parts(x: Tensor) -> Iterator[Part]:
    """Slices of images and channels of about `PART` elements; channels in multiples of 16, which convolutions like."""
    images, channels, height, width = x.shape
    budget = max(1, PART.get(x.device.type, PART_ELSEWHERE) // (height * width))
    width_of_part = min(channels, max(16, budget // 16 * 16))
    images_of_part = max(1, budget // channels) if width_of_part == channels else 1
    for image in range(0, images, images_of_part):
        for channel in range(0, channels, width_of_part):
            yield slice(image, image + images_of_part), slice(channel, channel + width_of_part)


def rounds_products(like: Tensor) -> bool:
    """Whether matrix products of float32 are computed in TF32, which SSIM's small differences do not survive.

    A depthwise convolution in float32 is not (torch's own kernel).
    """
    if like.device.type != 'cuda' or like.dtype != torch.float32:
        return False
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # torch refuses to say where it was set by its newer names
        return True


def blur_matrix(cells: int, window: Tensor, padding: str) -> Tensor:
    """(h, H) matrix of the windowed mean along an axis of H cells, mirrored borders included."""
    radius = window.numel() // 2
    unit = torch.eye(cells, dtype=window.dtype, device=window.device)[None]
    if padding == 'same' and radius:
        unit = F.pad(unit, (radius, radius), mode='reflect')
    return (unit[0].unfold(1, window.numel(), 1) @ window).mT


def inner(value: Tensor, border: int) -> Tensor:
    """View of a map without its border."""
    height, width = value.shape[2:]
    return value[..., border : height - border, border : width - border]


def mirror(value: Tensor, border: int) -> None:
    """Fill the border of a map with its mirrored cells, in place; the edge cell is not repeated."""
    if border == 0:
        return
    for axis in (2, 3):
        size = value.shape[axis]
        value.narrow(axis, 0, border).copy_(value.narrow(axis, border + 1, border).flip(axis))
        value.narrow(axis, size - border, border).copy_(value.narrow(axis, size - 2 * border - 1, border).flip(axis))


def fold_border(gradient: Tensor, border: int) -> Tensor:
    """Adjoint of `mirror`: the border's gradient goes to the cells that it copied. Changes `gradient`."""
    if border == 0:
        return gradient
    for axis in (3, 2):
        size = gradient.shape[axis] - 2 * border
        gradient.narrow(axis, border + 1, border).add_(gradient.narrow(axis, 0, border).flip(axis))
        gradient.narrow(axis, size - 1, border).add_(gradient.narrow(axis, size + border, border).flip(axis))
        gradient = gradient.narrow(axis, border, size)
    return gradient

"""Mean structural dissimilarity with a backward pass of its own: less time and memory than the plain form.

The plain form of `mmkd.functional.ssim` keeps some twenty maps for its backward pass. Here value and gradient are made
together, a few channels at a time so that they stay in the processor's cache, and only the gradient is kept.

Shapes: `N` images, `C` channels, `H, W` cells, `K` side of the window, `h, w` cells of the result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.functional.normalisation import AXES, Normaliser, divisor_of
from mmkd.functional.ssim import SSIMOptions, check_maps, fitting_window, gaussian_window

# Elements of one map that are worked on together, by kind of device. CPU: measured best of 2^17 ... 2^21 with 1 MiB
# of second-level cache a core (docs/ssim.md). Others: few, large kernels; not measured.
PART = {'cpu': 2**19}
PART_ELSEWHERE = 2**22

Part = tuple[slice, slice]


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
    respect to `x` alone: `create_graph=True` raises a RuntimeError.

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


class _DissimilaritySum(torch.autograd.Function):
    """The sum is linear in its upstream gradient, so that the gradient can be made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor | None, settings: Settings, gradient: bool) -> Tensor:
        total, gradient = _FusedPass(x, settings, gradient).run(x, y, weight)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; torch's once_differentiable would let this pass in silence
            raise RuntimeError('The fused form has no second derivative; SSIMLoss(fused=False) has.')
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None


class _FusedPass:
    """One pass over a pair of maps, part by part.

    In `z = psi(x)`, `t = psi(y)` and with B the Gaussian blur, the four blurred maps are `mz = B z`, `mt = B t`,
    `q = B (z^2 + t^2)`, `p = B (z t)`, and

    ```
    SSIM = a1 a2 / (b1 b2),   a1 = 2 mz mt + C1,   a2 = 2 (p - mz mt) + C2,
                              b1 = mz^2 + mt^2 + C1,   b2 = q - mz^2 - mt^2 + C2
    dSSIM/dp = 2 a1 / (b1 b2),   dSSIM/dq = -SSIM / b2,
    dSSIM/dmz = 2 (mt (a2 - a1) - mz SSIM (b2 - b1)) / (b1 b2)
    dSSIM/dz = B'(dSSIM/dmz) + 2 z B'(dSSIM/dq) + t B'(dSSIM/dp)     with B' the adjoint of B
    ```

    The common factor -1/2 of the dissimilarity cancels the twos.
    """

    def __init__(self, like: Tensor, settings: Settings, with_gradient: bool) -> None:
        self.options, self.normaliser = settings.options, settings.normaliser
        self.c1 = (self.options.k1 * settings.data_range) ** 2
        self.c2 = (self.options.k2 * settings.data_range) ** 2
        size = fitting_window(self.options.window_size, *like.shape[2:], self.options.padding)
        self.window, self.radius = gaussian_window(size, self.options.sigma, like), size // 2
        self.border = self.radius if self.options.padding == 'same' else 0
        self.with_gradient = with_gradient
        # channels_last is the fastest layout of a depthwise convolution on the CPU
        self.layout = torch.channels_last if like.device.type == 'cpu' else torch.contiguous_format

    def run(self, x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sum and, if asked for, its gradient with respect to `x`."""
        scale_x, scale_y = (Rescaling.of(value, self.normaliser) for value in (x, y))
        total = x.new_zeros(())
        gradient = torch.empty_like(x) if self.with_gradient else None
        for part in split_into_parts(x):
            z, t = (self._prepare(value[part], scale, part) for value, scale in ((x, scale_x), (y, scale_y)))
            weights = None if weight is None else weight[part[0]].to(x.dtype)
            value, slopes = self._compare(z, t, weights)
            total += value
            if gradient is not None:
                slope = self._pull_back(slopes, z, t)
                gradient[part] = slope if scale_x is None else scale_x.pull_back(slope, self._inner(z), part)
        if gradient is not None and scale_x is not None:
            scale_x.add_gradient_of_extremes(gradient, x)
        return total / 2, gradient

    def _prepare(self, value: Tensor, scale: 'Rescaling | None', part: Part) -> Tensor:
        """Normalised part with its mirrored border, in the working layout."""
        value = value.contiguous(memory_format=self.layout)
        if scale is not None:
            value = scale.apply(value, part)
        return F.pad(value, (self.border,) * 4, mode='reflect') if self.border else value

    def _inner(self, value: Tensor) -> Tensor:
        """A prepared part without its border."""
        border, (height, width) = self.border, value.shape[2:]
        return value[..., border : height - border, border : width - border]

    def _blur(self, stack: Tensor, padding: int = 0) -> Tensor:
        """Windowed mean of each channel; with a zero padding of K - 1, the adjoint of that without."""
        channels, size = stack.shape[1], self.window.numel()
        down = self.window.view(1, 1, -1, 1).expand(channels, 1, size, 1)
        across = self.window.view(1, 1, 1, -1).expand(channels, 1, 1, size)
        stack = F.conv2d(stack, down, padding=(padding, 0), groups=channels)
        return F.conv2d(stack, across, padding=(0, padding), groups=channels)

    def _statistics(self, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The four blurred maps."""
        stack = self._stack(4, z)
        first, second, squares, product = stack.chunk(4)
        first.copy_(z)
        second.copy_(t)
        # rounded like `product`, which addcmul's fused multiply-add is not: equal maps then differ by exactly 0
        torch.mul(z, z, out=squares).add_(t * t)
        torch.mul(z, t, out=product)
        return self._blur(stack).chunk(4)

    def _compare(self, z: Tensor, t: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weighted sum of 1 - SSIM and, stacked along the images, minus half the three slopes of that."""
        mean_z, mean_t, q, p = self._statistics(z, t)
        a1, b1 = mean_z * mean_t, (mean_z * mean_z).add_(mean_t * mean_t)
        a2, b2 = p.sub_(a1).mul_(2).add_(self.c2), q.sub_(b1).add_(self.c2)
        a1.mul_(2).add_(self.c1)
        b1.add_(self.c1)
        denominator = b1 * b2
        similarity = (a1 * a2).div_(denominator)
        value = 1 - similarity
        value = (value if weight is None else value.mul_(weight)).sum()
        if not self.with_gradient:
            return value, None
        slopes = self._stack(3, mean_z)
        of_mean, of_q, of_p = slopes.chunk(3)
        torch.div(a1, denominator, out=of_p)
        torch.div(similarity, b2, out=of_q)
        torch.mul(a2.sub_(a1), mean_t, out=of_mean)
        of_mean.addcmul_(b2.sub_(b1).mul_(similarity), mean_z, value=-1).div_(denominator)
        if weight is not None:
            slopes.unflatten(0, (3, len(z))).mul_(weight)
        return value, slopes

    def _stack(self, count: int, like: Tensor) -> Tensor:
        images, *rest = like.shape
        return torch.empty((count * images, *rest), dtype=like.dtype, device=like.device, memory_format=self.layout)

    def _pull_back(self, slopes: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Gradient of the part's sum with respect to its normalised map."""
        of_mean, of_q, of_p = self._blur(slopes, padding=2 * self.radius).chunk(3)
        gradient = of_q.mul_(z).sub_(of_mean).addcmul_(of_p, t, value=-1)
        return fold_border(gradient, self.border)


@dataclass
class Rescaling:
    """Min-max normalisation of one map, and the way back of its gradient.

    Args:
        normaliser: scope and treatment of the extremes.
        extremes: minimum and maximum of each plane, (N, C, 1, 1) each.
        shared: minimum and maximum of what shares them, expanded to (N, C, 1, 1).
        divisor: (N, C, 1, 1) range, infinite where constant.
        sums: (2, N, C, 1, 1) sums of the gradient, and of gradient times normalised map.
    """

    normaliser: Normaliser
    extremes: tuple[Tensor, Tensor]
    shared: tuple[Tensor, Tensor]
    divisor: Tensor
    sums: Tensor

    @classmethod
    def of(cls, x: Tensor, normaliser: Normaliser) -> 'Rescaling | None':
        """Rescaling of a map, None where the maps are compared as they are."""
        if normaliser.scope is None:
            return None
        axes = AXES[normaliser.scope]
        extremes = low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        shared = low.amin(axes, keepdim=True).expand_as(low), high.amax(axes, keepdim=True).expand_as(high)
        divisor = divisor_of(shared[1] - shared[0], normaliser.eps)
        return cls(normaliser, extremes, shared, divisor, torch.stack((torch.zeros_like(low),) * 2))

    def apply(self, value: Tensor, part: Part) -> Tensor:
        """Normalise a part of the map."""
        return (value - self.shared[0][part]).div_(self.divisor[part])

    def pull_back(self, gradient: Tensor, normalised: Tensor, part: Part) -> Tensor:
        """Gradient with respect to the part as it came; its share of the extremes' gradient is noted."""
        if not self.normaliser.detach_extremes:
            self.sums[0][part] = gradient.sum((2, 3), keepdim=True)
            self.sums[1][part] = (gradient * normalised).sum((2, 3), keepdim=True)
        return gradient / self.divisor[part]

    def add_gradient_of_extremes(self, gradient: Tensor, x: Tensor) -> None:
        """Add to `gradient`, in place, what reaches the extreme elements through minimum and range.

        With z = (x - low) / (high - low): dz/dlow = (z - 1) / (high - low), dz/dhigh = -z / (high - low). Elements
        that share an extreme share its gradient.
        """
        if self.normaliser.detach_extremes:
            return
        axes = AXES[self.normaliser.scope]
        total, along = self.sums.sum([axis + 1 for axis in axes], keepdim=True)
        for of_plane, of_group, share in zip(self.extremes, self.shared, (along - total, -along), strict=True):
            # few planes hold an extreme: only they are looked at again
            planes = (of_plane == of_group)[..., 0, 0].nonzero(as_tuple=True)
            hits = (x[planes] == of_group[planes]).to(x.dtype)
            count = torch.zeros_like(of_plane)
            count[planes] = hits.sum((1, 2), keepdim=True)
            each = share / count.sum(axes, keepdim=True) / self.divisor
            gradient[planes] += hits * each[planes]


def split_into_parts(x: Tensor) -> Iterator[Part]:
    """Slices of images and channels of about `PART` elements; channels in multiples of 16, which convolutions like."""
    images, channels, height, width = x.shape
    budget = max(1, PART.get(x.device.type, PART_ELSEWHERE) // (height * width))
    width_of_part = min(channels, max(16, budget // 16 * 16))
    images_of_part = max(1, budget // channels) if width_of_part == channels else 1
    for image in range(0, images, images_of_part):
        for channel in range(0, channels, width_of_part):
            yield slice(image, image + images_of_part), slice(channel, channel + width_of_part)


def fold_border(gradient: Tensor, border: int) -> Tensor:
    """Adjoint of mirroring: the border's gradient goes to the cells that it copied. Changes `gradient`."""
    if border == 0:
        return gradient
    for axis in (2, 3):
        size = gradient.shape[axis] - 2 * border
        gradient.narrow(axis, border + 1, border).add_(gradient.narrow(axis, 0, border).flip(axis))
        gradient.narrow(axis, size - 1, border).add_(gradient.narrow(axis, size + border, border).flip(axis))
        gradient = gradient.narrow(axis, border, size)
    return gradient

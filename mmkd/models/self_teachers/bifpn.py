"""Self-teacher of FRSKD: a bidirectional pyramid that refines the student's own features.

Shapes: `N` images, `c_i` channels of level i of the student, `d_i` of the self-teacher; levels are numbered from the
finest, 1, to the coarsest, n, of any sizes H x W.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.registry import MODELS

Norm = Literal['BN', 'GN', 'SyncBN']


class OneCellGroupNorm(nn.GroupNorm):
    """GroupNorm that also serves maps of one cell where each group is one channel.

    There a group is a single number and its variance 0: torch refuses one image, and gives the bias whatever comes for
    several. On such a map all channels are one group here; a single channel is scaled and shifted as it is. Any other
    map, and any wider group, is torch's own.
    """

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        if self.num_groups != self.num_channels or feature.shape[2:].numel() != 1:
            return super().forward(feature)
        if self.num_channels == 1:
            return feature * self.weight + self.bias
        return F.group_norm(feature, 1, self.weight, self.bias, self.eps)


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Normalisation layer; GN has the largest number of groups up to 32 that divides the channels (`OneCellGroupNorm`).

    Raises:
        ValueError: unknown norm.
    """
    if norm == 'GN':
        groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
        return OneCellGroupNorm(groups, channels)
    if norm not in ('BN', 'SyncBN'):
        raise ValueError(f"norm must be 'BN', 'GN' or 'SyncBN', got {norm!r}.")
    return nn.BatchNorm2d(channels) if norm == 'BN' else nn.SyncBatchNorm(channels)


def pointwise(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    """1x1 convolution without bias, norm, ReLU: (N, in, H, W) -> (N, out, H, W)."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, make_norm(norm, out_channels), nn.ReLU())


def separable(channels: int, depth: int, norm: Norm) -> nn.Sequential:
    """`depth` times depthwise 3x3, 1x1, norm, with ReLU between and none at the end."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.ReLU()] if index else []
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            make_norm(norm, channels),
        ]
    return nn.Sequential(*layers)


def enlarged(feature: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """(N, C, H, W) -> (N, C, *size)."""
    return F.interpolate(feature, size, mode=mode, align_corners=None if mode == 'nearest' else False)


def halved(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-pool 3, stride 2, 'same' padding of a map >= 0: ceil(H / 2) x ceil(W / 2), then to `size` if that differs."""
    pads = []
    for length in (feature.shape[-1], feature.shape[-2]):
        extra = (-(-length // 2) - 1) * 2 + 3 - length
        pads += [extra // 2, extra - extra // 2]
    pooled = F.max_pool2d(F.pad(feature, pads), 3, 2)
    return pooled if tuple(pooled.shape[-2:]) == tuple(size) else F.interpolate(pooled, size, mode='nearest')


class Fusion(nn.Module):
    """Learned weighted mean of maps: `sum_k w_k x_k`, `w = relu(v) / (sum relu(v) + eps)`, v from 1.

    Args:
        inputs: number of maps.
        eps: keeps the division finite.
    """

    def __init__(self, inputs: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))
        self.eps = eps

    def forward(self, *maps: Tensor) -> Tensor:
        """Equally shaped maps -> one."""
        weight = self.weight.relu()
        weight = weight / (weight.sum() + self.eps)
        return sum(w * x for w, x in zip(weight, maps, strict=True))


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up pass.

    Args:
        in_channels: c_i of each level.
        out_channels: d_i of each level.
        first: whether the inputs still need the lateral 1x1 of the top-down pass.
        depth: number of separable convolutions in each block.
        norm: normalisation.
        up_mode: how the coarser map is enlarged.
        project: a resized map passes a 1x1 (BiFPNc); otherwise all d_i must be equal (BiFPN).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        *,
        first: bool,
        depth: int,
        norm: Norm,
        up_mode: str,
        project: bool,
    ) -> None:
        super().__init__()
        n = len(in_channels)
        self.up_mode = up_mode
        sides = list(zip(in_channels, out_channels, strict=True))
        self.lateral = nn.ModuleList(pointwise(c, d, norm) for c, d in sides if first)
        self.lateral2 = nn.ModuleList(pointwise(c, d, norm) for c, d in sides[1:])
        neighbours = list(pairwise(out_channels))
        self.up = nn.ModuleList(pointwise(b, a, norm) if project else nn.Identity() for a, b in neighbours)
        self.down = nn.ModuleList(pointwise(a, b, norm) if project else nn.Identity() for a, b in neighbours)
        self.up_fusion = nn.ModuleList(Fusion(2) for _ in range(n - 1))
        self.down_fusion = nn.ModuleList(Fusion(3 if i < n - 1 else 2) for i in range(1, n))
        self.up_conv = nn.ModuleList(separable(d, depth, norm) for d in out_channels[:-1])
        self.down_conv = nn.ModuleList(separable(d, depth, norm) for d in out_channels[1:])

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(N, c_i, H_i, W_i) -> (N, d_i, H_i, W_i), both before ReLU."""
        sizes = [tuple(feat.shape[-2:]) for feat in feats]
        second = [lateral(F.relu(feat)) for lateral, feat in zip(self.lateral2, feats[1:], strict=True)]
        inputs = list(feats)
        if self.lateral:
            inputs = [lateral(F.relu(feat)) for lateral, feat in zip(self.lateral, feats, strict=True)]
        tops = [inputs[-1]]
        for i in reversed(range(len(feats) - 1)):
            above = self.up[i](enlarged(F.relu(tops[0]), sizes[i], self.up_mode))
            tops.insert(0, self.up_conv[i](self.up_fusion[i](F.relu(inputs[i]), above)))
        outputs = [tops[0]]
        for i in range(1, len(feats)):
            below = self.down[i - 1](halved(F.relu(outputs[-1]), sizes[i]))
            middle = [F.relu(tops[i])] if i < len(feats) - 1 else []
            fused = self.down_fusion[i - 1](F.relu(second[i - 1]), *middle, below)
            outputs.append(self.down_conv[i - 1](fused))
        return tuple(outputs)


@MODELS.register_module()
class BiFPNSelfTeacher(nn.Module):
    """BiFPN that refines the student's levels; grown on the student, dropped after training.

    Two forms, both in the authors' repository (MingiJi/FRSKD, classification/models/{bifpnc,bifpn}.py): BiFPNc, whose
    level i has `width * c_i` channels, and the fixed-channel BiFPN, with `out_channels` on all levels.

    Ji et al. 2021 (FRSKD), section 3.1, https://arxiv.org/abs/2103.08273. As the authors' code; `for_classification`
    is the whole network of the classification experiments. Differs: maps are resized to the next level's own size,
    whatever it is, where the code doubles it (the same where sizes halve), and repeated layers may have a width other
    than 1. The text names bilinear up-sampling, the code does nearest: `up_mode`. BatchNorm takes
    statistics over the batch, as published; with it several processes differ from one, and torch refuses to train with
    one image on a level of one cell. `norm='GN'` does neither.

    Args:
        in_channels: c_i of each level, finest first.
        width: d_i / c_i; without effect with `out_channels`.
        out_channels: one number of channels for all levels (BiFPN), `same` for that of the student's levels; None for
            BiFPNc.
        depth: number of separable convolutions in each block.
        num_layers: number of BiFPN layers (the paper's repeat).
        norm: `BN`, `GN` or `SyncBN`.
        up_mode: `nearest` or `bilinear`.

    Raises:
        TypeError: `in_channels` is not one number a level.
        ValueError: a number below 1, fewer than two levels, an unknown `norm` or `up_mode`, or `out_channels='same'`
            where the levels differ.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        width: int = 2,
        out_channels: int | Literal['same'] | None = None,
        depth: int = 2,
        num_layers: int = 1,
        norm: Norm = 'BN',
        up_mode: Literal['nearest', 'bilinear'] = 'nearest',
    ) -> None:
        super().__init__()
        if out_channels == 'same':
            out_channels = _common(in_channels)
        _check(in_channels, up_mode, width=width, out_channels=out_channels, depth=depth, num_layers=num_layers)
        self.out_channels = tuple(out_channels or width * c for c in in_channels)
        options = dict(depth=depth, norm=norm, up_mode=up_mode, project=out_channels is None)
        first = BiFPNLayer(in_channels, self.out_channels, first=True, **options)
        more = [BiFPNLayer(self.out_channels, self.out_channels, first=False, **options) for _ in range(num_layers - 1)]
        self.layers = nn.ModuleList([first, *more])
        self.fc: nn.Linear | None = None

    @classmethod
    def for_classification(cls, in_channels: Sequence[int], num_classes: int) -> 'BiFPNSelfTeacher':
        """The authors' whole classification network: width 2, depth 2, one layer, a classifier on the coarsest level.

        Args:
            in_channels: c_i of each stage of the student, finest first.
            num_classes: number of logits of `classify`.
        """
        network = cls(in_channels=in_channels)
        network.fc = nn.Linear(network.out_channels[-1], num_classes)
        return network

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Refined features.

        Args:
            feats: (N, c_i, H_i, W_i) of the student, finest first; they keep their gradient.

        Returns:
            (N, d_i, H_i, W_i), >= 0.

        Raises:
            ValueError: another number of levels than the network was built for.
        """
        return tuple(F.relu(feat) for feat in self.before_relu(feats))

    def before_relu(self, feats: Sequence[Tensor]) -> Sequence[Tensor]:
        """`forward` without its last ReLU: same shapes, same errors."""
        if len(feats) != len(self.out_channels):
            raise ValueError(f'feats must have {len(self.out_channels)} levels, got {len(feats)}.')
        for layer in self.layers:
            feats = layer(feats)
        return feats

    def classify(self, refined: Sequence[Tensor]) -> Tensor:
        """(N, num_classes) logits of the official classifier from what `forward` gave.

        Raises:
            ValueError: the network was not made by `for_classification`.
        """
        if self.fc is None:
            raise ValueError('classify needs a network made by BiFPNSelfTeacher.for_classification.')
        return self.fc(refined[-1].mean((2, 3)))


def _common(in_channels: Sequence[int]) -> int:
    if not isinstance(in_channels, list | tuple) or len(set(in_channels)) != 1:
        raise ValueError(f"out_channels='same' needs levels of equal channels, got in_channels={in_channels}.")
    return in_channels[0]


def _check(in_channels: Sequence[int], up_mode: str, **numbers: int | None) -> None:
    if not isinstance(in_channels, list | tuple):
        raise TypeError(f'in_channels must have one number a level, got {in_channels!r}.')
    if len(in_channels) < 2:
        raise ValueError(f'BiFPNSelfTeacher needs at least 2 levels, got {len(in_channels)}.')
    if up_mode not in ('nearest', 'bilinear'):
        raise ValueError(f"up_mode must be 'nearest' or 'bilinear', got {up_mode!r}.")
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f'{name} must be >= 1, got {number}.')

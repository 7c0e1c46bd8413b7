"""Levels of one pyramid that teach each other: who teaches whom, on which grid, with which channels.

Shapes: `N` images, `C` channels, `H, W` cells of a level, `L` levels. Strides are px of the padded input per cell.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.registry import MODELS

Direction = Literal['deep_to_shallow', 'shallow_to_deep', 'both', 'fused']
DIRECTIONS = ('deep_to_shallow', 'shallow_to_deep', 'both', 'fused')


def level_pairs(direction: Direction, levels: int) -> list[tuple[int, int | None]]:
    """Pairs (taught level, teaching level), 0 being the finest; the teacher None stands for the fusion of all levels.

    Raises:
        ValueError: unknown direction, or a single level.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f'direction must be one of {DIRECTIONS}, got {direction!r}.')
    if levels < 2:
        raise ValueError(f'Levels teach each other only where there are at least 2, got {levels}.')
    if direction == 'fused':
        return [(level, None) for level in range(levels)]
    down = [(level, level + 1) for level in range(levels - 1)]
    up = [(level + 1, level) for level in range(levels - 1)]
    return {'deep_to_shallow': down, 'shallow_to_deep': up, 'both': down + up}[direction]


def resized(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) on another grid: bilinear to a finer one, mean over the covered cells to a coarser one."""
    if tuple(feature.shape[-2:]) == tuple(size):
        return feature
    if size[0] >= feature.shape[-2] and size[1] >= feature.shape[-1]:
        return F.interpolate(feature, size, mode='bilinear', align_corners=False)
    return F.adaptive_avg_pool2d(feature, size)


@MODELS.register_module()
class CrossScaleConnector(nn.Module):
    """One side of the pairs of levels that teach each other; its loss has one entry a pair.

    `student` gives `phi_k(F_s)` with a learned 1x1 convolution, `teacher` gives `sg(Resize(F_t))` on the taught level's
    grid. Nothing of it is left after training. Both sides of a loss take the same `direction`.

    Jia et al. 2024 (MSSD), abstract: features of different scales distil within one network,
    https://doi.org/10.1007/s44267-024-00040-3. Not published: which level teaches which. This project's choice: the
    next deeper level teaches, as the deeper classifier does in self-distillation of classifiers; others are options.

    Args:
        role: which side.
        direction: `deep_to_shallow`, `shallow_to_deep`: the neighbouring level teaches; `both`; `fused`: the mean of
            all levels teaches each.
        adapt: learn phi, from the identity where the channels are equal; without it channels must be equal.
        in_channels: C of each level.
        in_strides: stride of each level; None for levels in the order from the finest to the coarsest.

    Raises:
        TypeError: `in_channels` or `in_strides` is not one number a level.
        ValueError: unknown role or direction, fewer than two levels, or channels that differ without a way to adapt.
    """

    def __init__(
        self,
        *,
        role: Literal['student', 'teacher'],
        direction: Direction = 'deep_to_shallow',
        adapt: bool = True,
        in_channels: Sequence[int],
        in_strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if role not in ('student', 'teacher'):
            raise ValueError(f"role must be 'student' or 'teacher', got {role!r}.")
        if not isinstance(in_channels, list | tuple):
            raise TypeError(f'in_channels must have one number a level, got {in_channels!r}; record a pyramid.')
        if in_strides is not None and len(in_strides) != len(in_channels):
            raise TypeError(f'in_strides must have one number a level, got {in_strides!r} for {in_channels!r}.')
        self.role = role
        self.levels = len(in_channels)
        # YOLOv3's neck gives the coarsest level first
        order = sorted(range(self.levels), key=lambda level: level if in_strides is None else in_strides[level])
        self.pairs = [
            (order[student], None if teacher is None else order[teacher])
            for student, teacher in level_pairs(direction, self.levels)
        ]
        wanted = [in_channels[-1 if teacher is None else teacher] for _, teacher in self.pairs]
        unequal = len(set(in_channels)) > 1
        if unequal and (direction == 'fused' or not adapt):
            raise ValueError(f'in_channels must be equal with direction={direction!r}, adapt={adapt}: {in_channels}.')
        learned = adapt and role == 'student'
        self.adapters = nn.ModuleList(
            _adapter(in_channels[student], channels)
            for (student, _), channels in zip(self.pairs, wanted, strict=True)
            if learned
        )

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """L maps (N, C, H, W) -> one map a pair, on the taught level's grid.

        Raises:
            TypeError: `feats` is a single map.
            ValueError: another number of levels than the connector was built for.
        """
        if not isinstance(feats, list | tuple):
            raise TypeError(f'feats must be a tuple with one map a level, got {type(feats).__name__}.')
        if len(feats) != self.levels:
            raise ValueError(f'feats must have {self.levels} levels, got {len(feats)}.')
        if self.role == 'teacher':
            return tuple(self._taught(feats, student, teacher) for student, teacher in self.pairs)
        taught = [feats[student] for student, _ in self.pairs]
        if not self.adapters:
            return tuple(taught)
        return tuple(adapter(feat) for adapter, feat in zip(self.adapters, taught, strict=True))

    @staticmethod
    def _taught(feats: Sequence[Tensor], student: int, teacher: int | None) -> Tensor:
        size = tuple(feats[student].shape[-2:])
        if teacher is not None:
            return resized(feats[teacher].detach(), size)
        return sum(resized(feat.detach(), size) for feat in feats) / len(feats)

    def pair_names(self, levels: Sequence[str]) -> tuple[str, ...]:
        """Name of each pair from the levels' names: `p3_from_p4`, `p3_from_all`."""
        return tuple(
            f'{levels[student]}_from_{"all" if teacher is None else levels[teacher]}' for student, teacher in self.pairs
        )


def _adapter(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(conv.bias)
    if in_channels == out_channels:
        nn.init.dirac_(conv.weight)
    else:
        nn.init.normal_(conv.weight, std=in_channels**-0.5)
    return conv

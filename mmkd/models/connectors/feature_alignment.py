"""One student level for several teacher levels, or several student segments for one teacher map.

Shapes: `N` images, `C_s, C_t` channels of student and teacher, `H_l, W_l` cells of level l. Strides are px per cell.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.registry import MODELS

Ints = int | Sequence[int]
Maps = Tensor | Sequence[Tensor]


class _Fusion(nn.Module):
    """One teacher level predicted from several student levels, weighted by a learned softmax at every cell."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        if len(in_channels) > 1:
            self.score = nn.Conv2d(out_channels, 1, 1)
            nn.init.zeros_(self.score.weight)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        maps = [_project_to(level, conv, size) for level, conv in zip(levels, self.project, strict=True)]
        if len(maps) == 1:
            return maps[0]
        weights = torch.cat([self.score(value) for value in maps], dim=1).softmax(1)
        return sum(value * weights[:, i : i + 1] for i, value in enumerate(maps))


def _project_to(feature: Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """1x1 convolution and change of grid, the cheaper one first."""
    if tuple(feature.shape[2:]) == size:
        return conv(feature)
    if feature.shape[2] * feature.shape[3] > size[0] * size[1]:
        return conv(F.adaptive_avg_pool2d(feature, size))
    return F.interpolate(conv(feature), size=size, mode='bilinear', align_corners=False)


@MODELS.register_module()
class FeatureAlignment(nn.Module):
    """Student pyramid -> one map for each teacher level, in the teacher's channels and grid (one-to-many matching).

    - 'levels': teacher level j is predicted from all student levels i whose stride is within a factor `2**reach` of its
      own: `sum_i a_ij * conv1x1_ij(grid_j(F_i))`, `a` a softmax over i at every cell from a learned 1x1 score. So a
      student level serves several teacher levels. Fusion lies on the student's side alone: the target cannot become
      easier.
    - 'segments': `conv1x1_{C_s -> n C_t}(F_j)`: n segments, each compared with the whole teacher map, as the N-to-one
      matching of NORM (Liu et al. 2023, https://arxiv.org/abs/2305.13803), without its BatchNorm and without feeding
      the result back into the student, which stays a plain detector.

    Yao et al. 2025 (https://doi.org/10.32604/cmc.2025.060609) publish 'one-to-many matching by a feature alignment
    module' in an abstract only: both readings are this project's choice.

    Args:
        in_channels: C_s of each student level (a number for a single map).
        out_channels: C_t of each teacher level (a number for a single map).
        in_strides: px per cell of each student level; None means that the levels of both sides correspond one by one
            and that each is twice as coarse as the one before it.
        out_strides: the same of the teacher.
        mode: which reading.
        reach: octaves of stride between which levels are matched; only for 'levels'. A teacher level that no student
            level reaches takes the nearest one.
        num_segments: n; only for 'segments'.

    Raises:
        ValueError: unknown mode, or numbers of channels and strides that do not fit.
    """

    def __init__(
        self,
        *,
        in_channels: Ints,
        out_channels: Ints,
        in_strides: Ints | None = None,
        out_strides: Ints | None = None,
        mode: Literal['levels', 'segments'] = 'levels',
        reach: int = 1,
        num_segments: int = 4,
    ) -> None:
        super().__init__()
        if mode not in ('levels', 'segments'):
            raise ValueError(f"mode must be 'levels' or 'segments', got {mode!r}.")
        if reach < 0 or num_segments < 1:
            raise ValueError(f'reach must be >= 0 and num_segments >= 1, got {reach} and {num_segments}.')
        channels_s, channels_t = _as_tuple(in_channels), _as_tuple(out_channels)
        strides_s, strides_t = _strides(in_strides, len(channels_s)), _strides(out_strides, len(channels_t))
        self.single = isinstance(out_channels, int)
        self.strides_s, self.strides_t = strides_s, strides_t
        self.num_segments = num_segments if mode == 'segments' else 1
        reach = reach if mode == 'levels' else 0
        self.sources = [_within_reach(strides_s, stride, reach) for stride in strides_t]
        self.fusions = nn.ModuleList(
            _Fusion([channels_s[i] for i in sources], self.num_segments * channels)
            for sources, channels in zip(self.sources, channels_t, strict=True)
        )

    def forward(self, student: Maps, teacher: Maps | None = None) -> Tensor | tuple[Tensor, ...]:
        """Predictions of the teacher's levels.

        Args:
            student: one (N, C_s, H_l, W_l) map a level, or a single map.
            teacher: the teacher's maps, for their grids alone; None takes the grids of the student's levels of the same
                stride.

        Returns:
            One (N, num_segments * C_t, H_l, W_l) map a teacher level, or a single map.

        Raises:
            ValueError: the number of levels is another than announced, or a grid is unknown.
        """
        student = (student,) if isinstance(student, Tensor) else student
        teacher = (teacher,) if isinstance(teacher, Tensor) else teacher
        if len(student) != len(self.strides_s) or (teacher is not None and len(teacher) != len(self.strides_t)):
            raise ValueError(
                f'Expected {len(self.strides_s)} student and {len(self.strides_t)} teacher levels, '
                f'got {len(student)} and {None if teacher is None else len(teacher)}.'
            )
        sizes = [self._grid(level, student, teacher) for level in range(len(self.strides_t))]
        outputs = tuple(
            fusion([student[i] for i in sources], size)
            for fusion, sources, size in zip(self.fusions, self.sources, sizes, strict=True)
        )
        return outputs[0] if self.single else outputs

    def _grid(self, level: int, student: Sequence[Tensor], teacher: Sequence[Tensor] | None) -> tuple[int, int]:
        if teacher is not None:
            return tuple(teacher[level].shape[2:])
        stride = self.strides_t[level]
        if stride not in self.strides_s:
            raise ValueError(f"The grid of stride {stride} is not among the student's; give the teacher's maps too.")
        return tuple(student[self.strides_s.index(stride)].shape[2:])


def _as_tuple(value: Ints) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _within_reach(strides: Sequence[int], stride: int, reach: int) -> list[int]:
    """Indices of the strides at most `reach` octaves from `stride`, or of the nearest one."""
    octaves = [abs(math.log2(own / stride)) for own in strides]
    limit = max(reach, min(octaves)) + 1e-6
    return [i for i, distance in enumerate(octaves) if distance <= limit]


def _strides(strides: Ints | None, levels: int) -> tuple[int, ...]:
    values = tuple(2**level for level in range(levels)) if strides is None else _as_tuple(strides)
    if len(values) != levels:
        raise ValueError(f'{levels} levels need as many strides, got {values}.')
    return values

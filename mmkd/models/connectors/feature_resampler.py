"""A student feature that is disturbed and made again before it is compared.

Shapes: `N` images, `C` channels, `H, W` cells of one feature level.
"""

from typing import Literal

import torch
from mmengine.dist import get_rank
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.registry import MODELS


@MODELS.register_module()
class FeatureResampler(nn.Module):
    """Random resampling of a feature, so that the student does not merely copy the teacher's.

    With `phi` a 1x1 convolution to `out_channels` (none where the channels agree already):

    - 'mask': `conv3x3(ReLU(conv3x3(phi(F) * M)))`, `M` drops each cell with all its channels with probability `ratio`;
      Yang et al. 2022 (MGD) (https://arxiv.org/abs/2205.01529).
    - 'down_up': `phi(F)` averaged down by a factor drawn from `[1, 1 / (1 - ratio)]` and interpolated back.
    - 'none': `phi(F)`, for ablations.

    Yao et al. 2025 (https://doi.org/10.32604/cmc.2025.060609) publish 'feature resampling' in an abstract only: both
    readings are this project's choice. At evaluation nothing is dropped and nothing is sampled down.

    Random numbers come from a generator of the module's own, on the CPU: from its seed, the number of draws so far
    (both in the state, so that resuming and copies continue the same row) and the rank.

    Args:
        in_channels: C of the student's feature.
        out_channels: C of the teacher's feature.
        mode: what is done to the feature.
        ratio: share of cells that is dropped, or of the side length that is lost at most; in [0, 1). MGD uses 0.65 for
            one-stage and 0.45 for two-stage detectors.
        seed: of the module's generator; None draws one from torch's global generator once, at construction.

    Raises:
        ValueError: unknown mode or `ratio` outside [0, 1).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        mode: Literal['mask', 'down_up', 'none'] = 'mask',
        ratio: float = 0.65,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in ('mask', 'down_up', 'none'):
            raise ValueError(f"mode must be 'mask', 'down_up' or 'none', got {mode!r}.")
        if not 0 <= ratio < 1:
            raise ValueError(f'ratio must be in [0, 1), got {ratio}.')
        self.mode, self.ratio = mode, ratio
        same = in_channels == out_channels
        self.align = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        if mode == 'mask':
            self.generate = nn.Sequential(
                nn.Conv2d(out_channels, out_channels, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(out_channels, out_channels, 3, padding=1),
            )
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        self.register_buffer('seed_and_draws', torch.tensor([seed, 0]))
        self._read: tuple[Tensor | None, int] = (None, 0)  # the buffer and its version when `_position` was read
        self._position = (seed, 0)

    def forward(self, feature: Tensor) -> Tensor:
        """Aligned and, in training, resampled feature.

        Args:
            feature: (N, in_channels, H, W).

        Returns:
            (N, out_channels, H, W).
        """
        feature = self.align(feature)
        if self.mode == 'mask':
            return self.generate(self._drop_cells(feature) if self.training else feature)
        if self.mode == 'down_up' and self.training:
            return self._down_up(feature)
        return feature

    def _draw(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1) on the CPU; the next ones at every call."""
        seed, draws = self._next_position()
        mixed = (seed * 1_000_003 + draws) * 1_009 + get_rank()
        return torch.rand(size, generator=torch.Generator().manual_seed(mixed % 2**63))

    def _next_position(self) -> tuple[int, int]:
        """Seed and number of draws so far, counted on the host as long as nobody else writes the buffer.

        To read a buffer on a GPU at every step would wait for all that it has been given. Loading a state, DDP's
        broadcast and a move to another device change the buffer or its version.
        """
        state = self.seed_and_draws
        if self._read[0] is not state or self._read[1] != state._version:
            self._position = tuple(state.tolist())
        seed, draws = self._position
        state[1] += 1
        self._position, self._read = (seed, draws + 1), (state, state._version)
        return seed, draws

    def _drop_cells(self, feature: Tensor) -> Tensor:
        n, _, h, w = feature.shape
        kept = self._draw(n, 1, h, w) >= self.ratio
        return feature * _sent(kept, feature.device).to(feature.dtype)

    def _down_up(self, feature: Tensor) -> Tensor:
        scale = 1 - self.ratio * float(self._draw(1))
        size = feature.shape[2:]
        coarse = [max(1, round(side * scale)) for side in size]
        return F.interpolate(F.adaptive_avg_pool2d(feature, coarse), size=size, mode='bilinear', align_corners=False)


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """On the device, from the CPU, without waiting for it: only a copy from pinned memory never does."""
    return (value.pin_memory() if device.type == 'cuda' else value).to(device, non_blocking=True)

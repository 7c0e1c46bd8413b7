"""How the weight of a loss changes over training."""

import math
from dataclasses import dataclass
from typing import Literal

RAMPS = ('constant', 'linear', 'cosine', 'sigmoid')


@dataclass(frozen=True, kw_only=True)
class WeightSchedule:
    """Factor on a loss, a function of the epoch or the iteration alone, so that resuming needs no state.

    `constant` is 1 from `begin` to `end` and 0 outside. The ramps are 0 before `begin`, rise from 0 to 1 between
    `begin` and `end`, and stay 1. With t in [0, 1] between the two: `linear` t, `cosine` (1 - cos(pi t)) / 2,
    `sigmoid` exp(-5 (1 - t)^2) (Laine & Aila 2017, section 2; Ji et al. 2021 use it for segmentation).

    t counts what was done before: (now - begin) / (end - begin), so that the first epoch has t = 0 and 1 is reached in
    epoch `end` (this project's choice). With `inclusive`, as the code of Ji et al., it counts the running epoch too:
    (now + 1 - begin) / (end - begin), 1 in epoch `end - 1`. Theirs is
    `begin=40, end=60, ramp='sigmoid', inclusive=True`: 0 in epoch 39, 0.0110 in 40, 1 in 59, the last.

    Args:
        begin: first epoch or iteration, counted from 0.
        end: epoch or iteration at which the ramp has risen or the constant ends; None for never.
        ramp: one of `constant`, `linear`, `cosine`, `sigmoid`.
        by_epoch: count epochs, else iterations.
        inclusive: a ramp counts the running epoch (or iteration) as done.

    Raises:
        ValueError: unknown ramp, negative begin, end not after begin, a ramp without an end, or `inclusive` without a
            ramp.
    """

    begin: float = 0
    end: float | None = None
    ramp: Literal['constant', 'linear', 'cosine', 'sigmoid'] = 'constant'
    by_epoch: bool = True
    inclusive: bool = False

    def __post_init__(self) -> None:
        if self.ramp not in RAMPS:
            raise ValueError(f'ramp must be one of {RAMPS}, got {self.ramp!r}.')
        if self.begin < 0:
            raise ValueError(f'begin must be >= 0, got {self.begin}.')
        if self.end is not None and self.end <= self.begin:
            raise ValueError(f'end must be greater than begin={self.begin}, got {self.end}.')
        if self.end is None and self.ramp != 'constant':
            raise ValueError(f'ramp {self.ramp!r} needs an end.')
        if self.inclusive and self.ramp == 'constant':
            raise ValueError("inclusive=True needs a ramp: ramp='constant' has no t.")

    def factor(self, epoch: int, iteration: int) -> float:
        """Factor in [0, 1] at an epoch and iteration, both counted from 0."""
        now = epoch if self.by_epoch else iteration
        if now < self.begin:
            return 0.0
        if self.end is None:
            return 1.0
        if self.ramp == 'constant':
            return float(now < self.end)
        t = min((now + self.inclusive - self.begin) / (self.end - self.begin), 1.0)
        if self.ramp == 'linear':
            return t
        if self.ramp == 'cosine':
            return (1 - math.cos(math.pi * t)) / 2
        return math.exp(-5 * (1 - t) ** 2)

    def ever_on(self, last: int) -> bool:
        """Whether the factor is above 0 at some epoch (or iteration) from 0 to `last`."""
        return any(self.factor(now, now) > 0 for now in {min(math.ceil(self.begin), last), last})

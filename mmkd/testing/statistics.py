"""Means over seeds and paired differences with a t-interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: Of the values.
        half_width: Of the interval that holds the true mean with the stated confidence; NaN for fewer than two values.
        count: Number of values.
    """

    mean: float
    half_width: float
    count: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width

    def as_dict(self) -> dict:
        """Numbers for a JSON file; None where there is no interval."""
        known = math.isfinite(self.half_width)
        ends = {'low': self.low, 'high': self.high} if known else {'low': None, 'high': None}
        return {'mean': self.mean, 'count': self.count, **ends}


def mean_with_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean and Student's t-interval: mean +- t_(n-1) s / sqrt(n), s with n - 1.

    Args:
        values: One a seed.
        confidence: Of the interval, in (0, 1).

    Returns:
        The estimate.

    Raises:
        ValueError: For no values.
    """
    if not len(values):
        raise ValueError('values must hold at least one number, got none')
    numbers = np.asarray(values, dtype=np.float64)
    count = len(numbers)
    if count < 2:
        return Estimate(float(numbers[0]), math.nan, 1)
    factor = stats.t.ppf(0.5 + confidence / 2, count - 1)
    return Estimate(float(numbers.mean()), float(factor * numbers.std(ddof=1) / math.sqrt(count)), count)


def paired_difference(arm: dict[int, float], plain: dict[int, float], confidence: float = 0.95) -> Estimate:
    """Mean over seeds of arm - plain, seed by seed, with its t-interval.

    Args:
        arm: Seed -> score.
        plain: Seed -> score of the arm it is compared with; seeds that only one of both has are left out.
        confidence: Of the interval.

    Returns:
        The estimate.

    Raises:
        ValueError: Where they share no seed.
    """
    shared = sorted(set(arm) & set(plain))
    if not shared:
        raise ValueError(f'no seed in common: {sorted(arm)} and {sorted(plain)}')
    return mean_with_interval([arm[seed] - plain[seed] for seed in shared], confidence)

import math

import numpy as np
import pytest
from scipy import stats

from mmkd.testing.statistics import mean_with_interval, paired_difference


def test_interval_is_that_of_a_one_sample_t_test():
    values = [0.31, 0.35, 0.30, 0.42]
    found = mean_with_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_three_values_by_hand():
    # mean 2, s = 1, t_(2, .975) = 4.302653 (printed tables), so the half width is 4.302653 / sqrt(3)
    assert mean_with_interval([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_paired_interval_is_that_of_a_paired_t_test():
    arm, plain = {0: 0.40, 1: 0.45, 2: 0.38}, {0: 0.36, 1: 0.42, 2: 0.37}
    found = paired_difference(arm, plain)
    expected = stats.ttest_rel(list(arm.values()), list(plain.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_what_all_seeds_share_cancels_in_the_difference():
    plain = {seed: 0.1 * seed for seed in range(5)}
    found = paired_difference({seed: score + 0.02 for seed, score in plain.items()}, plain)
    assert found.mean == pytest.approx(0.02)
    assert found.half_width == pytest.approx(0, abs=1e-12)


def test_only_shared_seeds_count():
    assert paired_difference({0: 1.0, 1: 2.0, 7: 50.0}, {0: 0.0, 1: 1.0, 2: -9.0}).as_dict() == pytest.approx(
        {'mean': 1.0, 'count': 2, 'low': 1.0, 'high': 1.0}
    )


def test_one_value_has_no_interval():
    assert mean_with_interval([0.5]).as_dict() == {'mean': 0.5, 'count': 1, 'low': None, 'high': None}


def test_refuses_nothing_to_average():
    with pytest.raises(ValueError, match='at least one number'):
        mean_with_interval([])
    with pytest.raises(ValueError, match='no seed in common'):
        paired_difference({0: 1.0}, {1: 1.0})

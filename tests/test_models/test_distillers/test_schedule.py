"""Weights over training."""

import math

import pytest

from mmkd.models.distillers.schedule import WeightSchedule


def test_constant_is_one_inside_its_interval_and_zero_outside():
    schedule = WeightSchedule(begin=2, end=4)
    assert [schedule.factor(epoch, 0) for epoch in range(6)] == [0, 0, 1, 1, 0, 0]


def test_constant_without_end_never_ends():
    assert WeightSchedule(begin=1).factor(10**6, 0) == 1


@pytest.mark.parametrize(('ramp', 'half'), [('linear', 0.5), ('cosine', 0.5), ('sigmoid', math.exp(-5 * 0.25))])
def test_ramps_rise_to_one_and_stay(ramp, half):
    schedule = WeightSchedule(begin=4, end=8, ramp=ramp)
    assert schedule.factor(3, 0) == 0
    assert schedule.factor(6, 0) == pytest.approx(half)
    assert schedule.factor(8, 0) == 1
    assert schedule.factor(100, 0) == 1
    values = [schedule.factor(epoch, 0) for epoch in range(4, 9)]
    assert values == sorted(values)


def test_sigmoid_is_the_ramp_of_frskd():
    """notes: segmentation is off for 40 of 60 epochs, then exp(-5 (1-t)^2)."""
    schedule = WeightSchedule(begin=40, end=60, ramp='sigmoid')
    assert schedule.factor(39, 0) == 0
    assert schedule.factor(50, 0) == pytest.approx(math.exp(-5 * 0.5**2))


def test_iterations_count_where_asked():
    schedule = WeightSchedule(begin=10, by_epoch=False)
    assert schedule.factor(100, 9) == 0
    assert schedule.factor(0, 10) == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(ramp='quadratic'), "ramp must be one of .* got 'quadratic'"),
        (dict(begin=-1), 'begin must be >= 0, got -1'),
        (dict(begin=3, end=3), 'end must be greater than begin=3, got 3'),
        (dict(ramp='linear'), "ramp 'linear' needs an end"),
    ],
)
def test_refuses_schedules_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightSchedule(**arguments)

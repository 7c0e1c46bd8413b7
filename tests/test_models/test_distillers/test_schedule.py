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


def published(epoch):
    """The authors' code for segmentation, 60 epochs: off for 40, then exp(-5 (1-t)^2), t = (epoch + 1 - 40) / 20."""
    return 0.0 if epoch < 40 else math.exp(-5 * (1 - (epoch + 1 - 40) / 20) ** 2)


def test_inclusive_sigmoid_is_the_published_ramp_of_frskd_in_every_epoch():
    schedule = WeightSchedule(begin=40, end=60, ramp='sigmoid', inclusive=True)
    assert [schedule.factor(epoch, 0) for epoch in range(60)] == [published(epoch) for epoch in range(60)]
    assert schedule.factor(39, 0) == 0
    assert schedule.factor(40, 0) == pytest.approx(0.0110, abs=5e-5)
    assert schedule.factor(59, 0) == schedule.factor(60, 0) == 1


def test_sigmoid_is_one_epoch_later_than_the_published_ramp():
    schedule = WeightSchedule(begin=40, end=60, ramp='sigmoid')
    assert [schedule.factor(epoch, 0) for epoch in range(41, 61)] == [published(epoch) for epoch in range(40, 60)]
    assert schedule.factor(39, 0) == 0
    assert schedule.factor(40, 0) == math.exp(-5)


@pytest.mark.parametrize('ramp', ['linear', 'cosine', 'sigmoid'])
def test_inclusive_ramps_count_iterations_too_and_stay_one(ramp):
    schedule = WeightSchedule(begin=2, end=4, ramp=ramp, by_epoch=False, inclusive=True)
    plain = WeightSchedule(begin=2, end=4, ramp=ramp, by_epoch=False)
    assert schedule.factor(0, 1) == 0
    assert [schedule.factor(0, now) for now in (2, 3, 4)] == [plain.factor(0, 3), 1, 1]


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
        (dict(inclusive=True), 'inclusive=True needs a ramp'),
    ],
)
def test_refuses_schedules_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightSchedule(**arguments)

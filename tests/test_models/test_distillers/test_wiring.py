"""Levels by stride, channels from the models, names checked."""

import pytest
import torch
from torch import nn

from mmkd.models.distillers.wiring import Source, Tap, describe, fill_connector, match_levels, select_strides


def pyramid(strides, channels=4):
    return Tap((channels,) * len(strides), tuple(strides), True)


def test_describe_reads_channels_and_strides_of_a_pyramid():
    maps = tuple(torch.zeros(1, 6 + i, 256 // 2**i, 384 // 2**i) for i in (3, 7))
    tap = describe(maps, (256, 384))
    assert (tap.channels, tap.strides, tap.names) == ((9, 13), (8, 128), ('p3', 'p7'))


def test_describe_rounds_the_stride_of_odd_maps():
    assert describe(torch.zeros(1, 2, 17, 23), (256, 384)).strides == (15,)
    assert describe(torch.zeros(1, 2, 17, 23), (256, 384)).names == ('s15',)


def test_describe_gives_none_for_what_is_no_feature():
    assert describe(torch.zeros(4, 5), (256, 384)) is None
    assert describe([], (256, 384)) is None
    assert describe('text', (256, 384)) is None


def test_levels_match_by_stride_whatever_their_position():
    student, teacher = match_levels(pyramid([8, 16, 32, 64, 128]), pyramid([4, 8, 16, 32, 64]), 'loss_x')
    assert student == (0, 1, 2, 3)
    assert teacher == (1, 2, 3, 4)


def test_no_common_stride_is_an_error_that_names_both_sides():
    with pytest.raises(ValueError, match=r'loss_x: no levels match.*\(8,\).*\(16,\)'):
        match_levels(pyramid([8]), pyramid([16]), 'loss_x')


def test_levels_of_one_stride_have_names_of_their_own_and_match_by_position():
    """The last stage of a dilated backbone has the stride of the one before."""
    dilated = pyramid([8, 16, 16])
    assert dilated.names == ('p3', 'p4', 'p4_1')
    assert match_levels(dilated, dilated, 'loss_x') == ((0, 1, 2), (0, 1, 2))
    assert select_strides(dilated, (16,), 'x') == (1, 2)


@pytest.mark.parametrize(('student', 'teacher'), [([8, 16, 16], [8, 16]), ([8, 16], [8, 16, 16])])
def test_levels_of_one_stride_on_one_side_alone_are_refused(student, teacher):
    with pytest.raises(ValueError, match='loss_x: several levels have the stride 16'):
        match_levels(pyramid(student), pyramid(teacher), 'loss_x')


def test_wanted_strides_select_levels():
    assert select_strides(pyramid([8, 16, 32]), (32, 8), 'x') == (2, 0)
    with pytest.raises(ValueError, match=r'asks for stride 4.*\(8, 16, 32\)'):
        select_strides(pyramid([8, 16, 32]), (4,), 'x')


class OneNumber(nn.Module):
    def __init__(self, in_channels, out_channels=None, kernel=1):
        super().__init__()


def test_channels_are_filled_from_the_two_sides():
    own, other = Tap((8,), (16,), False), Tap((32,), (16,), False)
    assert fill_connector(dict(type='X', kernel=3), OneNumber, own, other) == dict(
        type='X', kernel=3, in_channels=8, out_channels=32
    )


def test_channels_that_are_given_stay():
    own, other = pyramid([8, 16], 8), pyramid([8, 16], 32)
    filled = fill_connector(dict(type='X', in_channels=5, out_channels=None), OneNumber, own, other)
    assert (filled['in_channels'], filled['out_channels']) == (5, (32, 32))


RECORD = dict(recorder='neck', from_student=True)


@pytest.mark.parametrize(
    ('entry', 'error', 'message'),
    [
        (dict(recorder='neck'), TypeError, 'x needs from_student=True or False, got None'),
        (dict(from_student=True), ValueError, 'x needs a recorder'),
        (
            dict(recorder='neck', from_student=True, recorder_idx=0),
            ValueError,
            "unknown key 'recorder_idx'; nearest: record",
        ),
        ('neck', TypeError, "x must be a dict, got 'neck'"),
        (dict(mask='gauss', strides=[8]), ValueError, 'x is made by a mask: mask= stands alone'),
        (dict(RECORD, other=RECORD), ValueError, 'x has other=, but no connector'),
        (
            dict(RECORD, connector='c', other=dict(RECORD, connector='d')),
            ValueError,
            'x.other comes as it was recorded',
        ),
        (dict(RECORD, connector='c', other=dict(mask='gauss')), ValueError, 'x.other comes as it was recorded'),
    ],
)
def test_refuses_entries_that_say_too_little_or_too_much(entry, error, message):
    with pytest.raises(error, match=message):
        Source.parse(entry, 'x')


def test_reserved_records_need_no_side():
    assert Source.parse(dict(recorder='labels'), 'x').reserved
    assert Source.parse(dict(mask='gauss'), 'x').reserved


class HostConnector(nn.Module):
    """Arguments as MMRazor's MGDConnector has them."""

    def __init__(self, student_channels, teacher_channels, lambda_mgd=0.65):
        super().__init__()


class OtherHostConnector(nn.Module):
    """Arguments as MMRazor's ConvModuleConnector has them."""

    def __init__(self, in_channel, out_channel):
        super().__init__()


def test_channels_of_mmrazors_own_connectors_are_filled_too():
    own, other = Tap((8,), (16,), False), Tap((32,), (16,), False)
    filled = fill_connector(dict(type='X'), HostConnector, own, other)
    assert filled == dict(type='X', student_channels=8, teacher_channels=32)
    filled = fill_connector(dict(type='X', in_channel=5), OtherHostConnector, own, other)
    assert filled == dict(type='X', in_channel=5, out_channel=32)

"""`CrossScaleConnector`: levels of one pyramid that teach each other."""

import pytest
import torch
from mmengine.registry import MODELS

from mmkd.models.connectors.cross_scale import CrossScaleConnector, level_pairs, resized

SIZES = ((13, 21), (7, 11), (4, 6))


def pyramid(channels: tuple[int, ...] = (4, 4, 4)) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, c, *size) for c, size in zip(channels, SIZES, strict=True))


@pytest.mark.parametrize(
    ('direction', 'expected'),
    [
        ('deep_to_shallow', [(0, 1), (1, 2)]),
        ('shallow_to_deep', [(1, 0), (2, 1)]),
        ('both', [(0, 1), (1, 2), (1, 0), (2, 1)]),
        ('fused', [(0, None), (1, None), (2, None)]),
    ],
)
def test_pairs_the_taught_level_with_the_teaching_one(direction, expected):
    assert level_pairs(direction, 3) == expected


@pytest.mark.parametrize('direction', ['deep_to_shallow', 'shallow_to_deep', 'both', 'fused'])
def test_both_roles_agree_in_shape_and_order(direction):
    feats = pyramid()
    sides = [
        CrossScaleConnector(role=role, direction=direction, in_channels=(4, 4, 4))(feats)
        for role in ('student', 'teacher')
    ]
    assert [x.shape for x in sides[0]] == [x.shape for x in sides[1]]
    taught = [SIZES[student] for student, _ in level_pairs(direction, 3)]
    assert [tuple(x.shape[-2:]) for x in sides[0]] == taught


def test_teacher_gives_the_next_deeper_level_on_the_taught_grid():
    feats = pyramid()
    teaching = CrossScaleConnector(role='teacher', in_channels=(4, 4, 4))(feats)
    expected = torch.nn.functional.interpolate(feats[1], (13, 21), mode='bilinear', align_corners=False)
    torch.testing.assert_close(teaching[0], expected)


def test_fused_teacher_is_the_mean_of_all_levels_on_the_taught_grid():
    feats = pyramid()
    teaching = CrossScaleConnector(role='teacher', direction='fused', in_channels=(4, 4, 4))(feats)
    expected = sum(resized(feat, (7, 11)) for feat in feats) / 3
    torch.testing.assert_close(teaching[1], expected)


def test_student_starts_from_the_identity_where_channels_are_equal():
    feats = pyramid()
    taught = CrossScaleConnector(role='student', in_channels=(4, 4, 4))(feats)
    torch.testing.assert_close(taught[0], feats[0])
    torch.testing.assert_close(taught[1], feats[1])


def test_student_gets_the_teaching_levels_channels():
    feats = pyramid((8, 4, 2))
    connector = CrossScaleConnector(role='student', direction='both', in_channels=(8, 4, 2))
    assert [x.shape[1] for x in connector(feats)] == [4, 2, 8, 4]
    assert len({id(p) for p in connector.parameters()}) == 8  # a weight and a bias for each pair


def test_only_the_students_side_learns():
    feats = tuple(feat.requires_grad_() for feat in pyramid())
    teacher = CrossScaleConnector(role='teacher', direction='both', in_channels=(4, 4, 4))
    assert not list(teacher.parameters()) and not any(x.requires_grad for x in teacher(feats))
    student = CrossScaleConnector(role='student', in_channels=(4, 4, 4))
    sum(x.sum() for x in student(feats)).backward()
    assert feats[0].grad is not None and feats[1].grad is not None and feats[2].grad is None
    assert not list(CrossScaleConnector(role='student', adapt=False, in_channels=(4, 4, 4)).parameters())


@pytest.mark.parametrize('size', [(13, 21), (4, 6), (1, 1), (26, 3)])
def test_resizing_keeps_a_constant(size):
    out = resized(torch.full((1, 2, 7, 11), 3.0), size)
    assert tuple(out.shape) == (1, 2, *size)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))


def test_the_deeper_level_teaches_in_whatever_order_the_levels_come():
    connector = CrossScaleConnector(role='student', in_channels=(4, 4, 4), in_strides=(32, 16, 8))
    assert connector.pair_names(('p5', 'p4', 'p3')) == ('p3_from_p4', 'p4_from_p5')


def test_names_say_who_teaches_whom():
    names = CrossScaleConnector(role='student', direction='both', in_channels=(4, 4)).pair_names(('p3', 'p4'))
    assert names == ('p3_from_p4', 'p4_from_p3')
    assert CrossScaleConnector(role='student', direction='fused', in_channels=(4, 4)).pair_names(('p3', 'p4')) == (
        'p3_from_all',
        'p4_from_all',
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(role='both'), "role must be 'student' or 'teacher'"),
        (dict(direction='up'), "direction must be one of .* got 'up'"),
        (dict(in_channels=(4,)), 'at least 2, got 1'),
        (dict(in_channels=(4, 8), adapt=False), 'in_channels must be equal'),
        (dict(in_channels=(4, 8), direction='fused'), 'in_channels must be equal'),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='mmkd.CrossScaleConnector', role='student', in_channels=(4, 4)) | arguments)


def test_refuses_records_that_do_not_fit():
    with pytest.raises(TypeError, match='in_channels must have one number a level'):
        CrossScaleConnector(role='student', in_channels=4)
    with pytest.raises(TypeError, match='in_strides must have one number a level'):
        CrossScaleConnector(role='student', in_channels=(4, 4), in_strides=(8,))
    connector = CrossScaleConnector(role='student', in_channels=(4, 4))
    with pytest.raises(TypeError, match='feats must be a tuple'):
        connector(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match='feats must have 2 levels, got 3'):
        connector(pyramid())

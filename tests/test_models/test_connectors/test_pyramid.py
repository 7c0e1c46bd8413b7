"""`PyramidConnector` and `ConvConnector`."""

import pytest
import torch
from torch import Tensor, nn

from mmkd.models.connectors.conv import ConvConnector
from mmkd.models.connectors.pyramid import PyramidConnector
from mmkd.registry import MODELS

CONV = dict(type='mmkd.ConvConnector')


@pytest.fixture
def register():
    """Registers classes for one test and takes them out again."""
    names = []

    def add(cls: type) -> str:
        MODELS.register_module(module=cls)
        names.append(cls.__name__)
        return f'mmkd.{cls.__name__}'

    yield add
    for name in names:
        del MODELS._module_dict[name]


class AddOther(nn.Module):
    """A connector that sees both sides and knows neither channels nor strides."""

    def forward(self, feat: Tensor, other: Tensor) -> Tensor:
        """Sum of both."""
        return feat + other


class StrideNote(nn.Module):
    """A connector that remembers what it was told."""

    def __init__(self, *, in_strides: int, out_strides: int, in_channels: int, factor: float = 1.0) -> None:
        super().__init__()
        self.told = (in_strides, out_strides, in_channels, factor)


def maps(channels: tuple[int, ...]) -> tuple[Tensor, ...]:
    """One map a level, height and width differing."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, c, 8 >> i, 12 >> i, generator=generator) for i, c in enumerate(channels))


def test_conv_is_a_matrix_product_over_channels():
    connector = ConvConnector(in_channels=3, out_channels=5)
    nn.init.normal_(connector.bias)
    (feature,) = maps((3,))
    expected = torch.einsum('oc,nchw->nohw', connector.weight[:, :, 0, 0], feature) + connector.bias[:, None, None]
    torch.testing.assert_close(connector(feature), expected)


def test_conv_keeps_the_variance_of_a_feature_at_the_start():
    torch.manual_seed(0)
    connector = ConvConnector(in_channels=256, out_channels=512)
    feature = torch.randn(1, 256, 20, 30)
    assert connector(feature).var().item() == pytest.approx(1, rel=0.1)
    assert torch.equal(connector.bias, torch.zeros(512))


def test_conv_refuses_other_channels_and_pyramids():
    connector = ConvConnector(in_channels=3, out_channels=5)
    with pytest.raises(ValueError, match='feature must have 3 channels, got 4'):
        connector(torch.zeros(1, 4, 2, 3))
    with pytest.raises(TypeError, match='PyramidConnector'):
        connector((torch.zeros(1, 3, 2, 3),))


def test_builds_one_connector_a_level_with_its_channels():
    connector = PyramidConnector(connector=CONV, in_channels=(3, 4, 5), out_channels=(6, 7, 8))
    assert [tuple(c.weight.shape[:2]) for c in connector.levels] == [(6, 3), (7, 4), (8, 5)]
    result = connector(maps((3, 4, 5)))
    assert [tuple(r.shape) for r in result] == [(2, 6, 8, 12), (2, 7, 4, 6), (2, 8, 2, 3)]


def test_levels_do_not_share_weights():
    connector = PyramidConnector(connector=CONV, in_channels=(3, 3), out_channels=(3, 3))
    assert connector.levels[0].weight is not connector.levels[1].weight
    first = connector(maps((3, 3)))[0]
    nn.init.zeros_(connector.levels[1].weight)
    assert torch.equal(connector(maps((3, 3)))[0], first)


def test_connector_that_sees_both_sides_gets_both_level_by_level(register):
    connector = PyramidConnector(connector=dict(type=register(AddOther)), in_channels=(3, 4))
    feats = maps((3, 4))
    result = connector(feats, tuple(2 * f for f in feats))
    torch.testing.assert_close(result, tuple(3 * f for f in feats))


def test_strides_reach_connectors_that_ask_for_them(register):
    connector = PyramidConnector(
        connector=dict(type=register(StrideNote), factor=2.0),
        in_channels=(3, 4),
        out_channels=(5, 6),
        in_strides=(8, 16),
        out_strides=(4, 8),
    )
    assert [level.told for level in connector.levels] == [(8, 4, 3, 2.0), (16, 8, 4, 2.0)]


def test_what_the_inner_config_says_holds_for_all_levels():
    connector = PyramidConnector(
        connector=dict(type='mmkd.ConvConnector', out_channels=9), in_channels=(3, 4), out_channels=(5, 6)
    )
    assert [level.out_channels for level in connector.levels] == [9, 9]


def test_builds_from_a_config_and_leaves_it_unchanged():
    cfg = dict(type='mmkd.PyramidConnector', connector=dict(CONV), in_channels=[3], out_channels=[4])
    assert MODELS.build(cfg).levels[0].out_channels == 4
    assert cfg['connector'] == CONV


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        ({'in_channels': (3, 4), 'out_channels': (3,)}, ValueError, "'in_channels': 2, 'out_channels': 1"),
        ({}, ValueError, 'number of levels, got none'),
        ({'in_channels': 3, 'out_channels': 3}, TypeError, 'in_channels must have one number a level, got 3'),
        (
            {'connector': dict(type='mmkd.NoSuch'), 'in_channels': (3,)},
            ValueError,
            "type, got 'mmkd.NoSuch'",
        ),
    ],
)
def test_refuses_arguments_that_do_not_fit(arguments, error, match):
    with pytest.raises(error, match=match):
        PyramidConnector(**{'connector': CONV, **arguments})


def test_refuses_records_that_do_not_fit():
    connector = PyramidConnector(connector=CONV, in_channels=(3, 4), out_channels=(3, 4))
    with pytest.raises(ValueError, match='feats must have 2 levels, got 1'):
        connector(maps((3,)))
    with pytest.raises(ValueError, match='others must have 2 levels, got 3'):
        connector(maps((3, 4)), maps((3, 4, 5)))
    with pytest.raises(TypeError, match='feats must be a tuple with one map a level, got Tensor'):
        connector(maps((3,))[0])


def test_a_connector_of_mmrazor_gets_its_channels_under_its_own_names(register):
    class HostLike(nn.Conv2d):
        def __init__(self, student_channels: int, teacher_channels: int) -> None:
            super().__init__(student_channels, teacher_channels, 1)

    cfg = dict(type=register(HostLike))
    connector = PyramidConnector(connector=cfg, in_channels=(3, 5), out_channels=(4, 6), in_strides=(8, 16))
    assert [(level.in_channels, level.out_channels) for level in connector.levels] == [(3, 4), (5, 6)]
    fixed = PyramidConnector(connector=dict(cfg, teacher_channels=9), in_channels=(3, 5), out_channels=(4, 6))
    assert [level.out_channels for level in fixed.levels] == [9, 9]

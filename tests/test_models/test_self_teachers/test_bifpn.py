"""`BiFPNSelfTeacher`: the official classification network, and pyramids of any size."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmkd.models.self_teachers.bifpn import BiFPNSelfTeacher, Fusion, halved, make_norm
from mmkd.models.self_teachers.grown_features import GrownFeatures
from mmkd.models.self_teachers.residual_bifpn import ResidualBiFPNSelfTeacher

CIFAR = (64, 128, 256, 512)


class Block(nn.Module):
    """Basic residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        same = before == after
        self.short = (
            nn.Sequential()
            if same
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.short(x)).relu()


class CifarResNet18(nn.Module):
    """The paper's classifier: 3x3 stem without pooling, four stages of two blocks, 100 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = (64, *CIFAR)
        self.stages = nn.ModuleList(
            nn.Sequential(Block(a, b, 1 if i == 0 else 2), Block(b, b, 1))
            for i, (a, b) in enumerate(zip(widths, CIFAR, strict=False))
        )
        self.fc = nn.Linear(512, 100)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        feats = [self.stem(x)]
        for stage in self.stages:
            feats.append(stage(feats[-1]))
        return tuple(feats[1:]), self.fc(feats[-1].mean((2, 3)))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_has_the_parameters_of_the_official_network():
    classifier, teacher = CifarResNet18(), BiFPNSelfTeacher.for_classification(CIFAR, num_classes=100)
    assert count(classifier) == 11_220_132
    assert count(teacher) == 6_375_794
    assert round(count(teacher) / count(classifier), 3) == 0.568


def test_costs_seventy_one_percent_of_the_classifier():
    classifier, teacher = CifarResNet18().eval(), BiFPNSelfTeacher.for_classification(CIFAR, num_classes=100).eval()
    flops = []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            feats, _ = classifier(torch.zeros(1, 3, 32, 32))
        flops.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            logits = teacher.classify(teacher(feats))
        flops.append(counter.get_total_flops())
    assert logits.shape == (1, 100)
    assert round(flops[1] / flops[0], 2) == 0.71


def equations(net: BiFPNSelfTeacher, feats: list[Tensor]) -> list[Tensor]:
    """One BiFPNc layer of three levels whose sizes halve, written out from the equations of `docs/frskd.md`."""
    layer, relu = net.layers[0], torch.relu
    up = nn.Upsample(scale_factor=2, mode='nearest')

    def mean(fusion: Fusion, *maps: Tensor) -> Tensor:
        w = fusion.weight.clamp(min=0)
        return sum(wi * x for wi, x in zip(w / (w.sum() + 1e-6), maps, strict=True))

    def down(x: Tensor) -> Tensor:  # even sizes, 'same': one cell on the right and below, none before
        rows = [
            [x[..., 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].amax((2, 3)) for j in range(x.shape[3] // 2)]
            for i in range(x.shape[2] // 2)
        ]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    lateral = [layer.lateral[i](relu(f)) for i, f in enumerate(feats)]
    second = [None, *(layer.lateral2[i - 1](relu(feats[i])) for i in (1, 2))]
    p3 = lateral[2]
    p2 = layer.up_conv[1](mean(layer.up_fusion[1], relu(lateral[1]), layer.up[1](up(relu(p3)))))
    p1 = layer.up_conv[0](mean(layer.up_fusion[0], relu(lateral[0]), layer.up[0](up(relu(p2)))))
    t1 = p1
    t2 = layer.down_conv[0](mean(layer.down_fusion[0], relu(second[1]), relu(p2), layer.down[0](down(relu(t1)))))
    t3 = layer.down_conv[1](mean(layer.down_fusion[1], relu(second[2]), layer.down[1](down(relu(t2)))))
    return [relu(t) for t in (t1, t2, t3)]


def test_equals_the_equations():
    net = BiFPNSelfTeacher(in_channels=(3, 4, 5)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
        feats = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in ((3, (8, 12)), (4, (4, 6)), (5, (2, 3)))]
        for actual, expected in zip(net(feats), equations(net, feats), strict=True):
            torch.testing.assert_close(actual, expected)


SIZES = [((13, 21), (7, 11), (4, 6), (2, 3), (1, 2)), ((5, 9), (5, 9), (2, 3)), ((10, 4), (3, 7), (1, 1))]


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('out_channels', [None, 'same', 6])
@pytest.mark.parametrize('up_mode', ['nearest', 'bilinear'])
def test_keeps_any_sizes_of_levels(sizes, out_channels, up_mode):
    net = BiFPNSelfTeacher(
        in_channels=(4,) * len(sizes), width=3, out_channels=out_channels, num_layers=2, norm='GN', up_mode=up_mode
    )
    refined = net([torch.randn(2, 4, *size) for size in sizes])
    channels = {None: 12, 'same': 4, 6: 6}[out_channels]
    assert [tuple(x.shape) for x in refined] == [(2, channels, *size) for size in sizes]
    assert all((x >= 0).all() for x in refined)


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 8), (5, 4)])
def test_halving_takes_the_ceiling(size):
    feature = torch.rand(1, 2, *size)
    out = halved(feature, (-(-size[0] // 2), -(-size[1] // 2)))
    assert out.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))
    assert out.max() == feature.max()


@pytest.mark.parametrize('out_channels', [None, 'same'])
def test_every_parameter_gets_a_gradient_and_so_do_all_levels(out_channels):
    net = BiFPNSelfTeacher(in_channels=(4, 4, 4), out_channels=out_channels, num_layers=2)
    feats = [torch.randn(2, 4, *size, requires_grad=True) for size in ((13, 21), (7, 11), (4, 6))]
    sum(x.square().sum() for x in net(feats)).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(f.grad.abs().sum() > 0 for f in feats)


def test_residual_begins_with_the_students_own_features_and_leaves_them():
    net = ResidualBiFPNSelfTeacher(in_channels=(4, 4), num_layers=2, norm='GN')
    feats = [torch.randn(2, 4, 7, 11), torch.randn(2, 4, 4, 6)]
    assert all(torch.equal(x, feat) for x, feat in zip(net(feats), feats, strict=True))
    step = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):  # the gains move first, then what they let through
        step.zero_grad()
        sum((x - 1).square().mean() for x in net(feats)).backward()
        step.step()
    assert all(p.grad.abs().sum() > 0 for layer in net.layers for p in layer.parameters() if p.ndim > 1)
    assert all(not torch.equal(x, feat) for x, feat in zip(net(feats), feats, strict=True))


def test_residual_refuses_levels_of_different_channels():
    with pytest.raises(ValueError, match='needs levels of equal channels'):
        ResidualBiFPNSelfTeacher(in_channels=(4, 8))


def test_residual_equals_its_equation():
    plain = BiFPNSelfTeacher(in_channels=(4, 4), out_channels='same', num_layers=2, norm='GN')
    net = ResidualBiFPNSelfTeacher(in_channels=(4, 4), num_layers=2, norm='GN')
    net.load_state_dict(plain.state_dict() | {f'gains.{i}': torch.full((4, 1, 1), 0.5 + i) for i in range(2)})
    feats = [torch.randn(2, 4, 7, 11), torch.randn(2, 4, 4, 6)]
    before_relu = plain.layers[1](plain.layers[0](feats))
    for i, x in enumerate(net(feats)):
        torch.testing.assert_close(x, feats[i] + (0.5 + i) * before_relu[i])


def test_residual_does_not_rescale_the_gradient_of_a_young_necks_small_features():
    norms = []
    for kind, options in ((BiFPNSelfTeacher, dict(out_channels='same')), (ResidualBiFPNSelfTeacher, {})):
        torch.manual_seed(0)
        net = kind(in_channels=(8, 8), num_layers=2, norm='GN', **options)
        feats = [0.01 * torch.randn(2, 8, *size) for size in ((8, 12), (4, 6))]
        feats = [feat.requires_grad_() for feat in feats]
        sum((x * torch.randn_like(x)).sum() for x in net(feats)).backward()
        norms.append(sum(feat.grad.square().sum() for feat in feats).sqrt())
    assert norms[0] > 10 * norms[1]


def test_group_norm_makes_each_image_independent_of_its_batch():
    net = BiFPNSelfTeacher(in_channels=(4, 8), norm='GN').train()
    feats = [torch.randn(3, 4, 6, 10), torch.randn(3, 8, 3, 5)]
    for whole, alone in zip(net(feats), net([f[1:2] for f in feats]), strict=True):
        torch.testing.assert_close(whole[1:2], alone)


@pytest.mark.parametrize('images', [1, 2])
@pytest.mark.parametrize('channels', [16, 17, 32])
def test_group_norm_keeps_a_level_of_one_cell_alive(images, channels):
    torch.manual_seed(0)
    net = BiFPNSelfTeacher(in_channels=(channels, channels), out_channels='same', norm='GN')
    feats = [torch.randn(images, channels, *size, requires_grad=True) for size in ((1, 2), (1, 1))]
    coarsest = net(feats)[1]
    (coarsest * torch.randn_like(coarsest)).sum().backward()
    assert coarsest.flatten(1).std(1).gt(0.1).all() and feats[1].grad.abs().amax((1, 2, 3)).gt(1e-3).all()
    alone = net([feat[:1] for feat in feats])[1]
    torch.testing.assert_close(coarsest[:1], alone)


def test_group_norm_of_one_cell_takes_all_channels_as_one_group():
    norm, feature = make_norm('GN', 16), torch.randn(2, 16, 1, 1, dtype=torch.float64)
    norm.double().weight.data.uniform_()
    centred = feature - feature.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(norm(feature), expected * norm.weight[:, None, None] + norm.bias[:, None, None])
    single = make_norm('GN', 1)
    torch.nn.init.constant_(single.bias, 0.5)
    assert single(torch.full((1, 1, 1, 1), 3.0)).item() == 3.5


@pytest.mark.parametrize(
    ('channels', 'size'),
    [(1, (2, 3)), (16, (1, 2)), (16, (5, 7)), (32, (3, 1)), (48, (1, 1)), (64, (1, 1)), (64, (4, 3))],
)
def test_group_norm_is_torchs_own_elsewhere(channels, size):
    ours, feature = make_norm('GN', channels), torch.randn(2, channels, *size)
    theirs = nn.GroupNorm(ours.num_groups, channels)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(feature), theirs(feature))


def test_fusion_is_a_weighted_mean_and_negative_weights_count_as_zero():
    fusion = Fusion(3)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([1.0, 3.0, -5.0]))
    out = fusion(torch.tensor(2.0), torch.tensor(6.0), torch.tensor(1e6))
    assert out.item() == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(width=0), 'width must be >= 1'),
        (dict(depth=0), 'depth must be >= 1'),
        (dict(num_layers=0), 'num_layers must be >= 1'),
        (dict(out_channels=0), 'out_channels must be >= 1'),
        (dict(norm='LN'), "norm must be 'BN', 'GN' or 'SyncBN'"),
        (dict(up_mode='area'), "up_mode must be 'nearest' or 'bilinear'"),
        (dict(in_channels=(4,)), 'at least 2 levels'),
        (dict(in_channels=(4, 8), out_channels='same'), "out_channels='same' needs levels of equal channels"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='mmkd.BiFPNSelfTeacher', in_channels=(4, 4)) | arguments)


def test_refuses_inputs_that_do_not_fit():
    with pytest.raises(TypeError, match='in_channels must have one number a level'):
        BiFPNSelfTeacher(in_channels=4)
    net = BiFPNSelfTeacher(in_channels=(4, 4))
    with pytest.raises(ValueError, match='feats must have 2 levels, got 1'):
        net([torch.zeros(1, 4, 2, 2)])
    with pytest.raises(ValueError, match='classify needs a network made by'):
        net.classify(net.eval()([torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 2, 2)]))


def test_grown_features_refine_what_they_are_given_with_its_gradient():
    grown = GrownFeatures(refine=dict(type='mmkd.BiFPNSelfTeacher', norm='GN'), in_channels=(4, 4))
    feats = (torch.randn(1, 4, 6, 4, requires_grad=True), torch.randn(1, 4, 3, 2))
    grown.give(feats)
    grown(torch.zeros(1, 3, 48, 32))[0].sum().backward()
    assert feats[0].grad.abs().sum() > 0
    grown.give(None)
    with pytest.raises(RuntimeError, match='no features of the student'):
        grown(torch.zeros(1, 3, 48, 32))
    with pytest.raises(TypeError, match='features must be a tuple'):
        grown.give(feats[0])
    with pytest.raises(TypeError, match='refine must be a module or its config'):
        GrownFeatures(refine='bifpn', in_channels=(4, 4))


def test_grown_features_keep_an_order_from_coarse_to_fine():
    grown = GrownFeatures(refine=dict(type='mmkd.BiFPNSelfTeacher', norm='GN'), in_channels=(8, 4), coarse_first=True)
    grown.give((torch.randn(1, 8, 3, 2), torch.randn(1, 4, 6, 4)))
    assert [tuple(x.shape) for x in grown(torch.zeros(1, 3, 48, 32))] == [(1, 16, 3, 2), (1, 8, 6, 4)]

"""`FeatureAlignmentLoss`. Shapes: `N` images, `C` channels, `n` segments, `H, W` cells."""

from importlib import import_module

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmkd.models.losses.feature_alignment_loss import FeatureAlignmentLoss


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def naive(student: Tensor, teacher: Tensor, segments: int) -> float:
    n, c, h, w = teacher.shape
    total = 0.0
    for i in range(n):
        for s in range(segments):
            for k in range(c):
                a, b = student[i, s * c + k].flatten().tolist(), teacher[i, k].flatten().tolist()
                total += 2 * sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / (h * w)
                means = [sum(v) / len(v) for v in (a, b)]
                spreads = [
                    (sum((x - m) ** 2 for x in v) / len(v) + 1e-5) ** 0.5 for v, m in zip((a, b), means, strict=True)
                ]
                total += 3 * ((means[0] - means[1]) ** 2 + (spreads[0] - spreads[1]) ** 2)
    return total / (n * c)


@pytest.mark.parametrize(('segments', 'shape'), [(1, (2, 3, 4, 5)), (3, (2, 2, 3, 1)), (2, (1, 1, 1, 1))])
def test_equals_a_naive_loop_and_sums_over_segments(segments: int, shape: tuple) -> None:
    n, c, h, w = shape
    student, teacher = draw(n, segments * c, h, w), draw(*shape, seed=1)
    loss = FeatureAlignmentLoss(distance_weight=2.0, statistics_weight=3.0, loss_weight=5.0)
    assert loss(student, teacher).item() == pytest.approx(5 * naive(student, teacher, segments), rel=1e-9)


def test_relative_value_is_free_of_the_features_scale_image_by_image() -> None:
    student, teacher = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    scale = torch.tensor([10.0, 100.0]).reshape(2, 1, 1, 1)
    relative = FeatureAlignmentLoss(statistics_weight=0.0, relative=True)
    torch.testing.assert_close(
        relative(scale * student, scale * teacher), relative(student, teacher), rtol=1e-9, atol=0
    )
    assert relative(torch.zeros_like(teacher), teacher).item() == pytest.approx(1)
    assert relative(-teacher, teacher).item() == pytest.approx(4)
    assert relative(1e6 * student, teacher).item() == pytest.approx(1, rel=1e-4)


def test_distance_alone_equals_mse() -> None:
    student, teacher = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    loss = FeatureAlignmentLoss(statistics_weight=0.0)
    torch.testing.assert_close(loss(student, teacher), F.mse_loss(student, teacher))


def test_distance_of_standardised_maps_equals_pkd_of_mmrazor() -> None:
    """Mean squares of channel-standardised maps are twice PKD's 1 - r; statistics then add nothing."""
    student, teacher = draw(1, 3, 9, 12), draw(1, 3, 9, 12, seed=1)
    standard = [(x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-6) for x in (student, teacher)]
    theirs = import_module('mmrazor.models.losses').PKDLoss()(student, teacher)
    torch.testing.assert_close(FeatureAlignmentLoss()(*standard) / 2, theirs, rtol=1e-5, atol=0)


def test_channel_means_match_the_golden_number() -> None:
    """Mean squared difference of channel means on the 32 x 32 pair 0.00181086; notes/papers.md section 9."""
    g = torch.Generator().manual_seed(0)
    torch.randn(8, 21, generator=g), torch.randn(8, 21, generator=g), torch.randint(0, 21, (8,), generator=g)
    student, *_ = [torch.randn(2, 8, h, h, generator=g) for h in (32, 16, 8)]
    teacher = torch.randn(2, 8, 32, 32, generator=g)
    loss = FeatureAlignmentLoss(distance_weight=0.0)
    spread = (student.std((2, 3), unbiased=False) - teacher.std((2, 3), unbiased=False)).square().mean().item()
    assert loss(student, teacher).item() - spread == pytest.approx(0.00181086, rel=1e-4)


def test_statistics_ignore_where_a_value_lies() -> None:
    student = draw(2, 3, 4, 5)
    loss = FeatureAlignmentLoss(distance_weight=0.0)
    shuffled = student.flatten(2)[..., torch.randperm(20)].view_as(student)
    assert loss(student, shuffled).item() == pytest.approx(0, abs=1e-12)
    assert loss(student, student + 1).item() == pytest.approx(1)


def test_is_zero_for_equal_features_and_finite_for_flat_ones() -> None:
    teacher, loss = draw(2, 3, 4, 5), FeatureAlignmentLoss()
    assert loss(teacher.repeat(1, 2, 1, 1), teacher).item() == 0
    flat = torch.zeros(2, 3, 1, 1, requires_grad=True)
    loss(flat, torch.ones(2, 3, 1, 1)).backward()
    assert flat.grad.isfinite().all()


def test_gradients_are_right_and_none_reaches_the_teacher() -> None:
    student, teacher = draw(2, 4, 3, 2).requires_grad_(), draw(2, 2, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: FeatureAlignmentLoss()(s, teacher), student)
    FeatureAlignmentLoss()(student, teacher).backward()
    assert teacher.grad is None


def test_statistics_of_one_image_do_not_depend_on_the_batch() -> None:
    student, teacher, loss = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1), FeatureAlignmentLoss()
    parts = [loss(student[i : i + 1], teacher[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(sum(parts) / 2, loss(student, teacher))


def test_autocast_is_off_inside() -> None:
    student, teacher = draw(2, 3, 4, 5, dtype=torch.float32), draw(2, 3, 4, 5, seed=1, dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = FeatureAlignmentLoss()(student, teacher)
    assert torch.equal(inside, FeatureAlignmentLoss()(student, teacher))


@pytest.mark.parametrize('name', ['mask', 'labels', 'avg_factor'])
def test_refuses_arguments_it_cannot_use(name: str) -> None:
    feature = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=f'cannot use {name}'):
        FeatureAlignmentLoss()(feature, feature, **{name: torch.ones(1)})


def test_refuses_what_does_not_fit() -> None:
    feature = torch.zeros(1, 2, 3, 4)
    for other in (torch.zeros(1, 3, 3, 4), torch.zeros(1, 2, 3, 5), torch.zeros(2, 2, 3, 4), torch.zeros(1, 2, 3)):
        with pytest.raises(ValueError, match=r'preds_S must be \(N, n \* C, H, W\)'):
            FeatureAlignmentLoss()(other, feature)
    with pytest.raises(TypeError, match='use PyramidLoss for levels'):
        FeatureAlignmentLoss()([feature], [feature])
    with pytest.raises(ValueError, match='Weights must be >= 0'):
        FeatureAlignmentLoss(statistics_weight=-1.0)

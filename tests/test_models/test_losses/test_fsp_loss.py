"""`FSPLoss`. Shapes: `N` images, `L` levels, `C` channels, `H, W` cells."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmkd.models.losses.fsp_loss import FSPLoss

CHANNELS, GRIDS = (2, 3, 4), ((8, 10), (4, 5), (2, 3))


def pyramid(seed: int, grids: tuple = GRIDS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, *grid, generator=g, dtype=dtype) for c, grid in zip(CHANNELS, grids, strict=True)]


def naive_matrix(fine: Tensor, coarse: Tensor) -> Tensor:
    """(C1, H1, W1), (C2, H2, W2) -> (C1, C2), cell by cell."""
    fine = F.adaptive_avg_pool2d(fine, coarse.shape[1:])
    _, h, w = coarse.shape
    cells = [torch.outer(fine[:, y, x], coarse[:, y, x]) for y in range(h) for x in range(w)]
    return sum(cells) / (h * w)


def test_equals_a_naive_loop() -> None:
    student, teacher = pyramid(0), pyramid(1)
    total = 0.0
    for level in (0, 1):
        for n in range(2):
            difference = naive_matrix(student[level][n], student[level + 1][n]) - naive_matrix(
                teacher[level][n], teacher[level + 1][n]
            )
            total += difference.square().mean().item() / 2
    assert FSPLoss(loss_weight=5.0)(student, teacher).item() == pytest.approx(5 * total / 2, rel=1e-9)


def test_matches_the_golden_numbers() -> None:
    """0.00192172 and 0.00876852 for the two pairs of layers; notes/papers.md section 9."""
    g = torch.Generator().manual_seed(0)
    torch.randn(8, 21, generator=g), torch.randn(8, 21, generator=g), torch.randint(0, 21, (8,), generator=g)
    sides = [[torch.randn(2, 8, h, h, generator=g) for h in (32, 16, 8)] for _ in range(2)]
    assert FSPLoss()(*sides).item() == pytest.approx((0.00192172 + 0.00876852) / 2, rel=1e-5)


def test_relative_value_is_free_of_the_features_scale() -> None:
    student, teacher = pyramid(0), pyramid(1)
    big = [[10 * level for level in side] for side in (student, teacher)]
    relative, plain = FSPLoss(relative=True), FSPLoss()
    torch.testing.assert_close(relative(*big), relative(student, teacher), rtol=1e-9, atol=0)
    torch.testing.assert_close(plain(*big), 1e4 * plain(student, teacher))
    zeros = [torch.zeros_like(level) for level in student]
    assert relative(zeros, teacher).item() == relative(teacher, zeros).item() == pytest.approx(1)


def test_the_grids_of_the_two_sides_may_differ() -> None:
    """Repeating the cells of the teacher changes none of its relations."""
    student, teacher = pyramid(0), pyramid(1, grids=((8, 10), (4, 5), (2, 5)))
    fine = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in teacher]
    torch.testing.assert_close(FSPLoss()(student, fine), FSPLoss()(student, teacher))


def test_is_zero_for_equal_pyramids_and_finite_for_dead_ones() -> None:
    student = [level.requires_grad_() for level in pyramid(0)]
    assert FSPLoss()(student, pyramid(0)).item() == 0
    dead = [torch.zeros_like(level, requires_grad=True) for level in student]
    FSPLoss()(dead, pyramid(0)).backward()
    assert all(level.grad.isfinite().all() for level in dead)


def test_gradients_are_right_and_none_reaches_the_teacher() -> None:
    student = [level.requires_grad_() for level in pyramid(0, grids=((4, 6), (2, 3), (1, 1)))]
    teacher = [level.requires_grad_() for level in pyramid(1)]
    assert torch.autograd.gradcheck(lambda *levels: FSPLoss()(levels, teacher), student)
    FSPLoss()(student, teacher).backward()
    assert all(level.grad is None for level in teacher)


def test_autocast_is_off_inside() -> None:
    student, teacher = pyramid(0, dtype=torch.float32), pyramid(1, dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = FSPLoss()(student, teacher)
    assert torch.equal(inside, FSPLoss()(student, teacher))


@pytest.mark.parametrize('name', ['mask', 'labels', 'avg_factor'])
def test_refuses_arguments_it_cannot_use(name: str) -> None:
    with pytest.raises(ValueError, match=f'cannot use {name}'):
        FSPLoss()(pyramid(0), pyramid(1), **{name: torch.ones(1)})


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match='one tensor a level'):
        FSPLoss()(pyramid(0)[0], pyramid(1)[0])
    with pytest.raises(ValueError, match='at least two levels'):
        FSPLoss()(pyramid(0)[:1], pyramid(1)[:1])
    with pytest.raises(ValueError, match='same images and channels'):
        FSPLoss()(pyramid(0), pyramid(1)[:2])
    with pytest.raises(ValueError, match='same images and channels'):
        FSPLoss()(pyramid(0)[:2], pyramid(1)[1:])
    with pytest.raises(ValueError, match='loss_weight must be >= 0'):
        FSPLoss(loss_weight=-1.0)

"""Relations between layers. Shapes: `N` images, `C1, C2` channels, `H, W` cells."""

import pytest
import torch
from torch.nn import functional as F

from mmkd.functional.relation import fsp_matrix


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(('c1', 'c2', 'h', 'w'), [(3, 2, 4, 5), (1, 3, 7, 2), (2, 2, 1, 1)])
def test_equals_a_naive_loop(c1: int, c2: int, h: int, w: int) -> None:
    x, y = randn(2, c1, h, w), randn(2, c2, h, w, seed=1)
    result = fsp_matrix(x, y)
    assert result.shape == (2, c1, c2)
    for n in range(2):
        for i in range(c1):
            for j in range(c2):
                cells = [x[n, i, r, c].item() * y[n, j, r, c].item() for r in range(h) for c in range(w)]
                assert result[n, i, j].item() == pytest.approx(sum(cells) / (h * w), rel=1e-12, abs=1e-14)


def test_the_finer_layer_is_averaged_down_on_either_side() -> None:
    fine, coarse = randn(1, 3, 6, 10), randn(1, 2, 3, 5, seed=1)
    expected = fsp_matrix(F.avg_pool2d(fine, 2), coarse)
    torch.testing.assert_close(fsp_matrix(fine, coarse), expected)
    torch.testing.assert_close(fsp_matrix(coarse, fine), expected.transpose(1, 2))


def test_odd_and_crossed_grids_work() -> None:
    assert fsp_matrix(randn(1, 2, 25, 38), randn(1, 3, 13, 19)).shape == (1, 2, 3)
    assert fsp_matrix(randn(1, 2, 9, 4), randn(1, 3, 5, 8)).isfinite().all()


def test_matches_the_golden_numbers_of_repdistiller() -> None:
    """Average-pool, mean square: 0.00192172 and 0.00876852; notes/papers.md section 9."""
    g = torch.Generator().manual_seed(0)
    torch.randn(8, 21, generator=g), torch.randn(8, 21, generator=g), torch.randint(0, 21, (8,), generator=g)
    student = [torch.randn(2, 8, h, h, generator=g) for h in (32, 16, 8)]
    teacher = [torch.randn(2, 8, h, h, generator=g) for h in (32, 16, 8)]
    for level, golden in enumerate((0.00192172, 0.00876852)):
        difference = fsp_matrix(*student[level : level + 2]) - fsp_matrix(*teacher[level : level + 2])
        assert difference.square().mean().item() == pytest.approx(golden, rel=1e-5)


def test_half_precision_and_autocast_are_computed_in_float32() -> None:
    x, y = randn(1, 4, 5, 6).float(), randn(1, 3, 5, 6, seed=1).float()
    reference = fsp_matrix(x, y)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(fsp_matrix(x, y), reference)
    assert fsp_matrix(x.half(), y.half()).dtype == torch.float32


def test_gradients_are_right() -> None:
    x, y = randn(1, 2, 4, 5).requires_grad_(), randn(1, 3, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(fsp_matrix, (x, y))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match='same N'):
        fsp_matrix(torch.zeros(1, 2, 3, 4), torch.zeros(2, 2, 3, 4))
    with pytest.raises(ValueError, match=r'\(N, C, H, W\)'):
        fsp_matrix(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, 4))

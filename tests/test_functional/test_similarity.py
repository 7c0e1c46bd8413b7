"""Similarity of representations. Shapes: `n` cells, `C1, C2` channels."""

from itertools import permutations

import pytest
import torch

from mmkd.functional.similarity import linear_cka


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def naive_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """The U-statistic of Song et al. 2012: mean over all ordered 4-tuples of different cells."""
    k, other = (x @ x.T).tolist(), (y @ y.T).tolist()
    tuples = list(permutations(range(len(x)), 4))
    total = sum(k[i][j] * (other[i][j] + other[q][r] - 2 * other[i][q]) for i, j, q, r in tuples)
    return total / len(tuples)


@pytest.mark.parametrize(('n', 'c1', 'c2'), [(4, 2, 3), (7, 3, 1), (8, 5, 5)])
def test_equals_the_mean_over_all_quadruples_of_cells(n: int, c1: int, c2: int) -> None:
    x, y = randn(n, c1), randn(n, c2, seed=1)
    y[:, 0] += x[:, 0]
    expected = naive_hsic(x, y) / (naive_hsic(x, x) * naive_hsic(y, y)) ** 0.5
    assert linear_cka(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_is_one_for_rotated_scaled_and_shifted_features() -> None:
    x = randn(50, 6)
    rotation = torch.linalg.qr(randn(6, 6, seed=1)).Q
    assert linear_cka(x, 1e-3 * x @ rotation + 7).item() == pytest.approx(1, abs=1e-9)
    assert linear_cka(x.half(), x).item() == pytest.approx(1, abs=1e-5)


def test_is_about_zero_for_unrelated_features_even_with_more_channels_than_cells() -> None:
    values = [linear_cka(randn(24, 64, seed=i), randn(24, 96, seed=100 + i)).item() for i in range(20)]
    assert abs(sum(values) / 20) < 0.05


def test_grows_with_what_is_shared() -> None:
    x, noise = randn(200, 8), randn(200, 8, seed=1)
    values = [linear_cka(x, x + weight * noise).item() for weight in (2.0, 1.0, 0.5)]
    assert values == sorted(values)
    assert linear_cka(x, x + noise).item() == linear_cka(x + noise, x).item()


def test_a_constant_side_has_no_similarity() -> None:
    assert linear_cka(randn(6, 2), torch.ones(6, 3)).isnan()


@pytest.mark.parametrize('shapes', [((3, 2), (3, 2)), ((5, 2), (6, 2)), ((2, 5, 3), (5, 3))])
def test_refuses_what_are_not_the_same_cells(shapes: tuple) -> None:
    with pytest.raises(ValueError, match='same n >= 4'):
        linear_cka(torch.ones(shapes[0]), torch.ones(shapes[1]))

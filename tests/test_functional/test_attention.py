"""Spatial attention maps. Shapes: `N` images, `C` channels, `H, W` cells."""

import math

import pytest
import torch
from torch import Tensor

from mmkd.functional.attention import attention_map


def naive(feature: Tensor, p: float) -> Tensor:
    n, c, h, w = feature.shape
    result = torch.zeros(n, 1, h, w, dtype=feature.dtype)
    for i in range(n):
        for y in range(h):
            for x in range(w):
                result[i, 0, y, x] = sum(abs(feature[i, k, y, x].item()) ** p for k in range(c))
        result[i] /= math.sqrt(sum(v**2 for v in result[i].flatten().tolist()))
    return result


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (1, 1, 7, 2), (1, 4, 1, 1)])
@pytest.mark.parametrize('p', [1.0, 2.0, 3.5])
def test_equals_a_naive_loop_over_the_sum_of_the_paper(shape: tuple, p: float) -> None:
    feature = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention_map(feature, p=p), naive(feature, p))


def test_squares_of_an_image_sum_to_one_and_scale_does_not_matter() -> None:
    feature = torch.randn(3, 4, 5, 6)
    attention = attention_map(feature)
    torch.testing.assert_close(attention.square().sum((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(attention_map(1000 * feature), attention)


def test_half_precision_does_not_overflow() -> None:
    """A square of 300 is beyond float16."""
    attention = attention_map(torch.full((1, 2, 3, 4), 300.0, dtype=torch.float16))
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention, torch.full((1, 1, 3, 4), 1 / math.sqrt(12)))


def test_zeros_give_zeros_with_finite_gradients() -> None:
    feature = torch.zeros(2, 3, 4, 5, requires_grad=True)
    attention = attention_map(feature)
    attention.sum().backward()
    assert attention.abs().max() == 0
    assert feature.grad.isfinite().all()


def test_gradients_are_right() -> None:
    feature = torch.randn(2, 2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(attention_map, feature.requires_grad_())


def test_refuses_other_shapes_and_powers() -> None:
    with pytest.raises(ValueError, match=r'must be \(N, C, H, W\), got \(2, 3, 4\)'):
        attention_map(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match='p must be >= 1'):
        attention_map(torch.zeros(1, 1, 1, 1), p=0.5)

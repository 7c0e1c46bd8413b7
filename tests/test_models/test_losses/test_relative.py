"""Distances that do not depend on magnitude."""

import pytest
import torch

from mmkd.models.losses.relative import larger_energy, relative_error


def test_relative_error_of_each_image_is_averaged() -> None:
    target = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    prediction = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    assert relative_error(prediction, target).item() == pytest.approx((25 / 25 + 4 / 16) / 2)


@pytest.mark.parametrize('scale', [1e-4, 1.0, 1e4])
def test_range_is_zero_to_four_whatever_the_scale(scale: float) -> None:
    target = scale * torch.randn(2, 3, 4, 5)
    assert relative_error(target, target).item() == 0
    assert relative_error(-target, target).item() == pytest.approx(4, rel=1e-5)
    assert relative_error(torch.zeros_like(target), target).item() == pytest.approx(1, rel=1e-5)
    assert relative_error(1e3 * target, target).item() == pytest.approx(0.998, rel=1e-3)


def test_divisor_has_no_gradient_and_zeros_are_finite() -> None:
    prediction = torch.zeros(1, 2, requires_grad=True)
    relative_error(prediction, torch.zeros(1, 2)).backward()
    assert prediction.grad.tolist() == [[0.0, 0.0]]
    assert not larger_energy(prediction, prediction).requires_grad

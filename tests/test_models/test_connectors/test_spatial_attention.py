"""`SpatialAttention`. Shapes: `N` images, `C` channels, `H, W` cells."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmkd.models.connectors.spatial_attention import SpatialAttention

NORMS = ['batch', 'image', 'none']


def feature(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def build(**options) -> SpatialAttention:
    torch.manual_seed(0)
    return SpatialAttention(**options).double()


def independent_scores(x: Tensor, weight: Tensor) -> Tensor:
    """7 x 7 window sums over [max; mean], cell by cell; weight (1, 2, 7, 7)."""
    n, c, h, w = x.shape
    scores = torch.zeros(n, 1, h, w, dtype=x.dtype)
    pooled = [[x[:, k] for k in range(c)]]
    both = (torch.stack(pooled[0]).max(0).values, sum(pooled[0]) / c)
    for channel, plane in enumerate(both):
        padded = F.pad(plane, (3, 3, 3, 3))
        for row in range(h):
            for column in range(w):
                window = padded[:, row : row + 7, column : column + 7]
                scores[:, 0, row, column] += (window * weight[0, channel]).sum((1, 2))
    return scores


@pytest.mark.parametrize('shape', [(2, 3, 4, 9), (1, 1, 5, 2)])
def test_equals_an_independent_reading_of_cbam(shape: tuple) -> None:
    x, module = feature(*shape, dtype=torch.float64), build()
    with torch.no_grad():
        module.norm.weight.fill_(1.7)
        module.norm.bias.fill_(-0.3)
    scores = independent_scores(x, module.conv.weight.detach())
    variance, mean = torch.var_mean(scores, unbiased=False)
    gate = 1 / (1 + torch.exp(-(1.7 * (scores - mean) / torch.sqrt(variance + 1e-5) - 0.3)))
    torch.testing.assert_close(module(x), x * gate)
    torch.testing.assert_close(module.norm.running_mean, 0.01 * mean.reshape(1))


def test_maximum_comes_before_mean() -> None:
    module = build(norm='none')
    with torch.no_grad():
        module.conv.weight.zero_()
        module.conv.weight[0, 0, 3, 3] = 1.0
    x = feature(2, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(module.gate(x), x.amax(1, keepdim=True).sigmoid())


@pytest.mark.parametrize(('norm', 'count'), [('batch', 100), ('image', 100), ('none', 98)])
def test_number_of_parameters(norm: str, count: int) -> None:
    assert sum(p.numel() for p in SpatialAttention(norm=norm).parameters()) == count


def test_image_norm_treats_each_image_by_itself_and_batch_norm_does_not() -> None:
    x = feature(3, 2, 6, 8, dtype=torch.float64)
    x[2] *= 10
    single = build(norm='image')
    torch.testing.assert_close(single(x)[:1], single(x[:1]))
    batch = build(norm='batch')
    assert not torch.allclose(batch(x)[:1], batch(x[:1]))


def test_image_norm_equals_torch_group_norm() -> None:
    module, scores = build(norm='image'), feature(2, 1, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        module.norm.weight.fill_(2.0)
        module.norm.bias.fill_(0.5)
    torch.testing.assert_close(module.norm(scores), F.group_norm(scores, 1, module.norm.weight, module.norm.bias))


@pytest.mark.parametrize('norm', NORMS)
def test_gate_is_between_zero_and_one_and_one_cell_works(norm: str) -> None:
    module = SpatialAttention(norm=norm)
    gate = module.gate(feature(2, 3, 4, 7))
    assert gate.shape == (2, 1, 4, 7)
    assert 0 < gate.min() < gate.max() < 1
    assert module(torch.randn(1, 3, 1, 1)).isfinite().all()


def test_disabled_it_is_the_identity_without_parameters() -> None:
    module, x = SpatialAttention(enabled=False), feature(1, 2, 3, 4)
    assert module(x) is x
    assert not list(module.state_dict())


@pytest.mark.parametrize('norm', NORMS)
def test_gradients_are_right_and_finite_on_flat_maps(norm: str) -> None:
    module = build(norm=norm)
    assert torch.autograd.gradcheck(module, feature(2, 2, 3, 2, dtype=torch.float64).requires_grad_())
    flat = torch.ones(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    module(flat).sum().backward()
    assert flat.grad.isfinite().all()


def test_refuses_an_unknown_norm() -> None:
    with pytest.raises(ValueError, match=r"norm must be one of \['batch', 'image', 'none'\], got 'layer'"):
        SpatialAttention(norm='layer')

"""`mmkd.functional.ssim_fused` against the plain form."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mmkd.functional import normalisation, ssim_fused
from mmkd.functional.normalisation import Normaliser
from mmkd.functional.ssim import SSIMOptions, blur, gaussian_window, plain_ssim_map
from mmkd.functional.ssim_fused import (
    Settings,
    blur_matrix,
    fold_border,
    fused_dissimilarity_sum,
    rounds_products,
    split_into_parts,
)
from mmkd.models.losses.ssim_loss import SSIMLoss


def random_pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Two float64 maps; the first with many equal minima, as after a ReLU."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.relu().requires_grad_(), y


def value_and_gradient(total: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sum and its gradient."""
    return total.detach(), torch.autograd.grad(total, x)[0]


@pytest.mark.parametrize(('part', 'dense'), [(2**18, 0), (60, 0), (60, 1024)])
@pytest.mark.parametrize('size', [(13, 17), (5, 9), (2, 3), (1, 1)])
@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('detach', [False, True])
@pytest.mark.parametrize('scope', ['image', 'batch', 'channel', None])
def test_equals_the_plain_form_in_any_parts_and_by_either_blur(scope, detach, padding, size, part, dense, monkeypatch):
    monkeypatch.setattr(ssim_fused, 'DENSE', dense)
    monkeypatch.setitem(ssim_fused.PART, 'cpu', part)
    x, y = random_pair(2, 20, *size)
    options, normaliser = SSIMOptions(padding=padding), Normaliser(scope, detach_extremes=detach)
    for weighted in (False, True):
        values = (1 - plain_ssim_map(normaliser(x), normaliser(y), 1.0, options)) / 2
        weight = torch.rand(2, 1, *values.shape[2:], dtype=torch.float64) if weighted else None
        expected = value_and_gradient((values * weight if weighted else values).sum(), x)
        result = value_and_gradient(fused_dissimilarity_sum(x, y, weight, Settings(1.0, options, normaliser)), x)
        torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('scope', ['image', 'batch', 'channel'])
def test_the_form_for_gpus_that_searches_all_planes_gives_the_same(scope, monkeypatch):
    x, y = random_pair(2, 20, 6, 9)
    with torch.no_grad():
        x[0, 3, :2] = x.max() + 1  # an extreme that several cells share
    settings = Settings(1.0, SSIMOptions(), Normaliser(scope))
    few = value_and_gradient(fused_dissimilarity_sum(x, y, None, settings), x)
    monkeypatch.setattr(normalisation, '_planes_to_search', lambda *_: ...)
    torch.testing.assert_close(value_and_gradient(fused_dissimilarity_sum(x, y, None, settings), x), few)


def test_matrix_products_in_tf32_are_avoided(monkeypatch):
    """At TF32's ten bits the difference of two means of squares is mostly rounding."""
    on_gpu = SimpleNamespace(device=SimpleNamespace(type='cuda'), dtype=torch.float32)
    assert not rounds_products(torch.ones(2)) and not rounds_products(on_gpu)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert rounds_products(on_gpu) and not rounds_products(torch.ones(2))
        assert not rounds_products(SimpleNamespace(device=on_gpu.device, dtype=torch.float64))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    x, y = random_pair(2, 20, 6, 9)
    settings = Settings(1.0, SSIMOptions(), Normaliser('image'))
    products = value_and_gradient(fused_dissimilarity_sum(x, y, None, settings), x)
    monkeypatch.setattr(ssim_fused, 'rounds_products', lambda like: True)
    monkeypatch.setattr(ssim_fused, 'blur_matrix', None)
    torch.testing.assert_close(value_and_gradient(fused_dissimilarity_sum(x, y, None, settings), x), products)


@pytest.mark.parametrize('planes', [0, 16, 33, 50, 110, 1000])
def test_parts_cover_every_plane_once(planes, monkeypatch):
    monkeypatch.setitem(ssim_fused.PART, 'cpu', planes * 20)
    covered = torch.zeros(3, 50)
    for part in split_into_parts(torch.zeros(3, 50, 4, 5)):
        covered[part] += 1
    assert torch.equal(covered, torch.ones(3, 50))


def test_dense_blur_is_the_blur_by_convolution():
    x, _ = random_pair(2, 3, 9, 14)
    window = gaussian_window(7, 1.5, x)
    for padding in ('same', 'valid'):
        down, across = (blur_matrix(cells, window, padding) for cells in (9, 14))
        torch.testing.assert_close(down @ x @ across.mT, blur(x, window, padding))


@pytest.mark.parametrize('images', [1, 3])
def test_maps_of_one_channel_are_blurred_by_depthwise_convolutions_too(images, monkeypatch):
    """Of one group they would be ordinary ones, which cuDNN computes in TF32."""
    monkeypatch.setattr(ssim_fused, 'DENSE', 0)
    whole, groups = torch.nn.functional.conv2d, []

    def noted(*args, **kwargs):
        groups.append(kwargs['groups'])
        return whole(*args, **kwargs)

    x, y = random_pair(images, 1, 13, 17)
    options = SSIMOptions(window_size=5)
    expected = value_and_gradient(((1 - plain_ssim_map(x, y, 1.0, options)) / 2).sum(), x)
    monkeypatch.setattr(ssim_fused.F, 'conv2d', noted)
    found = value_and_gradient(fused_dissimilarity_sum(x, y, None, Settings(1.0, options, Normaliser(scope=None))), x)
    torch.testing.assert_close(found, expected)
    assert len(groups) == 4 and min(groups) > 1


def test_a_compiler_leaves_the_fused_form_as_it_is(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ssim_fused, '_FusedPass', lambda *args, whole=ssim_fused._FusedPass: seen.append(1) or whole(*args)
    )
    loss = SSIMLoss(data_range=1.0)
    results = []
    for step in (loss, torch.compile(loss, backend='eager')):
        x, y = (value.detach().float().requires_grad_() for value in random_pair(2, 4, 13, 17))
        results.append(value_and_gradient(step(x, y.detach()), x))
        assert len(seen) == len(results)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_folding_is_the_adjoint_of_mirroring():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 2, 4, 6, generator=generator).double().requires_grad_()
    upstream = torch.randn(1, 2, 10, 12, generator=generator).double()
    torch.nn.functional.pad(x, (3,) * 4, mode='reflect').backward(upstream)
    torch.testing.assert_close(fold_border(upstream.clone(), 3), x.grad)


def test_nothing_is_kept_without_gradient_and_inputs_stay_as_they_were():
    x, y = random_pair(1, 3, 12, 14)
    before = x.detach().clone(), y.clone()
    settings = Settings(1.0, SSIMOptions(), Normaliser('image'))
    with torch.no_grad():
        silent = fused_dissimilarity_sum(x, y, None, settings)
    loud = fused_dissimilarity_sum(x, y, None, settings)
    assert not silent.requires_grad
    assert torch.equal(silent, loud)
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(y, before[1])


def test_backward_may_run_twice_over_a_retained_graph():
    x, y = random_pair(1, 3, 12, 14)
    total = fused_dissimilarity_sum(x, y, None, Settings(1.0, SSIMOptions(), Normaliser('image')))
    first = torch.autograd.grad(total, x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(5 * total, x)[0], 5 * first)


def test_refuses_a_second_derivative():
    x, y = random_pair(1, 2, 4, 5)
    total = fused_dissimilarity_sum(x, y, None, Settings(1.0, SSIMOptions(), Normaliser(None)))
    with pytest.raises(RuntimeError, match='no second derivative'):
        torch.autograd.grad(total, x, create_graph=True)


def test_layout_in_memory_does_not_matter():
    x, y = random_pair(2, 3, 9, 14)
    settings = Settings(1.0, SSIMOptions(), Normaliser('image'))
    expected = value_and_gradient(fused_dissimilarity_sum(x, y, None, settings), x)
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    result = value_and_gradient(fused_dissimilarity_sum(last, y.mT.contiguous().mT, None, settings), last)
    torch.testing.assert_close(result, expected)


def test_refuses_other_exponents_and_shapes():
    x, y = random_pair(1, 2, 4, 5)
    with pytest.raises(ValueError, match=r'exponents \(1, 1, 1\), got \(0, 1, 1\)'):
        fused_dissimilarity_sum(x, y, None, Settings(1.0, SSIMOptions(exponents=(0, 1, 1)), Normaliser(None)))
    with pytest.raises(ValueError, match='same shape'):
        fused_dissimilarity_sum(x, y[:, :1], None, Settings(1.0, SSIMOptions(), Normaliser(None)))

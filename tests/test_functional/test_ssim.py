"""`mmkd.functional.ssim` and `mmkd.functional.normalisation` against loops, three libraries and extremes."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmkd.functional.normalisation import Normaliser, min_max
from mmkd.functional.ssim import SSIMOptions, fitting_window, ssim_map

GOLDEN = Path(__file__).parents[1] / 'golden' / 'ssim.json'
# kornia compiles by torch.jit when it is imported
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')


def random_pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A map in [0, 1] and a noisy copy of it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = (x + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return x.to(dtype), y.to(dtype)


def mirrored(index: int, size: int) -> int:
    """Index of the cell that stands for a cell outside the map, the edge cell not repeated."""
    if index < 0:
        return -index
    return index if index < size else 2 * size - 2 - index


def naive_ssim(x: Tensor, y: Tensor, *, size: int, sigma: float = 1.5, exponents: tuple = (1, 1, 1)) -> Tensor:
    """The three factors of the paper, cell by cell, on one (H, W) map in [0, 1] with mirrored borders."""
    radius, (height, width) = size // 2, x.shape
    weights = {
        (i, j): math.exp(-(i * i + j * j) / (2 * sigma**2))
        for i in range(-radius, radius + 1)
        for j in range(-radius, radius + 1)
    }
    total = sum(weights.values())
    c1, c2 = 0.01**2, 0.03**2
    result = torch.zeros_like(x)
    for row in range(height):
        for col in range(width):
            cells = [
                (w / total, float(x[r, c]), float(y[r, c]))
                for (i, j), w in weights.items()
                for r, c in [(mirrored(row + i, height), mirrored(col + j, width))]
            ]
            mx, my = sum(w * a for w, a, _ in cells), sum(w * b for w, _, b in cells)
            sx = math.sqrt(sum(w * (a - mx) ** 2 for w, a, _ in cells))
            sy = math.sqrt(sum(w * (b - my) ** 2 for w, _, b in cells))
            sxy = sum(w * (a - mx) * (b - my) for w, a, b in cells)
            luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
            contrast = (2 * sx * sy + c2) / (sx**2 + sy**2 + c2)
            structure = (sxy + c2 / 2) / (sx * sy + c2 / 2)
            a, b, g = exponents
            result[row, col] = luminance**a * contrast**b * structure**g
    return result


@pytest.mark.parametrize('exponents', [(1, 1, 1), (0, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (1, 2, 3)])
def test_map_equals_the_papers_factors_cell_by_cell(exponents):
    x, y = random_pair(1, 1, 7, 9)
    expected = naive_ssim(x[0, 0], y[0, 0], size=5, exponents=exponents)
    result = ssim_map(x, y, data_range=1.0, window_size=5, exponents=exponents)[0, 0]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


def test_valid_map_is_the_inner_part_of_the_same_map():
    x, y = random_pair(2, 3, 20, 14)
    inner = ssim_map(x, y, data_range=1.0)[..., 5:-5, 5:-5]
    torch.testing.assert_close(ssim_map(x, y, data_range=1.0, padding='valid'), inner)


@pytest.mark.parametrize(
    ('key', 'padding', 'tolerance'),
    [
        ('kornia_same', 'same', 1e-9),
        ('torchmetrics_same', 'same', 1e-12),
        ('kornia_valid', 'valid', 1e-9),
        ('pytorch_msssim_valid', 'valid', 1e-6),
    ],
)
def test_mean_equals_golden_numbers_of_other_libraries(key, padding, tolerance):
    x, y = random_pair(2, 3, 32, 40)
    golden = json.loads(GOLDEN.read_text())['values'][key]
    assert ssim_map(x, y, data_range=1.0, padding=padding).mean().item() == pytest.approx(golden, abs=tolerance)


@pytest.mark.parametrize(('exponents', 'golden'), [((1, 0, 0), 0.99747), ((0, 1, 0), 0.99175), ((0, 0, 1), 0.82509)])
def test_means_of_luminance_contrast_and_structure_equal_golden_numbers(exponents, golden):
    """Each part alone; notes/papers.md section 9, where five digits are given."""
    x, y = random_pair(2, 3, 32, 40)
    assert ssim_map(x, y, data_range=1.0, exponents=exponents).mean().item() == pytest.approx(golden, abs=6e-6)


@pytest.mark.parametrize('data_range', [1.0, 255.0])
@pytest.mark.parametrize('window_size', [3, 11])
def test_map_equals_kornia(window_size, data_range):
    kornia = pytest.importorskip('kornia')
    x, y = random_pair(1, 2, 13, 19)
    expected = kornia.metrics.ssim(x, y, window_size, max_val=data_range)
    torch.testing.assert_close(
        ssim_map(x, y, data_range=data_range, window_size=window_size), expected, rtol=0, atol=1e-8
    )


def test_mean_equals_torchmetrics():
    metrics = pytest.importorskip('torchmetrics.functional.image')
    x, y = random_pair(3, 2, 17, 12, seed=4)
    expected = metrics.structural_similarity_index_measure(x, y, data_range=2.0)
    torch.testing.assert_close(ssim_map(x, y, data_range=2.0).mean(), expected, rtol=0, atol=1e-12)


def test_valid_mean_equals_pytorch_msssim():
    library = pytest.importorskip('pytorch_msssim')
    x, y = random_pair(2, 3, 15, 31, seed=5)
    expected = library.ssim(x, y, data_range=1.0)
    assert ssim_map(x, y, data_range=1.0, padding='valid').mean().item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize('exponents', [(1, 1, 1), (0, 0, 1), (0.5, 0.5, 0.5)])
def test_is_one_for_equal_maps(exponents):
    x, _ = random_pair(2, 3, 6, 13)
    result = ssim_map(x, x, data_range=1.0, exponents=exponents)
    torch.testing.assert_close(result, torch.ones_like(x), rtol=0, atol=1e-8)


def test_is_symmetric():
    x, y = random_pair(1, 2, 8, 12)
    torch.testing.assert_close(ssim_map(x, y, data_range=1.0), ssim_map(y, x, data_range=1.0))


def test_does_not_depend_on_the_unit_when_the_range_follows():
    x, y = random_pair(1, 2, 8, 12)
    torch.testing.assert_close(ssim_map(x, y, data_range=1.0), ssim_map(255 * x, 255 * y, data_range=255.0))


def test_is_luminance_alone_on_constant_maps():
    x, y = torch.full((1, 1, 4, 6), 0.2), torch.full((1, 1, 4, 6), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    torch.testing.assert_close(ssim_map(x, y, data_range=1.0), torch.full_like(x, expected))


@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('size', [(1, 1), (1, 7), (2, 2), (4, 3), (5, 5), (6, 4), (11, 10)])
def test_maps_smaller_than_the_window_have_finite_values_and_gradients(size, padding):
    x, y = random_pair(2, 3, *size)
    x.requires_grad_()
    result = ssim_map(x, y, data_range=1.0, padding=padding)
    result.sum().backward()
    assert result.isfinite().all()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_small_map_equals_the_naive_loop_with_the_shrunken_window():
    x, y = random_pair(1, 1, 3, 8)
    expected = naive_ssim(x[0, 0], y[0, 0], size=5)
    torch.testing.assert_close(ssim_map(x, y, data_range=1.0)[0, 0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ('height', 'width', 'padding', 'expected'),
    [
        (100, 152, 'same', 11),
        (6, 40, 'same', 11),
        (5, 5, 'same', 9),
        (1, 40, 'same', 1),
        (2, 40, 'same', 3),
        (11, 11, 'valid', 11),
        (10, 30, 'valid', 9),
        (2, 2, 'valid', 1),
    ],
)
def test_window_shrinks_to_what_the_shorter_axis_carries(height, width, padding, expected):
    assert fitting_window(11, height, width, padding) == expected


@pytest.mark.parametrize('exponents', [(1, 1, 1), (0, 0, 1), (0, 1, 0), (0.5, 0.3, 0.7)])
def test_gradient_is_finite_on_flat_maps(exponents):
    x = torch.zeros(1, 2, 9, 12, requires_grad=True)
    y = torch.zeros(1, 2, 9, 12)
    y[:, :, :4] = 1.0
    ssim_map(x, y, data_range=1.0, exponents=exponents).mean().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('exponents', [(1, 1, 1), (0.5, 1, 2)])
@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_gradient_equals_finite_differences(padding, exponents):
    x, y = random_pair(1, 2, 4, 6)
    x.requires_grad_()
    y.requires_grad_()

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return ssim_map(a, b, data_range=1.0, window_size=3, padding=padding, exponents=exponents).mean()

    assert torch.autograd.gradcheck(mean, (x, y))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_inside_autocast(dtype):
    x, y = random_pair(1, 2, 12, 16, dtype=dtype)
    x = x * 0.02 + 0.9
    y = y * 0.02 + 0.9
    expected = ssim_map(x.double(), y.double(), data_range=1.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = ssim_map(x, y, data_range=1.0)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-3)


def test_layout_in_memory_does_not_matter():
    x, y = random_pair(2, 3, 9, 14)
    expected = ssim_map(x, y, data_range=1.0)
    result = ssim_map(x.to(memory_format=torch.channels_last), y.transpose(2, 3).contiguous().mT, data_range=1.0)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'data_range': 0.0}, 'data_range must be > 0'),
        ({'data_range': 1.0, 'window_size': 4}, 'window_size must be odd'),
        ({'data_range': 1.0, 'padding': 'zeros'}, "padding must be 'same' or 'valid'"),
        ({'data_range': 1.0, 'sigma': 0.0}, 'sigma must be > 0'),
        ({'data_range': 1.0, 'exponents': (1, -1, 1)}, 'exponents must be three numbers >= 0'),
        ({'data_range': 1.0, 'exponents': (1, 1)}, 'exponents must be three numbers'),
    ],
)
def test_refuses_values_out_of_range(options, match):
    x, y = random_pair(1, 1, 4, 6)
    with pytest.raises(ValueError, match=match):
        ssim_map(x, y, **options)


def test_refuses_shapes_that_would_broadcast():
    x, y = random_pair(1, 2, 4, 6)
    with pytest.raises(ValueError, match=r'same shape, got \(1, 2, 4, 6\) and \(1, 1, 4, 6\)'):
        ssim_map(x, y[:, :1], data_range=1.0)
    with pytest.raises(ValueError, match='at least one cell'):
        ssim_map(x[0], y[0], data_range=1.0)


def test_data_range_has_no_default_and_unknown_options_are_refused():
    x, y = random_pair(1, 1, 4, 6)
    with pytest.raises(TypeError, match='data_range'):
        ssim_map(x, y)
    with pytest.raises(TypeError, match='window'):
        ssim_map(x, y, data_range=1.0, window=5)


def test_options_are_standard_only_with_equal_unit_exponents():
    assert SSIMOptions().is_standard
    assert not SSIMOptions(exponents=(2, 2, 2)).is_standard


@pytest.mark.parametrize('scope', ['image', 'batch', 'channel'])
def test_min_max_equals_a_loop_over_what_shares_its_extremes(scope):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    result = min_max(x, scope=scope)
    for n in range(2):
        for c in range(3):
            shared = {'image': x[n], 'batch': x, 'channel': x[n, c]}[scope]
            expected = (x[n, c] - shared.min()) / (shared.max() - shared.min())
            torch.testing.assert_close(result[n, c], expected)


def test_min_max_of_one_image_does_not_depend_on_the_batch():
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(min_max(x)[1:2], min_max(x[1:2]), rtol=0, atol=0)


@pytest.mark.parametrize('scope', ['image', 'batch', 'channel'])
def test_min_max_of_a_constant_map_is_zero_without_gradient(scope):
    x = torch.full((2, 3, 4, 5), 7.0, requires_grad=True)
    result = min_max(x, scope=scope)
    result.sum().backward()
    assert torch.equal(result, torch.zeros_like(x))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_min_max_gradient_equals_finite_differences():
    x = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: min_max(a).sin(), (x,))


def test_detached_extremes_get_no_gradient_of_offset_and_scale():
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    min_max(x, detach_extremes=True).sum().backward()
    extent = (x.max() - x.min()).detach()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / extent))


def test_normaliser_without_scope_returns_its_input_and_refuses_nonsense():
    x = torch.rand(1, 2, 3, 4)
    assert Normaliser(None)(x) is x
    with pytest.raises(ValueError, match=r"normalize must be one of .* got 'level'"):
        Normaliser('level')
    with pytest.raises(ValueError, match='eps must be >= 0'):
        Normaliser('image', eps=-1.0)
    with pytest.raises(ValueError, match='scope must be one of'):
        min_max(x, scope='level')
    with pytest.raises(ValueError, match='N, C, H, W'):
        min_max(x[0])

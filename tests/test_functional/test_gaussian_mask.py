"""`mmkd.functional.gaussian_mask`: boxes -> weight on a grid.

Shapes: `N` images, `M` boxes of one image, `H, W` cells.
"""

import math

import pytest
import torch
from torch import Tensor

from mmkd.functional.gaussian_mask import gaussian_box_mask, gaussian_radius

SHAPES = ('gaussian', 'centernet', 'binary')


def naive(boxes: Tensor, feature_size, input_size, kappa: float = 2.0, clip: bool = False) -> Tensor:
    """Equation of `gaussian_box_mask`, cell by cell, box by box."""
    (rows, columns), (height, width) = feature_size, input_size
    step_y, step_x = height / rows, width / columns
    mask = torch.zeros(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 0.5) * step_y, (column + 0.5) * step_x
            for x1, y1, x2, y2 in boxes.tolist():
                sy = max((y2 - y1) / (2 * kappa), step_y / 2)
                sx = max((x2 - x1) / (2 * kappa), step_x / 2)
                value = math.exp(-((x - (x1 + x2) / 2) ** 2) / (2 * sx**2) - (y - (y1 + y2) / 2) ** 2 / (2 * sy**2))
                if clip and not (x1 <= x <= x2 and y1 <= y <= y2):
                    value = 0.0
                mask[row, column] = max(mask[row, column].item(), value)
    return mask


def random_boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Boxes of 2 px to half the input that touch the input; some stick out of it."""
    draw = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centre = draw[:, :2] * torch.tensor([width, height])
    size = 2 + draw[:, 2:] * torch.tensor([width, height]) / 2
    return torch.cat([centre - size / 2, centre + size / 2], 1)


@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize(('feature_size', 'input_size'), [((5, 9), (40, 72)), ((7, 11), (50, 93)), ((1, 3), (32, 96))])
def test_equals_a_naive_loop(feature_size, input_size, clip):
    boxes = [random_boxes(6, *input_size, seed=1), random_boxes(1, *input_size, seed=2)]
    mask = gaussian_box_mask(boxes, feature_size, input_size, kappa=1.5, clip=clip)
    expected = torch.stack([naive(each, feature_size, input_size, 1.5, clip) for each in boxes])[:, None]
    assert mask.shape == (2, 1, *feature_size)
    torch.testing.assert_close(mask, expected, rtol=1e-12, atol=1e-300)


def test_centernet_form_equals_the_target_of_mmdetection():
    target = pytest.importorskip('mmdet.models.utils.gaussian_target')
    boxes = random_boxes(8, 96, 160, seed=3)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, 159.5)  # MMDetection's function needs centres inside the grid
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, 95.5)
    heatmap = torch.zeros(24, 40, dtype=torch.float64)
    for x1, y1, x2, y2 in (boxes / 4).tolist():
        radius = max(0, int(target.gaussian_radius((y2 - y1, x2 - x1), min_overlap=0.3)))
        target.gen_gaussian_target(heatmap, [int((x1 + x2) / 2), int((y1 + y2) / 2)], radius)
    mask = gaussian_box_mask([boxes], (24, 40), (96, 160), shape='centernet')
    assert heatmap.max() == 1 and (heatmap == 0).any()
    torch.testing.assert_close(mask[0, 0], heatmap, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize('overlap', [0.1, 0.3, 0.7])
def test_radius_equals_that_of_mmdetection(overlap):
    target = pytest.importorskip('mmdet.models.utils.gaussian_target')
    sizes = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 60 + 0.1
    expected = [target.gaussian_radius((h, w), min_overlap=overlap) for h, w in sizes.tolist()]
    actual = gaussian_radius(sizes[:, 0], sizes[:, 1], min_overlap=overlap)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def test_is_anisotropic():
    mask = gaussian_box_mask([torch.tensor([[20.0, 44.0, 140.0, 52.0]])], (12, 20), (96, 160))[0, 0]
    assert mask[6, 9] > 0.5  # half a cell from the centre (80, 48) of a box of 120 x 8
    assert mask[6, 13] > 0.3 and mask[6 + 4, 9] < 1e-3  # the same distance along and across the box


def test_is_exp_minus_two_at_the_edge_of_a_box():
    mask = gaussian_box_mask([torch.tensor([[20.0, 20.0, 36.0, 36.0]])], (56, 56), (56, 56))[0, 0]
    edge = (mask[27, 19] * mask[27, 20]).sqrt()  # centres at 19.5 and 20.5: x = 20 in between, y within half a px
    assert edge.item() == pytest.approx(math.exp(-2), rel=0.05)


@pytest.mark.parametrize('corner', [(8, 8), (0, 0), (15.9, 15.9)])
def test_small_box_marks_a_coarse_level(corner):
    box = torch.tensor([[corner[0], corner[1], corner[0] + 16.0, corner[1] + 16.0]])
    mask = gaussian_box_mask([box], (4, 6), (128, 192))
    assert mask.max() >= math.exp(-1) - 1e-6  # centre at most half a cell away on both axes


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
    'box',
    [
        (30.0, 30.0, 30.0, 60.0),
        (30.0, 30.0, 60.0, 30.0),
        (60.0, 60.0, 30.0, 30.0),
        (-50.0, 10.0, -20.0, 40.0),
        (200.0, 10.0, 240.0, 40.0),
        (10.0, 10.0, float('nan'), 40.0),
        (10.0, 10.0, float('inf'), 40.0),
    ],
)
def test_degenerate_or_outside_box_has_no_weight(box, shape):
    mask = gaussian_box_mask([torch.tensor([box])], (12, 20), (96, 160), shape=shape)
    assert torch.equal(mask, torch.zeros(1, 1, 12, 20))


@pytest.mark.parametrize('shape', SHAPES)
def test_no_boxes_give_zeros_beside_an_image_with_boxes(shape):
    boxes = [torch.zeros(0, 4), torch.tensor([[10.0, 10.0, 90.0, 70.0]])]
    mask = gaussian_box_mask(boxes, (12, 20), (96, 160), shape=shape)
    assert mask[0].abs().sum() == 0 and mask[1].max() > 0.9 and mask.isfinite().all()


@pytest.mark.parametrize('shape', SHAPES)
def test_takes_the_maximum_over_boxes(shape):
    boxes = random_boxes(5, 96, 160, seed=5)
    together = gaussian_box_mask([boxes], (12, 20), (96, 160), shape=shape)
    alone = torch.cat([gaussian_box_mask([box[None]], (12, 20), (96, 160), shape=shape) for box in boxes])
    torch.testing.assert_close(together[0], alone.amax(0), rtol=0, atol=0)


def test_frame_is_the_padded_batch_and_not_the_image():
    """Two images of different size: each mask equals that of the image padded alone, at the same stride."""
    small, large = torch.tensor([[10.0, 6.0, 50.0, 40.0]]), torch.tensor([[100.0, 20.0, 150.0, 90.0]])
    sizes = [(48, 64), (96, 160)]
    mask = gaussian_box_mask([small, large], (12, 20), (96, 160), image_sizes=sizes)
    alone = gaussian_box_mask([small], (6, 8), (48, 64))
    torch.testing.assert_close(mask[:1, :, :6, :8], alone, rtol=0, atol=0)
    assert mask[0, 0, 6:].sum() == 0 and mask[0, 0, :, 8:].sum() == 0
    torch.testing.assert_close(mask[1:], gaussian_box_mask([large], (12, 20), (96, 160)), rtol=0, atol=0)


def test_padding_counts_as_image_without_image_sizes():
    mask = gaussian_box_mask([torch.tensor([[0.0, 0.0, 60.0, 44.0]])], (12, 20), (96, 160))
    assert mask[0, 0, 6:, :8].sum() > 0


def test_uniform_weight_covers_the_image_whatever_the_boxes():
    mask = gaussian_box_mask([torch.zeros(0, 4)], (12, 20), (96, 160), shape='uniform', image_sizes=[(50, 64)])
    expected = torch.zeros(12, 20)
    expected[:6, :8] = 1  # rows with a centre above 50 px: 4, 12, ... 44
    assert torch.equal(mask[0, 0], expected)


def test_is_unchanged_when_boxes_and_input_are_rescaled_together():
    boxes = random_boxes(4, 96, 160, seed=6)
    scale = torch.tensor([1.5, 2.0, 1.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        gaussian_box_mask([boxes], (12, 20), (96, 160)), gaussian_box_mask([boxes * scale], (12, 20), (192, 240))
    )


def test_half_precision_boxes_give_a_float_mask_without_gradient():
    boxes = torch.tensor([[10.0, 10.0, 90.0, 70.0]], dtype=torch.float16, requires_grad=True)
    mask = gaussian_box_mask([boxes], (12, 20), (96, 160))
    assert mask.dtype == torch.float32 and not mask.requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('shape', [*SHAPES, 'uniform'])
def test_is_the_same_on_cuda(shape):
    boxes = random_boxes(6, 96, 160).float()
    on_cpu = gaussian_box_mask([boxes], (12, 20), (96, 160), shape=shape)
    torch.testing.assert_close(gaussian_box_mask([boxes.cuda()], (12, 20), (96, 160), shape=shape).cpu(), on_cpu)


BOX = torch.tensor([[10.0, 10.0, 90.0, 70.0]])


@pytest.mark.parametrize(
    ('boxes', 'arguments', 'message'),
    [
        ([BOX], {'feature_size': (0, 4)}, 'feature_size must be two positive numbers'),
        ([BOX], {'input_size': (96, -1)}, 'input_size must be two positive numbers'),
        ([BOX], {'kappa': 0.0}, 'kappa must be > 0, got 0.0'),
        ([BOX], {'shape': 'gauss'}, "shape must be one of .*'gauss'"),
        ([BOX[0]], {}, r'boxes of image 0 must be \(M, 4\)'),
        ([], {}, 'boxes must hold one'),
        ([BOX], {'image_sizes': [(96, 160)] * 2}, 'one size for each of 1 images, got 2'),
    ],
)
def test_refuses(boxes, arguments, message):
    arguments = {'feature_size': (12, 20), 'input_size': (96, 160)} | arguments
    with pytest.raises(ValueError, match=message):
        gaussian_box_mask(boxes, **arguments)


def test_radius_refuses_an_overlap_outside_its_range():
    with pytest.raises(ValueError, match='min_overlap must be in'):
        gaussian_radius(torch.ones(1), torch.ones(1), min_overlap=1.0)

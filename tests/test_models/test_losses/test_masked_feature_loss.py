"""`MaskedFeatureLoss`: normalised difference of features inside and outside a mask."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.models.losses.masked_feature_loss import MaskedFeatureLoss
from mmkd.models.masks.gaussian_mask import GaussianMask


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Two maps (2, 3, 4, 5) and a mask (2, 1, 4, 5)."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator, dtype=dtype) * 3 + 1 for _ in range(2))
    return student, teacher, torch.rand(2, 1, 4, 5, generator=generator, dtype=dtype)


def naive(student: Tensor, teacher: Tensor, mask: Tensor, background: float = 0.0, eps: float = 1e-6) -> float:
    """Equation of the class, element by element."""

    def normal(feature: Tensor, n: int, c: int, y: int, x: int) -> float:
        cells = [float(value) for value in feature[n, c].flatten()]
        mean = sum(cells) / len(cells)
        variance = sum((value - mean) ** 2 for value in cells) / len(cells)
        return (float(feature[n, c, y, x]) - mean) / (variance + eps) ** 0.5

    inside = outside = total = rest = 0.0
    channels = student.shape[1]
    for n in range(student.shape[0]):
        for y in range(student.shape[2]):
            for x in range(student.shape[3]):
                weight = float(mask[n, 0, y, x])
                total, rest = total + weight, rest + 1 - weight
                for c in range(channels):
                    d = (normal(student, n, c, y, x) - normal(teacher, n, c, y, x)) ** 2
                    inside, outside = inside + weight * d, outside + (1 - weight) * d
    return inside / (channels * total) + background * outside / (channels * rest)


@pytest.mark.parametrize('background', [0.0, 0.3])
def test_equals_a_naive_loop(background):
    student, teacher, mask = pair()
    loss = MaskedFeatureLoss(background_weight=background, loss_weight=2.0)(student, teacher, mask=mask)
    assert loss.item() == pytest.approx(2 * naive(student, teacher, mask, background), rel=1e-10)


def test_uniform_mask_equals_no_mask():
    student, teacher, mask = pair()
    loss = MaskedFeatureLoss()
    torch.testing.assert_close(loss(student, teacher, mask=torch.ones_like(mask)), loss(student, teacher))


def test_equals_mse_without_normalisation():
    student, teacher, _ = pair()
    expected = torch.nn.functional.mse_loss(student, teacher)
    torch.testing.assert_close(MaskedFeatureLoss(normalize='none')(student, teacher), expected)


def test_is_blind_to_scale_and_shift_of_a_channel():
    student, teacher, mask = pair()
    scale, shift = (
        torch.tensor([2.0, 0.5, 7.0])[None, :, None, None],
        torch.tensor([1.0, -4.0, 0.3])[None, :, None, None],
    )
    loss = MaskedFeatureLoss(eps=1e-12)
    torch.testing.assert_close(loss(student * scale + shift, teacher, mask=mask), loss(student, teacher, mask=mask))


def test_is_zero_for_equal_inputs():
    student, _, mask = pair()
    assert MaskedFeatureLoss(background_weight=1.0)(student, student.clone(), mask=mask) == 0


def test_looks_only_where_the_mask_is():
    student, teacher, _ = pair()
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.float64)
    mask[:, :, 1:3, 2:4] = 1
    changed = torch.where(mask.bool(), student, student + 5)
    loss = MaskedFeatureLoss(normalize='none')
    assert loss(changed, teacher, mask=mask) == loss(student, teacher, mask=mask)
    with_background = MaskedFeatureLoss(normalize='none', background_weight=0.1)
    assert with_background(changed, teacher, mask=mask) > with_background(student, teacher, mask=mask)


def padded_mask() -> Tensor:
    """(2, 1, 4, 5): objects in the first two columns, background behind, the last column of image 1 padding (-1)."""
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.float64)
    mask[..., :2] = 0.75
    mask[1, ..., 4] = -1
    return mask


def test_negative_cells_of_the_mask_count_on_neither_side():
    student, teacher, _ = pair()
    mask = padded_mask()
    value = MaskedFeatureLoss(normalize='none', background_weight=0.3)(student, teacher, mask=mask)
    d = (student - teacher).square()
    inside, outside = mask * (mask > 0), (1 - mask) * (mask >= 0)
    expected = (d * inside).sum() / (3 * inside.sum()) + 0.3 * (d * outside).sum() / (3 * outside.sum())
    torch.testing.assert_close(value, expected)
    changed = torch.where(mask < 0, student + 5, student)
    for background in (0.0, 0.3):
        loss = MaskedFeatureLoss(normalize='none', background_weight=background)
        assert loss(changed, teacher, mask=mask) == loss(student, teacher, mask=mask)


def test_gate_draws_negative_cells_of_the_mask_to_nothing():
    student, teacher, _ = pair()
    mask = padded_mask()
    gated = MaskedFeatureLoss(gate=True, background_weight=0.25, normalize='none')
    target = teacher * torch.where(mask < 0, 0, mask + 0.25 * (1 - mask))
    torch.testing.assert_close(gated(student, teacher, mask=mask), torch.nn.functional.mse_loss(student, target))


def test_padding_is_background_unless_the_mask_takes_it_out():
    sample = DetDataSample(metainfo=dict(batch_input_shape=(32, 40), img_shape=(32, 24)))
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[2.0, 3.0, 14.0, 20.0]]))
    student, teacher, _ = pair()
    student, teacher = student[:1], teacher[:1]
    (mask,), (out,) = (GaussianMask(shape='binary', padding=value)([sample], [student]) for value in (0, -1))
    assert mask[..., 3:].eq(0).all() and out[..., 3:].eq(-1).all() and torch.equal(out[..., :3], mask[..., :3])
    loss = MaskedFeatureLoss(normalize='none', background_weight=1.0)
    assert loss(student, teacher, mask=out) != loss(student, teacher, mask=mask)
    alone = loss(student[..., :3], teacher[..., :3], mask=mask[..., :3])
    torch.testing.assert_close(loss(student, teacher, mask=out), alone)


def test_statistics_are_those_of_each_image_alone():
    student, teacher, mask = pair()
    loss = MaskedFeatureLoss()
    alone = [loss(student[i : i + 1], teacher[i : i + 1], mask=mask[i : i + 1]) * mask[i].sum() for i in range(2)]
    torch.testing.assert_close(loss(student, teacher, mask=mask), sum(alone) / mask.sum())


@pytest.mark.parametrize('shape', [(1, 2, 1, 1), (1, 1, 1, 6), (2, 3, 5, 3)])
def test_flat_maps_and_single_cells_give_finite_gradients(shape):
    student = torch.full(shape, 2.0, requires_grad=True)
    loss = MaskedFeatureLoss(background_weight=0.5)(
        student, torch.zeros(shape), mask=torch.ones(shape[0], 1, *shape[2:])
    )
    loss.backward()
    assert loss == 0 and student.grad.isfinite().all()


def test_empty_mask_gives_a_zero_that_depends_on_the_student():
    student, teacher, mask = pair()
    loss = MaskedFeatureLoss()(student.requires_grad_(), teacher, mask=torch.zeros_like(mask))
    loss.backward()
    assert loss == 0 and torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize('gate', [False, True])
def test_gradcheck(gate):
    student, teacher, mask = pair()
    loss = MaskedFeatureLoss(background_weight=0.3, gate=gate)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, mask=mask), student.requires_grad_())


@pytest.mark.parametrize('gate', [False, True])
def test_no_gradient_reaches_the_teaching_side(gate):
    student, teacher, mask = pair()
    MaskedFeatureLoss(gate=gate)(student.requires_grad_(), teacher.requires_grad_(), mask=mask).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_gate_compares_the_whole_map_with_the_masked_target():
    student, teacher, mask = pair()
    gated = MaskedFeatureLoss(gate=True, background_weight=0.25, normalize='none')(student, teacher, mask=mask)
    expected = torch.nn.functional.mse_loss(student, teacher * (mask + 0.25 * (1 - mask)))
    torch.testing.assert_close(gated, expected)
    assert MaskedFeatureLoss(gate=True)(student, student.clone(), mask=mask) > 0.01


def test_gate_leaves_images_without_objects_alone():
    """Beside an image with objects, whose share of the loss stays what it was."""
    student, teacher, mask = pair()
    mask = mask * torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1)
    loss = MaskedFeatureLoss(gate=True)(student.requires_grad_(), teacher, mask=mask)
    loss.backward()
    assert not student.grad[1].any() and student.grad[0].any()
    alone = MaskedFeatureLoss(gate=True)(student[:1], teacher[:1], mask=mask[:1])
    torch.testing.assert_close(loss, alone / 2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher, mask = pair(torch.float32)
    half = MaskedFeatureLoss()(student.to(dtype), teacher.to(dtype), mask=mask)
    assert half.dtype == torch.float32
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert MaskedFeatureLoss()(student, teacher, mask=mask) == MaskedFeatureLoss()(student, teacher, mask=mask)
    torch.testing.assert_close(half, MaskedFeatureLoss()(student, teacher, mask=mask), rtol=0.02, atol=0)


def test_is_built_inside_a_pyramid_loss():
    student, teacher, mask = pair()
    loss = MODELS.build(dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.MaskedFeatureLoss')))
    values = loss((student, student[..., :1, :1]), (teacher, teacher[..., :1, :1]), mask=(mask, mask[..., :1, :1]))
    assert len(values) == 2 and values[0] > 0 and values[1] == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(normalize='batch'), "normalize must be 'channel' or 'none'"),
        (dict(background_weight=-1.0), 'background_weight must be >= 0'),
        (dict(eps=0.0), 'eps must be > 0'),
        (dict(loss_weight=-0.1), 'loss_weight must be >= 0'),
    ],
)
def test_refuses_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedFeatureLoss(**arguments)


def test_refuses_inputs_that_do_not_fit():
    student, teacher, mask = pair()
    with pytest.raises(ValueError, match='same shape'):
        MaskedFeatureLoss()(student, teacher[:, :1])
    for gate in (False, True):
        with pytest.raises(ValueError, match='mask'):
            MaskedFeatureLoss(gate=gate)(student, teacher, mask=mask[:1])
    with pytest.raises(ValueError, match='cannot use labels'):
        MaskedFeatureLoss()(student, teacher, labels=torch.zeros(2))
    with pytest.raises(ValueError, match='gate=True needs mask='):
        MaskedFeatureLoss(gate=True)(student, teacher)
    assert MaskedFeatureLoss(gate=True).eval()(student, teacher) == MaskedFeatureLoss()(student, teacher)
    with pytest.raises(ValueError, match='avg_factor divides the foreground alone'):
        MaskedFeatureLoss(background_weight=0.1)(student, teacher, mask=mask, avg_factor=3.0)

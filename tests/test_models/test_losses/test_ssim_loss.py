"""`SSIMLoss`: normalisation, mask, weight, gradients and refusals."""

import pytest
import torch
from torch import Tensor

from mmkd.functional.normalisation import min_max
from mmkd.functional.ssim import ssim_map
from mmkd.models.losses.ssim_loss import SSIMLoss
from mmkd.registry import MODELS

# kornia compiles by torch.jit when it is imported
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')


def feature_pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A teacher's map and a student's noisy copy, unbounded as features are."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
    student = 3 * (teacher + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)) - 1
    return student.to(dtype), teacher.to(dtype)


@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_equals_the_mean_dissimilarity_of_normalised_maps(padding):
    student, teacher = feature_pair(2, 3, 13, 17)
    expected = (1 - ssim_map(min_max(student), min_max(teacher), data_range=1.0, padding=padding)).mean() / 2
    torch.testing.assert_close(SSIMLoss(data_range=1.0, padding=padding)(student, teacher), expected)


def test_equals_kornias_loss_on_maps_that_are_not_normalised():
    kornia = pytest.importorskip('kornia')
    student, teacher = (t.sigmoid() for t in feature_pair(2, 3, 13, 17))
    expected = kornia.losses.ssim_loss(student, teacher, 11, max_val=1.0)
    result = SSIMLoss(data_range=1.0, normalize=None)(student, teacher)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(('scope', 'golden'), [('batch', 0.053478), ('image', 0.053532), ('channel', 0.056498)])
def test_equals_golden_numbers_of_each_scope(scope, golden):
    """notes/papers.md section 9; computed there with kornia 0.9.0 after a separate normalisation."""
    teacher = torch.randn(2, 256, 50, 76, generator=torch.Generator().manual_seed(1))
    student = teacher + 0.5 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(2))
    loss = SSIMLoss(data_range=1.0, normalize=scope)(student, teacher)
    assert loss.item() == pytest.approx(golden, abs=1e-6)


@pytest.mark.parametrize('size', [(1, 1), (5, 5), (7, 10)])
def test_is_zero_for_equal_inputs(size):
    _, teacher = feature_pair(2, 3, *size, dtype=torch.float32)
    for fused in (True, False):
        assert SSIMLoss(data_range=1.0, fused=fused)(teacher.clone(), teacher).item() == 0


def test_does_not_depend_on_offset_and_scale_of_the_features():
    student, teacher = feature_pair(2, 3, 9, 12)
    loss = SSIMLoss(data_range=1.0)
    torch.testing.assert_close(loss(5 * student + 2, teacher), loss(student, 0.1 * teacher - 3))


def test_lies_between_zero_and_one():
    student, teacher = feature_pair(4, 3, 9, 12)
    for other in (teacher, -teacher, student):
        assert 0 <= SSIMLoss(data_range=1.0)(other, teacher).item() <= 1


def test_weight_scales_the_loss():
    student, teacher = feature_pair(1, 3, 9, 12)
    once = SSIMLoss(data_range=1.0)(student, teacher)
    torch.testing.assert_close(SSIMLoss(data_range=1.0, loss_weight=4.0)(student, teacher), 4 * once)


def test_mean_over_images_is_the_loss_of_the_batch():
    student, teacher = feature_pair(3, 2, 9, 12)
    loss = SSIMLoss(data_range=1.0)
    single = torch.stack([loss(student[i : i + 1], teacher[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(student, teacher), single.mean())


@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_mask_gives_the_weighted_mean_of_the_map(padding):
    student, teacher = feature_pair(2, 3, 14, 18)
    mask = torch.rand(2, 1, 14, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values = (1 - ssim_map(min_max(student), min_max(teacher), data_range=1.0, padding=padding)) / 2
    weights = (mask if padding == 'same' else mask[..., 5:-5, 5:-5]).expand_as(values)
    result = SSIMLoss(data_range=1.0, padding=padding)(student, teacher, mask=mask)
    torch.testing.assert_close(result, (values * weights).sum() / weights.sum())


@pytest.mark.parametrize('padding', ['same', 'valid'])
def test_uniform_mask_changes_nothing_and_an_empty_one_gives_zero_with_a_graph(padding):
    student, teacher = feature_pair(2, 3, 14, 18)
    student.requires_grad_()
    loss = SSIMLoss(data_range=1.0, padding=padding)
    mask = torch.ones(2, 1, 14, 18)
    torch.testing.assert_close(loss(student, teacher, mask=mask), loss(student, teacher))
    empty = loss(student, teacher, mask=0 * mask)
    empty.backward()
    assert empty.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_avg_factor_replaces_the_sum_of_the_mask():
    student, teacher = feature_pair(2, 3, 9, 12)
    mask = torch.ones(2, 1, 9, 12)
    loss = SSIMLoss(data_range=1.0)
    doubled = loss(student, teacher, mask=mask, avg_factor=mask.sum() / 2)
    torch.testing.assert_close(doubled, 2 * loss(student, teacher, mask=mask))


@pytest.mark.parametrize('options', [{}, {'detach_extremes': True}, {'normalize': 'channel'}, {'exponents': (0, 0, 1)}])
def test_gradient_reaches_the_student_only(options):
    student, teacher = feature_pair(2, 3, 9, 12)
    student.requires_grad_()
    teacher.requires_grad_()
    SSIMLoss(data_range=1.0, **options)(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize('normalize', ['image', 'batch', 'channel', None])
@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('fused', [True, False])
def test_gradient_equals_finite_differences(fused, normalize, padding):
    student, teacher = feature_pair(2, 2, 4, 5)
    student.requires_grad_()
    loss = SSIMLoss(data_range=1.0, normalize=normalize, window_size=3, padding=padding, fused=fused)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@pytest.mark.parametrize('flat', ['student', 'teacher', 'both'])
def test_flat_maps_give_finite_loss_and_gradient(flat):
    student, teacher = feature_pair(1, 2, 9, 12, dtype=torch.float32)
    student = torch.zeros_like(student) if flat != 'teacher' else student
    teacher = torch.full_like(teacher, 5.0) if flat != 'student' else teacher
    student.requires_grad_()
    loss = SSIMLoss(data_range=1.0)(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_half_precision_features_are_compared_in_float32():
    student, teacher = feature_pair(1, 3, 9, 12, dtype=torch.float16)
    expected = SSIMLoss(data_range=1.0)(student.double(), teacher.double())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        result = SSIMLoss(data_range=1.0)(student, teacher)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(expected.item(), rel=1e-4)


def test_negative_cells_of_a_mask_count_as_zero_and_no_gradient_goes_into_it():
    student, teacher = feature_pair(1, 3, 8, 8, dtype=torch.float64)
    mask = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    mask[..., 3:] = -1
    found = []
    for fused, one in ((False, mask), (True, mask), (True, mask.clamp(min=0))):
        leaf, weights = student.clone().requires_grad_(), one.clone().requires_grad_()
        loss = SSIMLoss(data_range=1.0, fused=fused)(leaf, teacher, mask=weights)
        loss.backward()
        assert weights.grad is None
        found.append((loss.detach(), leaf.grad))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-10, atol=0)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_fused_form_equals_the_plain_form(dtype, padding, masked):
    student, teacher = feature_pair(2, 40, 13, 17, dtype=dtype)
    mask = torch.rand(2, 1, 13, 17, generator=torch.Generator().manual_seed(3)) if masked else None
    results = []
    for fused in (False, True):
        leaf = student.clone().requires_grad_()
        loss = SSIMLoss(data_range=1.0, padding=padding, fused=fused, loss_weight=4.0)(leaf, teacher, mask=mask)
        (3 * loss).backward()
        results.append((loss.detach(), leaf.grad))
    (plain, plain_grad), (fused, fused_grad) = results
    tight = dtype == torch.float64
    torch.testing.assert_close(fused, plain, rtol=1e-12 if tight else 1e-5, atol=0)
    torch.testing.assert_close(fused_grad, plain_grad, rtol=0, atol=(1e-11 if tight else 1e-3) * plain_grad.abs().max())


def test_plain_form_serves_other_exponents_and_second_derivatives():
    assert not SSIMLoss(data_range=1.0, exponents=(0, 1, 1)).fused
    student, teacher = feature_pair(1, 2, 4, 5)
    student.requires_grad_()
    loss = SSIMLoss(data_range=1.0, window_size=3, fused=False)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, teacher), (student,), atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_equals_cpu():
    student, teacher = feature_pair(2, 8, 25, 38, dtype=torch.float32)
    on_cpu, on_gpu = student.clone().requires_grad_(), student.cuda().requires_grad_()
    loss = SSIMLoss(data_range=1.0)
    expected, result = loss(on_cpu, teacher), loss(on_gpu, teacher.cuda())
    expected.backward()
    result.backward()
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(on_gpu.grad.cpu(), on_cpu.grad, rtol=1e-3, atol=1e-8)


def test_builds_from_a_config_by_scope():
    loss = MODELS.build(dict(type='mmkd.SSIMLoss', data_range=1.0, window_size=7, exponents=(0, 1, 1)))
    assert loss.options.window_size == 7


@pytest.mark.parametrize(
    ('arguments', 'error', 'match'),
    [
        ({}, TypeError, 'data_range'),
        ({'data_range': -1.0}, ValueError, 'data_range must be > 0'),
        ({'data_range': 1.0, 'normalize': 'level'}, ValueError, 'normalize must be one of'),
        ({'data_range': 1.0, 'windowsize': 5}, TypeError, 'windowsize'),
        ({'data_range': 1.0, 'loss_weight': -1.0}, ValueError, 'loss_weight must be >= 0'),
    ],
)
def test_refuses_arguments_out_of_range(arguments, error, match):
    with pytest.raises(error, match=match):
        SSIMLoss(**arguments)


def test_refuses_pairs_and_masks_that_do_not_fit():
    student, teacher = feature_pair(1, 2, 9, 12)
    loss = SSIMLoss(data_range=1.0, padding='valid', window_size=3)
    with pytest.raises(ValueError, match='same shape'):
        loss(student[:, :1], teacher)
    with pytest.raises(TypeError, match='PyramidLoss'):
        loss((student,), (teacher,))
    with pytest.raises(ValueError, match=r'mask must have shape \(1, 1, 9, 12\), got \(1, 1, 7, 10\)'):
        loss(student, teacher, mask=torch.ones(1, 1, 7, 10))
    with pytest.raises(ValueError, match='mask must have shape'):
        loss(student, teacher, mask=torch.ones(1, 2, 9, 12))
    with pytest.raises(ValueError, match='takes no labels'):
        loss(student, teacher, labels=torch.zeros(1))
    with pytest.raises(ValueError, match='avg_factor needs a mask'):
        loss(student, teacher, avg_factor=1.0)

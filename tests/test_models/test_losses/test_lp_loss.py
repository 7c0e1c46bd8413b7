"""`NormalizedLpLoss`: the l1 and l2 controls."""

import pytest
import torch

from mmkd.models.losses.lp_loss import NormalizedLpLoss


def feature_pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent float64 maps."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize('p', [1, 2])
def test_equals_a_loop_over_elements_of_maps_normalised_by_image(p):
    student, teacher = feature_pair(2, 3, 4, 5)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        low_s, low_t = s.min().item(), t.min().item()
        range_s, range_t = s.max().item() - low_s, t.max().item() - low_t
        for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
            total += abs((a - low_s) / range_s - (b - low_t) / range_t) ** p
    assert NormalizedLpLoss(p=p)(student, teacher).item() == pytest.approx(total / student.numel(), abs=1e-12)


@pytest.mark.parametrize(('p', 'reference'), [(1, torch.nn.L1Loss()), (2, torch.nn.MSELoss())])
def test_without_normalisation_equals_torch(p, reference):
    student, teacher = feature_pair(2, 3, 4, 5)
    torch.testing.assert_close(NormalizedLpLoss(p=p, normalize=None)(student, teacher), reference(student, teacher))


@pytest.mark.parametrize('p', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (3, 7)])
def test_is_zero_for_equal_inputs(p, size):
    _, teacher = feature_pair(1, 3, *size)
    assert NormalizedLpLoss(p=p)(teacher.clone(), teacher).item() == 0


@pytest.mark.parametrize('p', [1, 2])
def test_gradient_equals_finite_differences_and_does_not_reach_the_teacher(p):
    student, teacher = feature_pair(2, 2, 3, 4)
    student.requires_grad_()
    teacher.requires_grad_()
    loss = NormalizedLpLoss(p=p, loss_weight=2.0)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))
    loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize('p', [1, 2])
def test_mask_selects_cells(p):
    student, teacher = feature_pair(1, 3, 4, 5)
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., 2, 3] = 1
    loss = NormalizedLpLoss(p=p, normalize=None)
    expected = (student - teacher)[..., 2, 3].abs().pow(p).mean()
    torch.testing.assert_close(loss(student, teacher, mask=mask), expected)
    mask[..., 0, :] = -1  # padding that counts on neither side
    torch.testing.assert_close(loss(student, teacher, mask=mask), expected)


def test_detached_extremes_change_the_gradient_but_not_the_value():
    student, teacher = feature_pair(1, 2, 3, 4)
    gradients, values = [], []
    for detach in (False, True):
        leaf = student.clone().requires_grad_()
        value = NormalizedLpLoss(p=2, detach_extremes=detach)(leaf, teacher)
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    assert values[0] == values[1]
    assert not torch.allclose(*gradients)


def test_refuses_other_powers():
    with pytest.raises(ValueError, match='p must be 1 or 2, got 3'):
        NormalizedLpLoss(p=3)
    with pytest.raises(ValueError, match='normalize must be'):
        NormalizedLpLoss(p=1, normalize='level')

"""`IntermediateGuidance` and `GuidanceLoss`. Shapes: `N` images, `B, C` channels, `H, W` cells."""

import pytest
import torch
from torch import Tensor

from mmkd.models.connectors.intermediate_guidance import IntermediateGuidance
from mmkd.models.losses.guidance_loss import GuidanceLoss


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def sides(student: int = 4, teacher: int = 16, **options) -> tuple[IntermediateGuidance, IntermediateGuidance]:
    torch.manual_seed(0)
    return (
        IntermediateGuidance(in_channels=student, out_channels=teacher, **options),
        IntermediateGuidance(in_channels=teacher, out_channels=student, reconstruct=True, **options),
    )


@pytest.mark.parametrize(('student', 'teacher', 'width'), [(4, 16, 8), (16, 4, 8), (6, 6, 6), (64, 256, 128)])
def test_both_sides_choose_the_same_width_between_theirs(student: int, teacher: int, width: int) -> None:
    own, guide = sides(student, teacher)
    code, reconstruction, feature = guide(draw(2, teacher, 3, 5))
    assert own(draw(2, student, 3, 5)).shape == code.shape == (2, width, 3, 5)
    assert reconstruction.shape == feature.shape == (2, teacher, 3, 5)


def naive(code_s: Tensor, code_t: Tensor, reconstruction: Tensor, feature: Tensor) -> float:
    total = 0.0
    for n in range(len(code_s)):
        s, t = code_s[n].flatten().tolist(), code_t[n].flatten().tolist()
        s, t = ([v / (sum(u * u for u in code) / len(code)) ** 0.5 for v in code] for code in (s, t))
        total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        r, f = reconstruction[n].flatten().tolist(), feature[n].flatten().tolist()
        total += (
            3 * sum((a - b) ** 2 for a, b in zip(r, f, strict=True)) / max(sum(v * v for v in part) for part in (r, f))
        )
    return total / len(code_s)


def test_loss_equals_a_naive_loop() -> None:
    parts = [draw(2, c, 3, 4, seed=i, dtype=torch.float64) for i, c in enumerate((2, 2, 5, 5))]
    loss = GuidanceLoss(reconstruction_weight=3.0, loss_weight=2.0)
    assert loss(parts[0], parts[1:]).item() == pytest.approx(2 * naive(*parts), rel=1e-5)


def test_guide_term_is_zero_for_equal_codes_whatever_their_scale_and_at_most_four() -> None:
    code, feature = draw(2, 3, 4, 5), draw(2, 6, 4, 5, seed=1)
    loss = GuidanceLoss()
    assert loss(code, (code, feature, feature)).item() == 0
    assert loss(7 * code, (code, feature, feature)).item() == pytest.approx(0, abs=1e-6)
    assert loss(-code, (code, feature, feature)).item() == pytest.approx(4, rel=1e-5)


def test_transition_is_trained_by_reconstruction_alone_and_teacher_by_nothing() -> None:
    own, guide = sides()
    student, teacher = draw(2, 4, 3, 5).requires_grad_(), draw(2, 16, 3, 5, seed=1).requires_grad_()
    coded = guide(teacher)
    GuidanceLoss()(own(student), coded).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in [*own.parameters(), *guide.parameters()])
    # with a perfect reconstruction in its place nothing but the matching term is left
    guide.zero_grad()
    code, _, feature = guide(teacher)
    GuidanceLoss()(own(student), (code, feature, feature)).backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in guide.parameters())


def test_trained_transition_keeps_the_teachers_information_and_leads_the_student() -> None:
    """A student that can see everything: the code varies, reconstructs, and is matched. A collapsed code could not."""
    own, guide = sides()
    teacher = draw(4, 6, 6, 7) @ draw(7, 7, seed=1)
    teacher = torch.cat([teacher, teacher.roll(1, 2), teacher[:, :4] * 2], dim=1)
    student, loss = teacher[:, [0, 3, 6, 12]], GuidanceLoss()
    optimiser = torch.optim.Adam([*own.parameters(), *guide.parameters()], lr=0.02)
    start = loss(own(student), guide(teacher)).item()
    for _ in range(150):
        optimiser.zero_grad()
        value = loss(own(student), guide(teacher))
        value.backward()
        optimiser.step()
    code, reconstruction, _ = guide(teacher)
    assert value.item() < 0.5 * start
    assert (reconstruction - teacher).square().mean() < 0.5 * teacher.var()
    assert code.std((0, 2, 3)).max() > 0.1


def test_dead_features_give_finite_gradients() -> None:
    own, guide = sides()
    student = torch.zeros(1, 4, 1, 1, requires_grad=True)
    GuidanceLoss()(own(student), guide(torch.zeros(1, 16, 1, 1))).backward()
    assert student.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in guide.parameters())


def test_gradients_are_right() -> None:
    own, guide = (side.double() for side in sides())
    teacher = draw(1, 16, 2, 3, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: GuidanceLoss()(own(s), guide(teacher)), draw(1, 4, 2, 3, dtype=torch.float64).requires_grad_()
    )


def test_autocast_is_off_inside_the_loss() -> None:
    parts = [draw(2, c, 3, 4, seed=i) for i, c in enumerate((2, 2, 5, 5))]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = GuidanceLoss()(parts[0], parts[1:])
    assert torch.equal(inside, GuidanceLoss()(parts[0], parts[1:]))


@pytest.mark.parametrize('name', ['mask', 'labels', 'avg_factor'])
def test_refuses_arguments_it_cannot_use(name: str) -> None:
    code = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=f'cannot use {name}'):
        GuidanceLoss()(code, (code, code, code), **{name: torch.ones(1)})


def test_refuses_what_does_not_fit() -> None:
    code, feature = torch.zeros(1, 2, 3, 4), torch.zeros(1, 6, 3, 4)
    with pytest.raises(TypeError, match='auto-encoding connector'):
        GuidanceLoss()(code, code)
    with pytest.raises(TypeError, match='auto-encoding connector'):
        GuidanceLoss()(code, (code, feature))
    with pytest.raises(ValueError, match='each two must be equal'):
        GuidanceLoss()(code, (feature, feature, feature))
    with pytest.raises(ValueError, match='reconstruction_weight must be > 0'):
        GuidanceLoss(reconstruction_weight=0.0)
    with pytest.raises(ValueError, match='must lie between 4 and 16, got 32'):
        sides(hidden_channels=32)
    with pytest.raises(ValueError, match='kernel_size must be odd'):
        sides(kernel_size=2)

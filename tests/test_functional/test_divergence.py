"""Divergences between class scores. Shapes: `P` rows, `C` logits of a row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmkd.functional.divergence import (
    binary_kl_divergence,
    decoupled_binary_kl_divergence,
    decoupled_kl_divergence,
    kl_divergence,
)

PARTS = [decoupled_kl_divergence, decoupled_binary_kl_divergence]
rows = st.tuples(
    st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9), st.floats(0.1, 8), st.sampled_from([0.01, 1.0, 20.0])
)


def draw(seed: int, p: int, c: int, spread: float = 1.0, background: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(p, c, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(0, c + background, (p,), generator=g)


def softmax(z: list[float], tau: float) -> list[float]:
    powers = [math.exp(v / tau) for v in z]
    return [v / sum(powers) for v in powers]


def naive_kl(t: list[float], s: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(t, s, strict=True))


def naive_binary(z_s: float, z_t: float, tau: float) -> float:
    s, t = (1 / (1 + math.exp(-z / tau)) for z in (z_s, z_t))
    return tau**2 * naive_kl([t, 1 - t], [s, 1 - s])


@pytest.mark.parametrize(('seed', 'p', 'c', 'tau'), [(0, 5, 4, 1.0), (1, 3, 2, 4.0), (2, 1, 21, 0.5)])
def test_decoupled_parts_equal_naive_loops(seed: int, p: int, c: int, tau: float) -> None:
    student, teacher, target = draw(seed, p, c)
    tckd, nckd = decoupled_kl_divergence(student, teacher, target, tau=tau)
    for i in range(p):
        p_s, p_t = softmax(student[i].tolist(), tau), softmax(teacher[i].tolist(), tau)
        y = int(target[i])
        assert tckd[i].item() == pytest.approx(tau**2 * naive_kl([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]]), rel=1e-9)
        q_s, q_t = ([v / (1 - p[y]) for k, v in enumerate(p) if k != y] for p in (p_s, p_t))
        assert nckd[i].item() == pytest.approx(tau**2 * naive_kl(q_t, q_s), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(('seed', 'p', 'c', 'tau'), [(0, 6, 3, 1.0), (1, 6, 1, 2.0)])
def test_binary_parts_equal_naive_loops(seed: int, p: int, c: int, tau: float) -> None:
    student, teacher, target = draw(seed, p, c, background=True)
    parts = decoupled_binary_kl_divergence(student, teacher, target, tau=tau)
    for i in range(p):
        values = [naive_binary(student[i, k].item(), teacher[i, k].item(), tau) for k in range(c)]
        y = int(target[i])
        assert parts[0][i].item() == pytest.approx(values[y] if y < c else 0.0, rel=1e-9)
        assert parts[1][i].item() == pytest.approx(sum(v for k, v in enumerate(values) if k != y), rel=1e-9, abs=1e-14)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_kl_is_target_part_plus_share_of_non_target_part(case: tuple) -> None:
    seed, p, c, tau, spread = case
    student, teacher, target = draw(seed, p, c + 1, spread)
    tckd, nckd = decoupled_kl_divergence(student, teacher, target, tau=tau)
    # 1 - p_t,y as a sum over the others: the difference to 1 loses all digits when p_t,y is close to 1
    p_t = (teacher / tau).softmax(-1)
    others = p_t.scatter(1, target[:, None], 0.0).sum(-1)
    whole = kl_divergence(student, teacher, tau=tau)
    torch.testing.assert_close(tckd + others * nckd, whole, rtol=1e-9, atol=1e-9)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_sum_of_binary_kl_is_target_plus_non_target(case: tuple) -> None:
    seed, p, c, tau, spread = case
    student, teacher, target = draw(seed, p, c, spread, background=True)
    target_part, rest = decoupled_binary_kl_divergence(student, teacher, target, tau=tau)
    whole = binary_kl_divergence(student, teacher, tau=tau).sum(-1)
    torch.testing.assert_close(target_part + rest, whole, rtol=1e-12, atol=1e-12)


@given(rows)
@settings(max_examples=40, deadline=None)
def test_no_part_is_negative(case: tuple) -> None:
    seed, p, c, tau, spread = case
    student, teacher, target = draw(seed, p, c + 1, spread)
    for parts in PARTS:
        for part in parts(student, teacher, target, tau=tau):
            assert part.min() >= -1e-9 * tau**2


def test_matches_the_golden_numbers_of_mdistiller() -> None:
    """Zhao et al.'s code: DKD 8 x 21, alpha 1, beta 8, T 4 and beta 0.25, T 1; notes/papers.md section 9."""
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(8, 21, generator=g), torch.randn(8, 21, generator=g)
    target = torch.randint(0, 21, (8,), generator=g)
    assert kl_divergence(student, teacher, tau=4).mean().item() == pytest.approx(0.90109164, rel=1e-5)
    tckd, nckd = decoupled_kl_divergence(student, teacher, target, tau=4)
    assert (tckd + 8 * nckd).mean().item() == pytest.approx(7.13328886, rel=1e-5)
    tckd, nckd = decoupled_kl_divergence(student, teacher, target, tau=1)
    assert (tckd + 0.25 * nckd).mean().item() == pytest.approx(0.24740945, rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('parts', PARTS)
def test_half_precision_is_computed_in_float32(parts, dtype: torch.dtype) -> None:
    student, teacher, target = draw(3, 40, 9, spread=8.0)
    student, teacher = student.to(dtype), teacher.to(dtype)
    found = parts(student, teacher, target, tau=2.0)
    expected = parts(student.float(), teacher.float(), target, tau=2.0)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_equals_torch_kl_div() -> None:
    student, teacher, _ = draw(3, 7, 5)
    reference = torch.nn.functional.kl_div(
        (student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction='none'
    ).sum(-1)
    torch.testing.assert_close(kl_divergence(student, teacher, tau=2), 4 * reference)


def test_binary_kl_is_cross_entropy_minus_entropy() -> None:
    student, teacher, _ = draw(4, 7, 5)
    cross = torch.nn.functional.binary_cross_entropy_with_logits
    p = teacher.sigmoid()
    reference = cross(student, p, reduction='none') - cross(teacher, p, reduction='none')
    torch.testing.assert_close(binary_kl_divergence(student, teacher), reference)


@pytest.mark.parametrize('parts', PARTS)
def test_is_zero_for_equal_logits(parts) -> None:
    student, _, target = draw(5, 9, 4, spread=30.0)
    for part in parts(student, student, target):
        assert part.abs().max() < 1e-12


@pytest.mark.parametrize('parts', PARTS)
@pytest.mark.parametrize('gap', [1e2, 1e4])
def test_saturated_logits_give_finite_values_and_gradients(parts, gap: float) -> None:
    """The authors' logarithm of a softmax gives inf or NaN beyond a gap of about 104."""
    student = torch.tensor([[gap, -gap, 0.0], [-gap, gap, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-gap, gap, 0.0], [-gap, gap, 0.0]])
    loss = sum(part.sum() for part in parts(student, teacher, torch.tensor([0, 1])))
    loss.backward()
    assert loss.isfinite()
    assert loss > gap
    assert student.grad.isfinite().all()
    assert student.grad[0].abs().max() > 0


def test_binary_form_sees_an_absolute_score_that_the_softmax_misses() -> None:
    teacher = torch.tensor([[2.0, -3.0, -3.0, -3.0]], dtype=torch.float64)
    student = teacher - torch.tensor([[0.0, 6.0, 6.0, 6.0]], dtype=torch.float64)
    target = torch.tensor([0])
    assert decoupled_kl_divergence(student, teacher, target)[1] == pytest.approx(0, abs=1e-12)
    assert decoupled_binary_kl_divergence(student, teacher, target)[1] > 0.1


def test_two_classes_leave_no_non_target_part() -> None:
    student, teacher, target = draw(6, 5, 2)
    tckd, nckd = decoupled_kl_divergence(student, teacher, target)
    assert nckd.tolist() == [0] * 5
    torch.testing.assert_close(tckd, kl_divergence(student, teacher))


@pytest.mark.parametrize('parts', PARTS)
def test_no_rows_give_no_values(parts) -> None:
    empty = torch.zeros(0, 3)
    assert [part.shape for part in parts(empty, empty, torch.zeros(0, dtype=torch.long))] == [(0,), (0,)]


@pytest.mark.parametrize('parts', PARTS)
@pytest.mark.parametrize('part', [0, 1])
def test_gradients_are_right(parts, part: int) -> None:
    student, teacher, target = draw(7, 3, 4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: parts(s, teacher, target, tau=2.0)[part], student)


@pytest.mark.parametrize(
    ('student', 'teacher', 'target', 'tau', 'message'),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), 1.0, 'agree in shape'),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 1.0, r'target \(P,\)'),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 4]), 1.0, r'got 0 to 4'),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([-1, 0]), 1.0, 'got -1 to 0'),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), 1.0, 'class indices'),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 0.0, 'tau must be > 0'),
        (torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.long), 1.0, r'logits must be \(P, C\)'),
    ],
)
@pytest.mark.parametrize('parts', PARTS)
def test_refuses_what_does_not_fit(parts, student, teacher, target, tau, message) -> None:
    with pytest.raises(ValueError, match=message):
        parts(student, teacher, target, tau=tau)


def test_softmax_form_refuses_background_and_a_single_logit() -> None:
    with pytest.raises(ValueError, match=r'target must lie in \[0, 2\]'):
        decoupled_kl_divergence(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([3]))
    with pytest.raises(ValueError, match='softmax over one logit'):
        decoupled_kl_divergence(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0]))

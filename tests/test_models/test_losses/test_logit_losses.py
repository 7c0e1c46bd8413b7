"""`DecoupledLogitLoss` and `SoftTargetLoss`. Shapes: `P` rows, `C` logits of a row, `K` classes."""

from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mmkd.functional.dense import flatten_levels
from mmkd.functional.divergence import binary_kl_divergence, decoupled_binary_kl_divergence, decoupled_kl_divergence
from mmkd.models.losses import logit_loss
from mmkd.models.losses.decoupled_logit_loss import DecoupledLogitLoss
from mmkd.models.losses.soft_target_loss import SoftTargetLoss

LOSSES = [DecoupledLogitLoss, SoftTargetLoss]


@pytest.fixture(scope='module')
def mmrazor_losses() -> ModuleType:
    """MMRazor's losses; mmkd.compat makes them importable."""
    import_module('mmkd.compat')
    return import_module('mmrazor.models.losses')


def draw(p: int, c: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(p, c, generator=g, dtype=dtype), torch.randn(p, c, generator=g, dtype=dtype)


def test_softmax_is_the_mean_over_rows_with_background_as_a_class() -> None:
    student, teacher = draw(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    tckd, nckd = decoupled_kl_divergence(student, teacher, labels, tau=2.0)
    loss = DecoupledLogitLoss(mode='softmax', target_weight=0.5, non_target_weight=3.0, tau=2.0, loss_weight=7.0)
    expected = 7 * (0.5 * tckd + 3 * nckd).mean()
    torch.testing.assert_close(loss(student, teacher, labels=labels), expected)


def test_sigmoid_sums_foreground_points_and_divides_by_their_number() -> None:
    student, teacher = draw(6, 3)
    labels = torch.tensor([0, 3, 2, 3, -1, 1])
    foreground = [0, 2, 5]
    target, rest = decoupled_binary_kl_divergence(student[foreground], teacher[foreground], labels[foreground])
    loss = DecoupledLogitLoss(mode='sigmoid')
    torch.testing.assert_close(loss(student, teacher, labels=labels), (target + 0.25 * rest).sum() / 3)
    halved = loss(student, teacher, labels=labels, avg_factor=6.0)
    torch.testing.assert_close(halved, loss(student, teacher, labels=labels) / 2)


@pytest.mark.parametrize('mode', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('cls', LOSSES)
def test_foreground_and_background_add_up_with_their_weights(cls, mode: str) -> None:
    student, teacher = draw(7, 3)
    background = 2 if mode == 'softmax' else 3
    labels = torch.tensor([0, 1, background, background, 0, background, -1])
    part = [
        cls(mode=mode, foreground_weight=f, background_weight=b)(student, teacher, labels=labels)
        for f, b in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5))
    ]
    torch.testing.assert_close(part[2], 2 * part[0] + 0.5 * part[1])
    assert part[0] > 0
    assert part[1] > 0


@pytest.mark.parametrize('cls', LOSSES)
def test_rows_with_negative_labels_are_left_out(cls) -> None:
    student, teacher = draw(4, 3)
    loss = cls(mode='softmax')
    kept = loss(student[:3], teacher[:3], labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(loss(student, teacher, labels=torch.tensor([0, 1, 2, -1])), kept)


def test_one_class_works_in_both_modes() -> None:
    student, teacher = draw(3, 1)
    labels = torch.tensor([0, 1, 0])
    values = binary_kl_divergence(student, teacher)[[0, 2], 0]
    torch.testing.assert_close(DecoupledLogitLoss(mode='sigmoid')(student, teacher, labels=labels), values.mean())
    student, teacher = draw(3, 2)
    tckd, _ = decoupled_kl_divergence(student, teacher, labels)
    torch.testing.assert_close(DecoupledLogitLoss(mode='softmax')(student, teacher, labels=labels), tckd.mean())


@pytest.mark.parametrize('cls', LOSSES)
def test_maps_of_a_dense_head_are_read_as_rows(cls) -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(2, 6, h, w, generator=g) for h, w in ((3, 5), (1, 2))] for _ in range(2))
    labels = torch.randint(-1, 4, (2 * (15 + 2) * 2,), generator=g)
    loss = cls(mode='sigmoid', background_weight=0.3)
    rows = loss(flatten_levels(student, 3), flatten_levels(teacher, 3), labels=labels)
    torch.testing.assert_close(loss(student, teacher, labels=labels), rows)


@pytest.mark.parametrize('beta', [0.25, 8.0])
def test_equals_mmrazor_with_its_right_reduction(beta: float, mmrazor_losses: ModuleType) -> None:
    """MMRazor's 'mean' is the sum over 8 rows: a defect of its DKDLoss that is not inherited."""
    student, teacher = draw(8, 21, dtype=torch.float32)
    labels = torch.randint(0, 21, (8,), generator=torch.Generator().manual_seed(0))
    ours = DecoupledLogitLoss(mode='softmax', non_target_weight=beta, tau=4.0)(student, teacher, labels=labels)
    with pytest.warns(UserWarning, match='size_average'):
        right = mmrazor_losses.DKDLoss(tau=4.0, beta=beta, reduction='batchmean')(student, teacher, labels)
        defect = mmrazor_losses.DKDLoss(tau=4.0, beta=beta, reduction='mean')(student, teacher, labels)
    torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(8 * ours, defect, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_soft_targets_equal_mmrazor(tau: float, mmrazor_losses: ModuleType) -> None:
    student, teacher = draw(8, 21, dtype=torch.float32)
    theirs = mmrazor_losses.KLDivergence(tau=tau)(student, teacher)
    torch.testing.assert_close(SoftTargetLoss(mode='softmax', tau=tau)(student, teacher), theirs)


def test_soft_targets_of_sigmoid_heads_sum_over_classes() -> None:
    student, teacher = draw(5, 3)
    expected = binary_kl_divergence(student, teacher, tau=4.0).sum() / 5
    torch.testing.assert_close(SoftTargetLoss(mode='sigmoid')(student, teacher), expected)


@pytest.mark.parametrize('cls', LOSSES)
@pytest.mark.parametrize('mode', ['softmax', 'sigmoid'])
def test_is_zero_for_equal_logits(cls, mode: str) -> None:
    student, _ = draw(5, 3)
    assert abs(cls(mode=mode)(student, student.clone(), labels=torch.tensor([0, 1, 2, 0, 1])).item()) < 1e-12


@pytest.mark.parametrize('cls', LOSSES)
@pytest.mark.parametrize('rows', [0, 3])
def test_no_foreground_gives_zero_that_keeps_the_graph(cls, rows: int) -> None:
    student = torch.randn(rows, 4, requires_grad=True)
    loss = cls(mode='sigmoid')(student, torch.randn(rows, 4), labels=torch.full((rows,), 4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (rows, 4)


@pytest.mark.parametrize('cls', LOSSES)
def test_saturated_logits_give_finite_gradients(cls) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    cls(mode='softmax')(student, -student.detach(), labels=torch.tensor([0])).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('cls', LOSSES)
def test_no_gradient_reaches_the_teacher(cls) -> None:
    student, teacher = (x.requires_grad_() for x in draw(4, 3))
    cls(mode='softmax')(student, teacher, labels=torch.tensor([0, 1, 2, 2])).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize('cls', LOSSES)
@pytest.mark.parametrize('mode', ['softmax', 'sigmoid'])
def test_gradients_are_right(cls, mode: str) -> None:
    student, teacher = draw(5, 3)
    labels = torch.tensor([0, 1, 2, 2, -1])
    loss = cls(mode=mode, background_weight=0.5)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels=labels), student.requires_grad_())


@pytest.mark.parametrize('cls', LOSSES)
def test_autocast_and_half_logits_are_computed_in_float32(cls) -> None:
    student, teacher = draw(6, 4, dtype=torch.float32)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = cls(mode='softmax')
    reference = loss(student, teacher, labels=labels)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher, labels=labels), reference)
    assert loss(student.half(), teacher.half(), labels=labels).dtype == torch.float32


@pytest.mark.parametrize('cls', LOSSES)
@pytest.mark.parametrize('labels', [[0, 3, 3, 3, 1, 2, 0, 3], [0, 3, 3, 3, 3, 3, 3, 3]])
def test_two_processes_equal_the_whole_batch(cls, labels: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1 and 3 positives, and with 1 and 0, whose mean is below 1; to take 1 for it would halve the loss."""
    student, teacher = draw(8, 3)
    labels = torch.tensor(labels)
    loss = cls(mode='sigmoid')
    whole = loss(student, teacher, labels=labels)
    mean = (labels < 3).sum() / 2
    monkeypatch.setattr(logit_loss, 'mean_over_ranks', lambda count: mean.to(count.dtype))
    monkeypatch.setattr(logit_loss, 'get_world_size', lambda: 2)
    parts = [loss(student[part], teacher[part], labels=labels[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(parts) / 2, whole)


REFUSED = [
    (dict(mask=torch.ones(1, 1, 1, 1), labels=torch.zeros(2, dtype=torch.long)), 'cannot use mask'),
    (dict(labels=torch.zeros(3, dtype=torch.long)), r'labels must be \(2,\)'),
    (dict(labels=torch.tensor([0, 4])), r'at most 3 \(background\), got 4'),
]


@pytest.mark.parametrize('cls', LOSSES)
@pytest.mark.parametrize(('arguments', 'message'), REFUSED)
def test_refuses_arguments_that_do_not_fit(cls, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(mode='sigmoid')(torch.zeros(2, 3), torch.zeros(2, 3), **arguments)


@pytest.mark.parametrize('cls', LOSSES)
def test_refuses_predictions_that_do_not_fit(cls) -> None:
    loss, labels = cls(mode='sigmoid'), torch.zeros(2, dtype=torch.long)
    maps = [torch.zeros(1, 6, 2, 3)]
    with pytest.raises(ValueError, match='same shape'):
        loss(torch.zeros(2, 3), torch.zeros(2, 4), labels=labels)
    with pytest.raises(ValueError, match='one map a level'):
        loss(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), labels=labels)
    with pytest.raises(ValueError, match='1 and 2 levels'):
        loss(maps, maps * 2, labels=labels)
    with pytest.raises(ValueError, match='5 labels do not divide'):
        loss(maps, maps, labels=torch.zeros(5, dtype=torch.long))
    with pytest.raises(TypeError, match='must be one tensor'):
        loss(torch.zeros(2, 3), maps, labels=labels)
    with pytest.raises(ValueError, match='needs labels='):
        loss(maps, maps)


def test_decoupled_loss_needs_labels() -> None:
    with pytest.raises(ValueError, match='the target class of every row'):
        DecoupledLogitLoss(mode='softmax')(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    'weights', [dict(foreground_weight=2.0), dict(background_weight=0.5), dict(background_weight=0.0)]
)
def test_weights_of_foreground_and_background_need_labels(weights: dict) -> None:
    rows = draw(2, 3)
    for mode in ('softmax', 'sigmoid'):
        with pytest.raises(ValueError, match='need labels='):
            SoftTargetLoss(mode=mode, **weights)(*rows)
        assert SoftTargetLoss(mode=mode)(*rows) == SoftTargetLoss(mode=mode, background_weight=1.0)(*rows) > 0


@pytest.mark.parametrize(
    ('cls', 'arguments', 'message'),
    [
        (DecoupledLogitLoss, dict(mode='mean'), "mode must be 'softmax' or 'sigmoid', got 'mean'"),
        (DecoupledLogitLoss, dict(mode='softmax', target_weight=-1.0), 'Weights must be >= 0'),
        (SoftTargetLoss, dict(mode='softmax', foreground_weight=-1.0), 'Weights must be >= 0'),
        (SoftTargetLoss, dict(mode='softmax', tau=0.0), 'tau must be > 0'),
        (SoftTargetLoss, dict(mode='softmax', loss_weight=-1.0), 'loss_weight must be >= 0'),
    ],
)
def test_refuses_wrong_hyper_parameters(cls, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)

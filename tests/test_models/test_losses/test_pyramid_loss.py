"""`PyramidLoss`: one value a level, one place for the weight, equal numbers of levels."""

import pytest
import torch
from torch import Tensor, nn

from mmkd.models.losses.lp_loss import NormalizedLpLoss
from mmkd.models.losses.pyramid_loss import PyramidLoss

SIZES = [(8, 12), (4, 6), (1, 1)]


def pyramid(seed: int, channels: int = 2) -> tuple[Tensor, ...]:
    """Three levels, the last of one cell."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, channels, h, w, generator=generator) for h, w in SIZES)


def test_gives_the_inner_loss_of_every_level():
    inner = NormalizedLpLoss(p=2)
    expected = [inner(s, t) for s, t in zip(pyramid(0), pyramid(1), strict=True)]
    result = PyramidLoss(loss=dict(type='mmkd.NormalizedLpLoss', p=2))(pyramid(0), pyramid(1))
    assert result == expected
    assert all(value.dim() == 0 for value in result)


def test_level_weights_scale_their_levels():
    plain = PyramidLoss(loss=NormalizedLpLoss(p=1))(pyramid(0), pyramid(1))
    weighted = PyramidLoss(loss=NormalizedLpLoss(p=1), level_weights=(1.0, 0.5, 0.0))(pyramid(0), pyramid(1))
    torch.testing.assert_close(weighted, [plain[0], 0.5 * plain[1], 0 * plain[2]])


def test_every_level_stays_in_the_graph_at_weight_zero():
    student = [level.requires_grad_() for level in pyramid(0)]
    loss = PyramidLoss(loss=NormalizedLpLoss(p=2), level_weights=(1, 0, 1))
    sum(loss(student, pyramid(1))).backward()
    assert torch.equal(student[1].grad, torch.zeros_like(student[1]))
    assert student[0].grad.abs().sum() > 0


def test_masks_and_divisors_go_to_their_level():
    masks = tuple(torch.rand(2, 1, h, w, generator=torch.Generator().manual_seed(2)) for h, w in SIZES)
    divisors = (3.0, 5.0, 7.0)
    inner = NormalizedLpLoss(p=1)
    expected = [
        inner(s, t, mask=m, avg_factor=d) for s, t, m, d in zip(pyramid(0), pyramid(1), masks, divisors, strict=True)
    ]
    assert PyramidLoss(loss=inner)(pyramid(0), pyramid(1), mask=masks, avg_factor=divisors) == expected


def test_weight_is_the_inner_loss_weight():
    loss = PyramidLoss(loss=NormalizedLpLoss(p=2, loss_weight=4.0))
    assert loss.loss_weight == 4
    before = loss(pyramid(0), pyramid(1))
    loss.loss_weight = 0.0
    assert loss.loss.loss_weight == 0
    torch.testing.assert_close(loss(pyramid(0), pyramid(1)), [0 * value for value in before])


def test_takes_losses_of_other_libraries_that_know_only_two_tensors():
    loss = PyramidLoss(loss=nn.MSELoss())
    torch.testing.assert_close(loss(pyramid(0), pyramid(1))[0], nn.functional.mse_loss(pyramid(0)[0], pyramid(1)[0]))
    assert loss.loss_weight == 1
    with pytest.raises(AttributeError, match='MSELoss has no loss_weight'):
        loss.loss_weight = 2.0


def test_refuses_different_numbers_of_levels():
    loss = PyramidLoss(loss=NormalizedLpLoss(p=2))
    with pytest.raises(ValueError, match=r"same number of levels, got \{'preds_S': 2, 'preds_T': 3\}"):
        loss(pyramid(0)[:2], pyramid(1))
    with pytest.raises(ValueError, match="'mask': 1"):
        loss(pyramid(0), pyramid(1), mask=(torch.ones(2, 1, 8, 12),))
    with pytest.raises(ValueError, match="'level_weights': 2"):
        PyramidLoss(loss=NormalizedLpLoss(p=2), level_weights=(1, 1))(pyramid(0), pyramid(1))


def test_refuses_a_single_map_and_useless_weights():
    with pytest.raises(TypeError, match='preds_S must be a tuple with one entry a level, got Tensor'):
        PyramidLoss(loss=NormalizedLpLoss(p=2))(pyramid(0)[0], pyramid(1)[0])
    for weights in ((1.0, -1.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match='level_weights must be >= 0 and not all 0'):
            PyramidLoss(loss=NormalizedLpLoss(p=2), level_weights=weights)

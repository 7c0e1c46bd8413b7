"""Nothing in a distillation step waits for the device.

On a meta device every value is unknown, so that what must know one to go on (`item()`, `nonzero`, a boolean index, a
copy to the CPU) is an error there; on a GPU it would wait until the device has done all it was given.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import mmkd.models  # noqa: F401  (registers)
from mmkd.functional import divergence, normalisation
from mmkd.functional import gaussian_mask as functional_mask
from mmkd.models.connectors.feature_resampler import FeatureResampler
from mmkd.models.losses import logit_loss
from mmkd.models.masks import gaussian_mask
from mmkd.registry import MODELS

META = torch.device('meta')
SIZES = ((24, 32), (12, 16), (6, 8))
STRIDES = (8, 16, 32)


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no autocast for a meta device, not even a disabled one."""
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: nullcontext())


def _tensors(value: Tensor | dict | list) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in (value.values() if isinstance(value, dict) else value) for tensor in _tensors(part)]


def pyramid(channels: int = 8) -> tuple[Tensor, ...]:
    return tuple(torch.empty(2, channels, *size, device=META, requires_grad=True) for size in SIZES)


def built(**cfg: object) -> torch.nn.Module:
    with torch.device('cpu'):
        module = MODELS.build(cfg).to(META).train()
    for part in module.modules():
        if isinstance(part, FeatureResampler):  # read once, at the first step
            part.seed_and_draws = torch.tensor([1, 0])
    return module


def per_level(**loss: object) -> torch.nn.Module:
    return built(type='mmkd.PyramidLoss', loss=loss)


def sample(boxes: Tensor) -> SimpleNamespace:
    meta = dict(batch_input_shape=(192, 256), img_shape=(180, 250))
    return SimpleNamespace(metainfo=meta, img_shape=meta['img_shape'], gt_instances=SimpleNamespace(bboxes=boxes))


def masks() -> tuple[Tensor, ...]:
    return tuple(torch.empty(2, 1, *size, device=META) for size in SIZES)


def rows(**more: object) -> dict:
    logits = [torch.empty(50, 4, device=META, requires_grad=True) for _ in range(2)]
    return dict(preds_S=logits[0], preds_T=logits[1], **more)


def labels() -> Tensor:
    return torch.empty(50, dtype=torch.int64, device=META)


def relation_inputs() -> dict:
    return dict(preds_S=pyramid(), preds_T=pyramid())


def guided() -> dict:
    student = built(
        type='mmkd.PyramidConnector',
        connector=dict(type='mmkd.IntermediateGuidance', out_channels=16),
        in_channels=[8] * 3,
    )
    options = dict(type='mmkd.IntermediateGuidance', out_channels=8, reconstruct=True)
    teacher = built(type='mmkd.PyramidConnector', connector=options, in_channels=[16] * 3)
    return dict(preds_S=student(pyramid()), preds_T=teacher(pyramid(16)))


def explored() -> dict:
    student = built(
        type='mmkd.PyramidConnector', connector=dict(type='mmkd.ExplorationCoder', out_channels=16), in_channels=[8] * 3
    )
    teacher = built(
        type='mmkd.PyramidConnector',
        connector=dict(type='mmkd.FactorAutoEncoder', out_channels=8),
        in_channels=[16] * 3,
    )
    return dict(preds_S=student(pyramid()), preds_T=teacher(pyramid(16)))


def resampled(mode: str) -> dict:
    connector = dict(type='mmkd.FeatureResampler', mode=mode, in_channels=8, out_channels=16)
    student = [built(**connector)(level) for level in pyramid()]
    gate = built(type='mmkd.SpatialAttention', norm='image')
    return dict(preds_S=tuple(map(gate, student)), preds_T=pyramid(16))


def aligned() -> dict:
    channels = dict(in_channels=[8] * 3, out_channels=[16] * 3, in_strides=STRIDES, out_strides=STRIDES)
    return dict(preds_S=built(type='mmkd.FeatureAlignment', **channels)(pyramid(), pyramid(16)), preds_T=pyramid(16))


def scales() -> dict:
    pair = [
        built(type='mmkd.CrossScaleConnector', role=role, in_channels=[8] * 3, in_strides=STRIDES)(pyramid())
        for role in ('student', 'teacher')
    ]
    return dict(preds_S=pair[0], preds_T=pair[1], mask=masks()[: len(pair[0])])


MASKS = [dict(), dict(cells=(3, 8)), dict(clip=True), dict(shape='centernet'), dict(padding=-1)]
SSIM = dict(type='mmkd.SSIMLoss', data_range=1.0)
ALIGN = dict(type='mmkd.FeatureAlignmentLoss', relative=True)
CASES: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], dict]]] = {
    'ssim': (lambda: per_level(**SSIM), relation_inputs),
    'ssim plain': (lambda: per_level(**SSIM, fused=False), relation_inputs),
    'ssim of the batch': (lambda: per_level(**SSIM, normalize='batch'), relation_inputs),
    'l2': (lambda: per_level(type='mmkd.NormalizedLpLoss', p=2), relation_inputs),
    'mssd': (lambda: per_level(type='mmkd.MaskedFeatureLoss', gate=True), scales),
    'mssd background': (lambda: per_level(type='mmkd.MaskedFeatureLoss', background_weight=0.5), scales),
    'ikd mask': (lambda: per_level(**ALIGN), lambda: resampled('mask')),
    'ikd down_up': (lambda: per_level(**ALIGN), lambda: resampled('down_up')),
    'ikd align': (lambda: per_level(**ALIGN), aligned),
    'ikd softmax': (lambda: built(type='mmkd.DecoupledLogitLoss', mode='softmax'), lambda: rows(labels=labels())),
    'mkd relation': (lambda: built(type='mmkd.FSPLoss', relative=True), relation_inputs),
    'mkd attention': (lambda: per_level(type='mmkd.AttentionMapLoss'), relation_inputs),
    'mkd guide': (lambda: per_level(type='mmkd.GuidanceLoss'), guided),
    'mkd explore': (lambda: per_level(type='mmkd.ExplorationLoss'), explored),
    'mkd soft': (lambda: built(type='mmkd.SoftTargetLoss', mode='softmax'), lambda: rows(labels=labels())),
    'mkd soft, all rows': (lambda: built(type='mmkd.SoftTargetLoss', mode='softmax'), rows),
}


@pytest.mark.parametrize('name', CASES)
def test_loss_and_connectors_do_not_ask_for_a_value(name: str) -> None:
    make_loss, make_inputs = CASES[name]
    value = make_loss()(**make_inputs())
    parts = _tensors(value)
    torch.stack(parts).sum().backward()
    assert all(part.device == META for part in parts)


@pytest.mark.parametrize('options', MASKS)
def test_masks_do_not_ask_where_the_boxes_are(options: dict) -> None:
    one = sample(torch.empty(5, 4, device=META))
    found = built(type='mmkd.GaussianMask', **options)([one, one], pyramid())
    assert [tuple(mask.shape) for mask in found] == [(2, 1, *size) for size in SIZES]


@pytest.mark.parametrize('kind', ['DecoupledLogitLoss', 'SoftTargetLoss'])
def test_dense_heads_ask_once_how_many_rows_are_foreground(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of a dense head would be hundreds of times as many as those that count."""
    asked = []

    def nonzero(mask: Tensor) -> Tensor:
        asked.append(tuple(mask.shape))
        return torch.empty(7, 1, dtype=torch.int64, device=META)

    monkeypatch.setattr(Tensor, 'nonzero', nonzero)
    built(type=f'mmkd.{kind}', mode='sigmoid')(**rows(labels=labels())).backward()
    assert asked == [(50,)]


def test_the_question_is_noticed() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        pyramid()[0][pyramid()[0] > 0].sum()
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(pyramid()[0].sum())


# ---- the other way gives the same values ----------------------------------------------------------------------------


@pytest.fixture
def not_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    """Run something on the CPU as it would run on a GPU."""

    def run(work: Callable[[], Tensor]) -> Tensor:
        with monkeypatch.context() as patch:
            for module in (gaussian_mask, functional_mask, logit_loss, divergence, normalisation):
                patch.setattr(module, 'read_is_free', lambda value: False)
            return work()

    return run


@pytest.mark.parametrize('options', MASKS)
def test_masks_are_the_same_without_dropping_boxes(options: dict, not_free: Callable) -> None:
    nan, inf = float('nan'), float('inf')
    boxes = [[10, 10, 60, 50], [40, 40, 45, 47], [0, 0, 250, 180], [30, 30, 30, 80], [-9, -9, -1, -1], [300, 5, 400, 9]]
    boxes += [[nan, 0, 9, 9], [0, 0, inf, 9], [70, 20, 60, 30]]
    samples = [sample(torch.tensor(boxes)), sample(torch.zeros(0, 4)), sample(torch.tensor(boxes[3:]))]
    maps = [torch.empty(3, 1, *size) for size in SIZES]
    mask = MODELS.build(dict(type='mmkd.GaussianMask', **options))
    for here, there in zip(mask(samples, maps), not_free(lambda: mask(samples, maps)), strict=True):
        assert torch.equal(here, there) and here.isfinite().all()


@pytest.mark.parametrize('mode', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('kind', ['DecoupledLogitLoss', 'SoftTargetLoss'])
@pytest.mark.parametrize('background', [0.0, 0.5])
def test_logit_losses_are_the_same_without_dropping_rows(
    kind: str, mode: str, background: float, not_free: Callable
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 4, generator=generator) for _ in range(2))
    target = torch.randint(-1, 4, (40,), generator=generator)
    loss = MODELS.build(dict(type=f'mmkd.{kind}', mode=mode, background_weight=background))

    def gradient() -> Tensor:
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, labels=target)
        value.backward()
        return torch.cat([value.detach()[None], leaf.grad.flatten()])

    torch.testing.assert_close(not_free(gradient), gradient(), rtol=1e-6, atol=1e-8)


def test_the_resampler_reads_its_place_again_only_where_it_was_changed() -> None:
    module = MODELS.build(dict(type='mmkd.FeatureResampler', in_channels=4, out_channels=4, seed=3)).train()
    fresh = MODELS.build(dict(type='mmkd.FeatureResampler', in_channels=4, out_channels=4, seed=3)).train()
    first, second = module._draw(5), module._draw(5)
    module.seed_and_draws.data[1] = 77  # behind the back of the version: not looked at
    third = module._draw(5)
    assert not torch.equal(first, second)
    assert [fresh._draw(5).tolist() for _ in range(3)] == [value.tolist() for value in (first, second, third)]
    module.load_state_dict(module.state_dict() | dict(seed_and_draws=torch.tensor([3, 1])))
    assert torch.equal(module._draw(5), second)
    module.to(torch.float64).seed_and_draws = torch.tensor([3, 0])
    assert torch.equal(copy.deepcopy(module)._draw(5), first) and torch.equal(module._draw(5), first)

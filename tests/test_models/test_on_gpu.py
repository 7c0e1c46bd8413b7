"""On a GPU the values are those of the CPU: every loss, connector and mask, and whole distillation steps.

The losses and connectors are those of `test_no_wait.py`, with values for what is empty there. What runs without a GPU
shows that the tolerances are those of rounding.
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import mmcv.ops
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmkd.registry import MODELS
from mmkd.testing.methods import config_root, distilled_model, needs_teacher
from mmkd.testing.toy_detectors import toy_detector

from . import test_no_wait

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
needs_operators = pytest.mark.skipif(
    mmcv.ops.get_compiling_cuda_version() == 'not available', reason="needs MMCV's operators for a GPU"
)


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN convolves in TF32 by default, which has the mantissa of float16."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


# ---- losses, connectors and masks -----------------------------------------------------------------------------------


def more_connectors() -> dict:
    """What no case of `test_no_wait.py` has."""
    student = [
        test_no_wait.built(
            type='mmkd.PyramidConnector',
            connector=dict(type='mmkd.ConvConnector'),
            in_channels=[8] * 3,
            out_channels=[16] * 3,
        ),
        test_no_wait.built(
            type='mmkd.PyramidConnector', connector=dict(type='mmkd.SpatialAttention'), in_channels=[16] * 3
        ),
    ]
    return dict(preds_S=student[1](student[0](test_no_wait.pyramid())), preds_T=test_no_wait.pyramid(16))


def segments() -> dict:
    connector = test_no_wait.built(
        type='mmkd.FeatureAlignment', mode='segments', in_channels=[8] * 3, out_channels=[16] * 3
    )
    return dict(preds_S=connector(test_no_wait.pyramid()), preds_T=test_no_wait.pyramid(16))


def loss(**options: object) -> Callable[[], nn.Module]:
    return lambda: test_no_wait.per_level(**options)


def masked() -> dict:
    return dict(test_no_wait.relation_inputs(), mask=test_no_wait.masks())


def labelled() -> dict:
    return test_no_wait.rows(labels=test_no_wait.labels())


CASES = test_no_wait.CASES | {
    'ssim mask': (loss(**test_no_wait.SSIM), masked),
    'l1 mask': (loss(type='mmkd.NormalizedLpLoss', p=1), masked),
    'l2 adapted': (loss(type='mmkd.NormalizedLpLoss', p=2), more_connectors),
    'ikd segments': (loss(**test_no_wait.ALIGN), segments),
    'ikd sigmoid': (lambda: test_no_wait.built(type='mmkd.DecoupledLogitLoss', mode='sigmoid'), labelled),
    'mkd soft sigmoid': (lambda: test_no_wait.built(type='mmkd.SoftTargetLoss', mode='sigmoid'), labelled),
}


class Filled:
    """`torch` as `test_no_wait.py` sees it: what is empty there has values, the same ones on every device."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.kind = dict(device=device, dtype=dtype)
        self.generator = torch.Generator().manual_seed(0)
        self.leaves: list[Tensor] = []

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def empty(self, *size: int, dtype: torch.dtype | None = None, requires_grad: bool = False, **_: object) -> Tensor:
        """Features and logits; numbers in [0, 1) for masks; classes, of which the last is background."""
        if dtype == torch.int64:
            return torch.randint(-1, 4, size, generator=self.generator).to(self.kind['device'])
        draw = torch.randn if requires_grad else torch.rand
        value = draw(size, generator=self.generator, dtype=torch.float64).to(**self.kind)
        if requires_grad:
            self.leaves.append(value.requires_grad_())
        return value


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """Values of a case on a device, and the gradients of features and weights."""

    def run(name: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
        filled, modules, build = Filled(device, dtype), [], test_no_wait.built

        def built(**cfg: object) -> nn.Module:
            torch.manual_seed(len(modules))
            modules.append(build(**cfg).to(dtype))
            return modules[-1]

        make_loss, make_inputs = CASES[name]
        with monkeypatch.context() as patch:
            patch.setattr(test_no_wait, 'META', torch.device(device))
            patch.setattr(test_no_wait, 'torch', filled)
            patch.setattr(test_no_wait, 'built', built)
            parts = test_no_wait._tensors(make_loss()(**make_inputs()))
        values = torch.stack(parts)
        assert values.device.type == device and values.dtype == dtype
        values.sum().backward()
        weights = [weight for module in modules for weight in module.parameters()]
        found = {f'{i} {tuple(leaf.shape)}': leaf.grad for i, leaf in enumerate([*filled.leaves, *weights])}
        return values.detach().cpu().double(), {k: v.cpu().double() for k, v in found.items() if v is not None}

    return run


def check(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Values are equal, and gradients as a whole: rounding decides on which side of 0 a few activations are."""
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6)
    assert one[1].keys() == other[1].keys() and one[1]
    largest = max(gradient.norm() for gradient in other[1].values())
    assert largest > 0
    for name, expected in other[1].items():
        # the gradient of a bias in front of a normalisation is 0 but for rounding
        assert (one[1][name] - expected).norm() <= 5e-3 * max(expected.norm(), 1e-3 * largest), name


@gpu
@needs_gpu
@pytest.mark.parametrize('name', CASES)
def test_loss_and_connectors_on_a_gpu_equal_those_on_the_cpu(name: str, result: Callable) -> None:
    check(result(name, 'cuda'), result(name, 'cpu'))


@pytest.mark.parametrize('name', CASES)
def test_loss_and_connectors_in_float32_equal_those_in_float64(name: str, result: Callable) -> None:
    check(result(name, 'cpu'), result(name, 'cpu', torch.float64))


def test_every_loss_and_connector_is_compared(result: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, build = set(), MODELS.build

    def noted(cfg: dict, *args: object, **kwargs: object) -> nn.Module:
        module = build(cfg, *args, **kwargs)
        seen.update(type(part).__name__ for part in module.modules())
        return module

    monkeypatch.setattr(MODELS, 'build', noted)
    for name in CASES:
        result(name, 'cpu')
    kinds = ('mmkd.models.losses.', 'mmkd.models.connectors.')
    assert {name for name, cls in MODELS.module_dict.items() if cls.__module__.startswith(kinds)} <= seen


def masks(device: str, options: dict) -> list[Tensor]:
    boxes = torch.tensor([[10.0, 10, 60, 50], [40, 40, 45, 47], [0, 0, 250, 180], [-9, -9, -1, -1], [70, 20, 60, 30]])
    samples = [test_no_wait.sample(value.to(device)) for value in (boxes, boxes[:0], boxes[2:])]
    maps = [torch.empty(3, 1, *size, device=device) for size in test_no_wait.SIZES]
    return [mask.cpu() for mask in MODELS.build(dict(type='mmkd.GaussianMask', **options))(samples, maps)]


@gpu
@needs_gpu
@pytest.mark.parametrize('options', test_no_wait.MASKS)
def test_masks_on_a_gpu_equal_those_on_the_cpu(options: dict) -> None:
    for there, here in zip(masks('cuda', options), masks('cpu', options), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-6)


# ---- whole steps of a two-stage detector ----------------------------------------------------------------------------

METHODS = ('ikd_roi', 'mkd_roi', 'mssd', 'frskd_roi')


def build(method: str) -> nn.Module:
    """Faster R-CNN under distillation, every loss at its full weight and all proposals sampled.

    Which proposals are the best, and are sampled, would depend on rounding.
    """
    student = toy_detector('faster-rcnn', width=8, channels=16, convs=1)
    student.backbone.norm_eval = True
    student.train_cfg.rpn_proposal.update(nms_pre=10**6, max_per_img=10**6, nms=dict(type='nms', iou_threshold=1.0))
    for part in (student.train_cfg.rpn, student.train_cfg.rcnn):
        part.sampler.num = 10**6
    torch.manual_seed(77)
    teacher = ROOT_MODELS.build(toy_detector('faster-rcnn', width=8, channels=16, convs=1))
    teacher.init_weights()
    torch.manual_seed(0)
    if needs_teacher(method):
        distiller = Config.fromfile(str(config_root() / '_base_' / 'methods' / f'{method}.py')).distiller
        cfg = dict(type='mmkd.TeacherStudentDistill', architecture=student, teacher=teacher, distiller=distiller)
    else:
        cfg = distilled_model(student, method)
    cfg['distiller'].pop('schedules', None)
    model = ROOT_MODELS.build(cfg)
    model.init_weights()
    with torch.no_grad():
        for network in (teacher, model):
            for value in network.parameters():
                if not value.any():  # what starts at 0 hides the layers before it
                    nn.init.normal_(value, std=0.1)
            nn.init.normal_(network.roi_head.bbox_head.fc_cls.weight, std=0.5)  # else all boxes are nearly the same
    return model.train()


def train_step(method: str, device: str, half: bool = False) -> SimpleNamespace:
    """Losses, gradients and names of changed weights of one step of an optimiser, which must take place."""
    model = build(method).to(device)
    data = demo_mm_inputs(2, [(3, 64, 96)] * 2, num_items=[3, 2], num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before, grads = {name: value.detach().clone() for name, value in model.named_parameters()}, {}

    def note(*_: object) -> None:
        grads.update({n: p.grad.cpu().double() for n, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(note)
    wrapper = AmpOptimWrapper if half else OptimWrapper
    scale = dict(loss_scale=128.0, dtype='float16') if half else {}
    torch.manual_seed(3)
    logged = model.train_step(copy.deepcopy(data), wrapper(optimizer=optimizer, **scale))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    losses = {name: value.item() for name, value in logged.items() if 'loss' in name}
    return SimpleNamespace(losses=losses, grads=grads, changed=changed)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of two gradients as a whole, relative to the second."""
    square = sum((found[name] - gradient).square().sum() for name, gradient in expected.items())
    return float((square / sum(gradient.square().sum() for gradient in expected.values())).sqrt())


def check_steps(found: SimpleNamespace, expected: SimpleNamespace, *, loss: float, gradient: float) -> None:
    """Same losses and gradient, up to a share; the optimiser has used it."""
    assert any(name.startswith('distill.') for name in found.losses)
    assert found.losses == pytest.approx(expected.losses, rel=loss, abs=loss)
    assert found.grads.keys() == expected.grads.keys() and found.changed
    assert all(value.isfinite().all() for value in found.grads.values())
    least = 1e-4 * max(value.norm() for value in expected.grads.values())  # below, rounding alone
    assert all(found.grads[name].any() for name, value in expected.grads.items() if value.norm() > least)
    assert distance(found.grads, expected.grads) <= gradient


@gpu
@needs_gpu
@needs_operators
@pytest.mark.parametrize('method', METHODS)
def test_a_step_on_a_gpu_equals_one_on_the_cpu(method: str) -> None:
    check_steps(train_step(method, 'cuda'), train_step(method, 'cpu'), loss=1e-3, gradient=0.01)


@gpu
@needs_gpu
@needs_operators
@pytest.mark.parametrize('method', METHODS)
def test_a_step_in_half_precision_is_nearly_one_in_full(method: str) -> None:
    check_steps(train_step(method, 'cuda', half=True), train_step(method, 'cpu'), loss=0.02, gradient=0.05)


def test_a_step_with_other_convolutions_equals_one_with_the_usual() -> None:
    """What a GPU's rounding may change, on the CPU: the same numbers without oneDNN."""
    usual = train_step('ikd_roi', 'cpu')
    with torch.backends.mkldnn.flags(enabled=False):
        check_steps(train_step('ikd_roi', 'cpu'), usual, loss=1e-4, gradient=1e-3)

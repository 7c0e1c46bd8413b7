"""A teacher with options computes what the plain one computes, is checked before, and stays what it is."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from mmkd.engine.launch import load_config
from mmkd.models.algorithms import teacher as teacher_module
from mmkd.models.algorithms.cheap_teacher import compile_parts, fold_batch_norms, relative_difference
from mmkd.models.algorithms.model_config import load_model_source
from mmkd.models.algorithms.teacher_options import TeacherOptionError, TeacherOptions, split_teacher
from mmkd.testing.shrink import shrink

from .conftest import batch, build_algorithm, build_teacher, head_distiller, losses_of, neck_distiller

ROOT = Path(__file__).resolve().parents[3]
EAGER = dict(backend='eager')
OPTIONS: dict[str, dict[str, Any]] = {
    'fp32': dict(precision='fp32'),
    'bf16': dict(precision='bf16'),
    'channels_last': dict(channels_last=True),
    'fold_bn': dict(fold_bn=True),
    'compile': dict(compile=EAGER),
    'all': dict(precision='bf16', channels_last=True, fold_bn=True),
}


@pytest.fixture(autouse=True)
def fresh_progress() -> None:
    MessageHub.get_instance('options').update_info('iter', 0)


def trained_teacher(family: str = 'retinanet', **changes: int) -> nn.Module:
    """A teacher whose BatchNorm does something."""
    model = build_teacher(family, **changes)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(shape, generator=generator) * 0.2)
    return model


def distilled(options: dict | None, family: str = 'retinanet', distiller: dict | None = None) -> tuple[Any, dict]:
    """An algorithm whose teacher has options, and its losses on a batch."""
    teacher = trained_teacher(family)
    given = teacher if options is None else dict(config=teacher, **options)
    model = build_algorithm(family, copy.deepcopy(distiller) or neck_distiller(), given)
    model.init_weights()
    model.train()
    torch.manual_seed(5)
    return model, losses_of(model, batch())


def values(losses: dict) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items() if name.startswith('distill.')}


@cache
def of_plain_teacher() -> dict[str, float]:
    return values(distilled(None)[1])


@pytest.mark.parametrize('name', OPTIONS)
def test_losses_are_those_of_the_plain_teacher(name: str):
    model, losses = distilled(OPTIONS[name])
    tolerance = 0.02 if OPTIONS[name].get('precision') == 'bf16' else 1e-5
    assert values(losses) == pytest.approx(of_plain_teacher(), rel=tolerance, abs=tolerance)
    assert all(value.dtype == torch.float32 for name, value in losses.items() if name.startswith('distill.'))
    sum(value for name, value in losses.items() if name.startswith('distill.')).backward()
    assert model.backbone.conv1.weight.grad.abs().sum() > 0


def test_bf16_differs_from_float32():
    """Or else the test above would say nothing."""
    assert values(distilled(OPTIONS['bf16'])[1]) != pytest.approx(of_plain_teacher(), rel=1e-6)


def test_records_of_dense_heads_arrive_in_float32_and_usual_layout():
    distiller = head_distiller('bbox_head', dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.AttentionMapLoss')))
    seen = []
    model, _ = distilled(dict(precision='bf16', channels_last=True), 'gfl', distiller)
    loss = model.distiller.distill_losses['loss_kd']
    loss.register_forward_pre_hook(lambda m, args, kwargs: seen.extend(kwargs['preds_T']), with_kwargs=True)
    losses_of(model, batch())
    assert len(seen) == 5
    assert all(level.dtype == torch.float32 and level.is_contiguous() for level in seen)


def test_the_roi_head_stays_in_float32_and_sees_the_students_proposals():
    distiller = head_distiller('roi_head.bbox_head', dict(type='mmrazor.KLDivergence'))
    plain = values(distilled(None, 'faster-rcnn', distiller)[1])
    model, losses = distilled(OPTIONS['all'], 'faster-rcnn', distiller)
    assert values(losses) == pytest.approx(plain, rel=0.05)
    kinds = {p.dtype for p in model.teacher.roi_head.parameters()}
    assert kinds == {torch.float32}
    assert model.teacher.backbone.conv1.weight.dtype == torch.bfloat16


def test_the_roi_head_stays_in_float32_where_a_whole_forward_runs_it():
    loss = dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.NormalizedLpLoss', p=2))
    model, losses = distilled(OPTIONS['bf16'], 'faster-rcnn', head_distiller('rpn_head', loss))
    assert all(torch.isfinite(value) for value in losses.values() if isinstance(value, torch.Tensor))
    assert {p.dtype for p in model.teacher.roi_head.parameters()} == {torch.float32}
    assert model.teacher.rpn_head.rpn_conv.weight.dtype == torch.bfloat16


@pytest.mark.parametrize('family', ['retinanet', 'faster-rcnn'])
def test_bf16_halves_the_weights_and_keeps_the_norms(family: str):
    """Also those of a RoI head, which features do not need."""
    model, _ = distilled(dict(precision='bf16'), family)
    size = sum(p.numel() * p.element_size() for p in model.teacher.parameters())
    full = sum(p.numel() * 4 for p in model.teacher.parameters())
    assert size < 0.55 * full
    assert model.teacher.backbone.bn1.weight.dtype == torch.float32


def test_the_teacher_is_plain_until_the_first_step_and_unchanged_after_it():
    """Checks, and students that inherit, read the float32 weights that were loaded."""
    teacher = trained_teacher()
    before = copy.deepcopy(teacher.state_dict())
    given = dict(config=teacher, **OPTIONS['all'])
    model = build_algorithm('retinanet', neck_distiller(), given, inherit=('neck',))
    model.init_weights()
    assert all(torch.equal(before[name], value) for name, value in model.teacher.state_dict().items())
    assert torch.equal(model.neck.fpn_convs[0].conv.weight, before['neck.fpn_convs.0.conv.weight'])
    losses_of(model, batch())
    settled = copy.deepcopy(model.teacher.state_dict())
    assert settled['neck.fpn_convs.0.conv.weight'].dtype == torch.bfloat16
    losses_of(model, batch(size=(96, 160)))
    assert all(torch.equal(settled[name], value) for name, value in model.teacher.state_dict().items())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert copy.deepcopy(model).teacher is model.teacher


def test_what_the_options_change_is_measured_and_logged(monkeypatch: pytest.MonkeyPatch):
    said = []
    monkeypatch.setattr(teacher_module, 'print_log', lambda text, **kwargs: said.append(text))
    model, _ = distilled(dict(precision='bf16', fold_bn=True))
    assert len(said) == 1
    assert 'Teacher with bf16, fold_bn: its features differ by' in said[0]
    percent = float(said[0].split(' by ')[1].split(' %')[0])
    assert 0.01 < percent < 5
    losses_of(model, batch())
    assert len(said) == 1


def test_a_teacher_that_is_not_needed_is_not_settled():
    distiller = neck_distiller(schedules=dict(loss_feat=dict(begin=2, by_epoch=False)))
    model, _ = distilled(dict(channels_last=True), distiller=distiller)
    assert not model._teacher.settled


# ---- folding --------------------------------------------------------------------------------------------------------


def test_folding_takes_every_norm_of_a_resnet_and_changes_nothing():
    model = trained_teacher().eval()
    inputs = torch.randn(1, 3, 64, 96)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with torch.no_grad():
        before = model.extract_feat(inputs)
        assert fold_batch_norms(model, lambda: model.extract_feat(inputs)) == norms > 10
        after = model.extract_feat(inputs)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert relative_difference(list(before), list(after)) < 1e-5


class Shared(nn.Module):
    """A convolution with two readers, one that runs twice into two norms, and a norm before a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm, self.a, self.b, self.before = (nn.BatchNorm2d(3) for _ in range(4))
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = self.norm(y) + self.act(y)
        y = self.a(self.twice(y)) + self.b(self.twice(y))
        return self.last(self.before(y))


def test_folding_leaves_what_has_several_readers():
    torch.manual_seed(0)
    model = Shared().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 5, 7)
    with torch.no_grad():
        before = model(x)
        assert fold_batch_norms(model, lambda: model(x)) == 0
        assert torch.equal(model(x), before)


def test_folding_leaves_recorded_layers():
    distiller = neck_distiller()
    for side in ('student_recorders', 'teacher_recorders'):
        distiller[side] = dict(neck=dict(type='ModuleOutputs', source='backbone.layer2.0.conv1'))
    distiller['distill_losses'] = dict(loss_feat=dict(type='mmkd.SSIMLoss', data_range=1.0))
    plain = values(distilled(None, distiller=distiller)[1])
    model, losses = distilled(dict(fold_bn=True), distiller=distiller)
    assert values(losses) == pytest.approx(plain, rel=1e-5)
    assert isinstance(model.teacher.backbone.layer2[0].bn1, nn.BatchNorm2d)
    assert isinstance(model.teacher.backbone.layer1[0].bn1, nn.Identity)


# ---- compiling ------------------------------------------------------------------------------------------------------


def test_compiles_the_largest_parts_without_a_listener_inside():
    model = build_teacher('retinanet').eval()
    model.backbone.layer2[0].register_forward_hook(lambda *args: None)
    names = compile_parts(model, EAGER)
    assert 'neck' in names and 'bbox_head' in names
    assert 'backbone.layer1' in names and 'backbone.layer2.1' in names
    assert 'backbone' not in names and 'backbone.layer2' not in names
    assert 'backbone.layer2.0' in names  # its own hook runs outside


def test_a_layer_recorded_inside_the_backbone_is_still_recorded_when_compiled():
    distiller = neck_distiller()
    for side in ('student_recorders', 'teacher_recorders'):
        distiller[side] = dict(neck=dict(type='ModuleOutputs', source='backbone.layer2'))
    distiller['distill_losses'] = dict(loss_feat=dict(type='mmkd.SSIMLoss', data_range=1.0))
    plain = values(distilled(None, distiller=distiller)[1])
    model, losses = distilled(dict(compile=EAGER), distiller=distiller)
    assert values(losses) == pytest.approx(plain, rel=1e-5)
    calls = []
    model.teacher.backbone.layer3.register_forward_hook(lambda *args: calls.append(1))
    losses_of(model, batch())
    assert not calls


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'error', 'says'),
    [
        (dict(precision='int8'), ValueError, "teacher.precision must be one of .*'bf16'.*got 'int8'"),
        (dict(precison='bf16'), ValueError, "unknown option 'precison'; nearest: precision"),
        (dict(channels_last='yes'), TypeError, "teacher.channels_last must be True or False, got 'yes'"),
        (dict(compile='reduce-overhead'), TypeError, 'teacher.compile must be'),
    ],
)
def test_refuses_options_that_are_none(options: dict, error: type, says: str):
    with pytest.raises(error, match=says):
        split_teacher(dict(config='x.py', **options))


def test_refuses_fp16_on_a_cpu():
    with pytest.raises(TeacherOptionError, match="'fp16' is for GPUs.*'bf16'"):
        distilled(dict(precision='fp16'))


def test_a_compiler_that_is_not_there_is_named():
    with pytest.raises(TeacherOptionError, match='does not run with the options compile on cpu.*no_such_backend'):
        distilled(dict(compile=dict(backend='no_such_backend')))


def loud_teacher(factor: float, **options: object) -> Any:
    """An algorithm whose teacher's finest feature is larger by a factor."""
    teacher = trained_teacher()
    teacher.neck.fpn_convs[0].conv.weight.data.mul_(factor)
    model = build_algorithm('retinanet', neck_distiller(), dict(config=teacher, **options))
    model.init_weights()
    return model


def test_features_that_overflow_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TeacherOptions, 'check_device', lambda self, device: None)
    with pytest.raises(TeacherOptionError, match='overflow with fp16, fold_bn. Leave them out.'):
        losses_of(loud_teacher(1e6, precision='fp16', fold_bn=True), batch())


def test_features_that_overflow_in_a_step_of_mixed_precision_are_refused():
    """With and without options they would be infinite there, and infinity differs from infinity by nothing."""
    with (
        torch.autocast('cpu', torch.float16),
        pytest.raises(TeacherOptionError, match="channels_last in a step of mixed precision. Give it precision='fp32'"),
    ):
        losses_of(loud_teacher(1e6, channels_last=True), batch())
    losses_of(loud_teacher(1e6, channels_last=True), batch())
    with torch.autocast('cpu', torch.float16):
        losses_of(loud_teacher(1e6, channels_last=True, precision='fp32'), batch())


def test_features_that_overflow_without_options_are_told_apart():
    model = loud_teacher(1.0, channels_last=True)
    model._teacher.model.neck.fpn_convs[0].conv.weight.data.fill_(float('inf'))
    with pytest.raises(TeacherOptionError, match=r'NaN or infinite .* in plain float32.*\(channels_last\) are not'):
        losses_of(model, batch())


@pytest.mark.parametrize(('difference', 'refused'), [(0.15, False), (0.22, True)])
def test_mixed_precision_may_round_as_much_as_a_precision(
    difference: float, refused: bool, monkeypatch: pytest.MonkeyPatch
):
    """The plain features are those of float32, so that the step's own rounding is in the difference."""
    monkeypatch.setattr(teacher_module, 'relative_difference', lambda before, after: difference)
    model = loud_teacher(1.0, channels_last=True)
    with torch.autocast('cpu', torch.bfloat16):
        if refused:
            with pytest.raises(TeacherOptionError, match='channels_last in a step of mixed precision: rounding'):
                losses_of(model, batch())
        else:
            losses_of(model, batch())


def test_what_is_not_finite_is_never_no_difference():
    good, nan, inf = (torch.tensor([[1.0, value]]) for value in (2.0, float('nan'), float('inf')))
    for bad in (nan, inf):
        assert relative_difference([good, good], [good, bad]) == float('inf')
        with pytest.raises(FloatingPointError, match='before must be finite'):
            relative_difference([good, bad], [good, bad])
    assert relative_difference([], []) == 0.0
    assert relative_difference([good * 1e30], [good * 2e30]) == pytest.approx(1.0)  # whose squares are infinite
    assert relative_difference([good, good], [good, 1.5 * good]) == pytest.approx(0.5)


def test_no_options_change_nothing():
    assert not TeacherOptions()
    assert str(TeacherOptions()) == 'plain'
    assert split_teacher('mmdet::x.py') == ('mmdet::x.py', TeacherOptions())
    given = dict(type='RetinaNet')
    assert split_teacher(given)[0] is given


def test_a_teacher_with_options_is_found_by_its_config():
    name = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    assert load_model_source(dict(config=name, channels_last=True)) == load_model_source(name)


def test_options_are_given_on_the_command_line_to_a_teacher_named_plainly():
    path = str(ROOT / 'configs/ssim/ssim_retinanet_r101_retinanet_r50_fpn_1x_coco.py')
    plain = load_config(path)
    cfg = load_config(path, {'model.teacher.channels_last': True, 'model.teacher.precision': 'bf16'})
    config, options = split_teacher(cfg.model.teacher)
    assert config == plain.model.teacher
    assert options == TeacherOptions(precision='bf16', channels_last=True)
    assert cfg.model.get('teacher_ckpt') == plain.model.get('teacher_ckpt')


def test_small_copy_of_a_config_keeps_the_options(tmp_path: Path):
    path = str(ROOT / 'configs/ssim/ssim_retinanet_r50_retinanet_r18_fpn_1x_kitti.py')
    small = shrink(load_config(path, {'model.teacher.fold_bn': True}), tmp_path)
    config, options = split_teacher(small.model.teacher)
    assert options == TeacherOptions(fold_bn=True)
    assert config.type == 'RetinaNet'


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('family', ['retinanet', 'faster-rcnn'])
def test_half_precision_on_a_gpu_gives_nearly_the_same_losses(precision: str, family: str):
    found = []
    for options in (None, dict(precision=precision, channels_last=True, fold_bn=True)):
        teacher = trained_teacher(family)
        given = teacher if options is None else dict(config=teacher, **options)
        model = build_algorithm(family, neck_distiller(), given)
        model.init_weights()
        model.cuda().train()
        found.append(values(losses_of(model, batch())))
    assert found[1] == pytest.approx(found[0], rel=0.02, abs=0.02)

"""`MultiScaleSelfDistill` on real MMDetection detectors, in small."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS

from mmkd.functional.gaussian_mask import gaussian_box_mask
from mmkd.models.losses.masked_feature_loss import MaskedFeatureLoss
from mmkd.testing.methods import config_root

from .conftest import FAMILIES, batch, build_algorithm, losses_of, neck_distiller, small


def mssd(weight: float = 1.0, direction: str = 'deep_to_shallow', **loss: object) -> dict:
    """Distiller of the shipped method file, at full weight from the first step."""
    distiller = Config.fromfile(config_root() / '_base_' / 'methods' / 'mssd.py').distiller
    distiller.pop('schedules')
    distiller.distill_losses.loss_mssd.loss.update(loss_weight=weight, **loss)
    for connector in distiller.connectors.values():
        connector.direction = direction
    return distiller.to_dict()


def build(family: str, distiller: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type='mmkd.MultiScaleSelfDistill', architecture=small(family), distiller=distiller))


@pytest.mark.parametrize('family', FAMILIES)
def test_weight_zero_is_plain_mmdetection_to_the_last_bit(family, train_steps):
    torch.manual_seed(0)
    plain = MODELS.build(small(family))
    plain_losses, plain_grads = train_steps(plain)
    distilled = build(family, mssd(0.0))
    losses, grads = train_steps(distilled)
    assert losses == plain_losses
    assert all(torch.equal(grads[name], grad) for name, grad in plain_grads.items())
    states = plain.state_dict(), distilled.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize('family', FAMILIES)
def test_the_students_own_losses_are_unchanged_in_the_first_step(family):
    torch.manual_seed(0)
    plain = MODELS.build(small(family))
    plain.init_weights()
    torch.manual_seed(5)
    expected = losses_of(plain, batch())
    model = build(family, mssd())
    model.init_weights()
    torch.manual_seed(5)
    losses = losses_of(model, batch())
    for name, value in expected.items():
        for ours, theirs in zip(
            torch.atleast_1d(*_list(losses[f'student.{name}'])), torch.atleast_1d(*_list(value)), strict=True
        ):
            assert torch.equal(ours, theirs)


def _list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize(
    ('direction', 'names'),
    [
        ('deep_to_shallow', ('p3_from_p4', 'p4_from_p5')),
        ('shallow_to_deep', ('p4_from_p3', 'p5_from_p4')),
        ('both', ('p3_from_p4', 'p4_from_p5', 'p4_from_p3', 'p5_from_p4')),
        ('fused', ('p3_from_all', 'p4_from_all', 'p5_from_all')),
    ],
)
def test_losses_say_which_level_teaches_which(direction, names):
    model = build('yolox', mssd(direction=direction))
    model.init_weights()
    losses = losses_of(model, batch())
    assert {n for n in losses if n.startswith('distill.')} == {f'distill.loss_mssd_{name}' for name in names}
    assert all(losses[f'distill.loss_mssd_{name}'] > 0 for name in names)


def test_is_the_masked_difference_of_neighbouring_levels():
    model = build('retinanet', mssd())
    model.init_weights()
    heard = []
    model.neck.register_forward_hook(lambda module, inputs, output: heard.append(output))
    data = batch()
    losses = losses_of(model, data)
    samples = model.data_preprocessor(copy.deepcopy(data), True)['data_samples']
    boxes = [sample.gt_instances.bboxes for sample in samples]
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in boxes]
    boxes = [each[(area >= 48**2) & (area < 128**2)] for each, area in zip(boxes, areas, strict=True)]  # 3 to 8 cells
    assert 0 < sum(map(len, boxes)) < sum(map(len, areas))
    fine, coarse = heard[-1][1:3]
    sizes = [sample.img_shape for sample in samples]
    mask = gaussian_box_mask(boxes, tuple(fine.shape[-2:]), samples[0].batch_input_shape, image_sizes=sizes)
    above = torch.nn.functional.interpolate(coarse, fine.shape[-2:], mode='bilinear', align_corners=False)
    gated = MaskedFeatureLoss(gate=True)(fine, above, mask=mask)  # phi starts from the identity
    torch.testing.assert_close(losses['distill.loss_mssd_p4_from_p5'], gated)
    assert MaskedFeatureLoss()(fine, above, mask=mask) != gated


def test_the_teaching_level_gets_no_gradient_from_the_difference():
    model = build('retinanet', mssd())
    model.init_weights()
    losses = losses_of(model, batch())
    losses['distill.loss_mssd_p3_from_p4'].backward()
    assert model.neck.fpn_convs[0].conv.weight.grad.abs().sum() > 0
    assert model.neck.fpn_convs[1].conv.weight.grad is None  # the output convolution of P4 alone
    assert model.bbox_head.retina_cls.weight.grad is None


def test_nothing_of_it_is_left_in_the_checkpoint_or_at_test_time():
    torch.manual_seed(0)
    plain = MODELS.build(small('yolox'))
    model = build('yolox', mssd())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert {n for n, _ in model.named_parameters() if n.startswith('distiller.')}
    plain.load_state_dict(model.state_dict())
    inputs = torch.rand(1, 3, 64, 96)
    calls = []
    for module in model.distiller.modules():
        module.register_forward_hook(lambda *args: calls.append(1))
    for ours, theirs in zip(model.eval()(inputs)[0], plain.eval()(inputs)[0], strict=True):
        assert torch.equal(ours, theirs)
    assert not calls


def test_inference_runs_the_same_operations_as_the_plain_student():
    from torch.utils.flop_counter import FlopCounterMode

    costs = []
    for model in (MODELS.build(small('yolox')), build('yolox', mssd())):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.rand(1, 3, 64, 96))
        costs.append(counter.get_total_flops())
    assert costs[0] == costs[1] > 0


def test_the_weight_follows_its_ramp():
    distiller = mssd() | dict(schedules=dict(loss_mssd=dict(begin=1, end=3, ramp='linear', by_epoch=False)))
    model = build('yolox', distiller)
    model.init_weights()
    hub = MessageHub.get_current_instance()
    values = []
    for iteration in range(5):
        hub.update_info('iter', iteration)
        losses = losses_of(model, batch())
        values.append(
            float(
                losses[
                    'distill.loss_mssd' if 'distill.loss_mssd' in losses else 'distill.loss_mssd_p3_from_p4'
                ].detach()
            )
        )
    full = values[3]
    assert values[:2] == [0, 0] and full > 0
    assert values[2] == pytest.approx(full / 2, rel=0.2) and values[4] == pytest.approx(full, rel=0.2)


def test_trains_with_batch_level_resizing_of_yolox():
    cfg = small('yolox')
    cfg['data_preprocessor']['batch_augments'] = [
        dict(type='BatchSyncRandomResize', random_size_range=(96, 192), size_divisor=32, interval=1)
    ]
    torch.manual_seed(0)
    model = MODELS.build(dict(type='mmkd.MultiScaleSelfDistill', architecture=cfg, distiller=mssd()))
    model.init_weights()
    MessageHub.get_current_instance().update_info('iter', 0)
    sizes = set()
    for _ in range(4):
        data = model.data_preprocessor(batch(), True)
        sizes.add(tuple(data['inputs'].shape[2:]))
        losses = model(**data, mode='loss')
        assert all(torch.isfinite(value).all() for value in losses.values())
    assert len(sizes) > 1


def test_images_without_objects_pull_at_nothing():
    model = build('retinanet', mssd())
    model.init_weights()
    data = model.data_preprocessor(batch(), True)
    for sample in data['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    losses = model(**data, mode='loss')
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    loss = losses['distill.loss_mssd_p3_from_p4']
    (gradient,) = torch.autograd.grad(loss, [model.neck.fpn_convs[0].conv.weight])
    assert gradient.abs().max() < 1e-5, 'a normalised level has the same distance to silence whatever it says'


def test_an_average_of_the_student_can_be_copied():
    model = build('retinanet', mssd())
    copied = copy.deepcopy(model)
    copied.init_weights()
    assert copied.backbone is copied.architecture.backbone and copied.backbone is not model.backbone
    assert losses_of(copied, batch())['distill.loss_mssd_p3_from_p4'] > 0


def test_refuses_a_teacher():
    distiller = mssd() | dict(teacher_recorders=dict(neck=dict(type='ModuleOutputs', source='neck')))
    with pytest.raises(ValueError, match='has no teacher: leave out teacher_recorders'):
        build('retinanet', distiller)


def test_refuses_sides_with_different_directions():
    distiller = mssd()
    distiller['connectors']['teaching']['direction'] = 'shallow_to_deep'
    with pytest.raises(ValueError, match='loss_mssd does not fit its records'):
        build('retinanet', distiller)


def test_mask_and_loss_serve_a_teacher_and_its_student():
    distiller = neck_distiller(
        dict(type='mmkd.MaskedFeatureLoss'), masks=dict(objects=dict(type='mmkd.GaussianMask', clip=True))
    )
    distiller['loss_forward_mappings']['loss_feat']['mask'] = dict(mask='objects')
    model = build_algorithm('retinanet', distiller)
    model.init_weights()
    data = model.data_preprocessor(batch(), True)
    assert part_sum(model(**copy.deepcopy(data), mode='loss')) > 0
    for sample in data['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    assert part_sum(model(**data, mode='loss')) == 0


def part_sum(losses: dict) -> float:
    return sum(float(value.detach()) for name, value in losses.items() if name.startswith('distill.'))

"""`SelfTeacherDistill` on real MMDetection detectors, in small, and on a classifier."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from mmkd.engine.hooks.distill_checkpoint_hook import DistillCheckpointHook
from mmkd.testing.methods import config_root
from mmkd.testing.ranks import in_ranks

from .conftest import FAMILIES, batch, losses_of, small

BIFPN = dict(type='mmkd.BiFPNSelfTeacher', out_channels='same', norm='GN')


def frskd(family: str, weight: float = 1.0) -> dict:
    """Distiller of the shipped method file for a family's head."""
    name = 'frskd_roi' if family == 'faster-rcnn' else 'frskd_dense'
    distiller = Config.fromfile(config_root() / '_base_' / 'methods' / f'{name}.py').distiller
    distiller.distill_losses.loss_frskd_at.loss.loss_weight = weight
    distiller.distill_losses.loss_frskd_kd.loss_weight = weight
    return distiller.to_dict()


def build(family: str, distiller: dict | None = None, **kwargs: object) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = dict(type='mmkd.SelfTeacherDistill', architecture=small(family), self_teacher=dict(BIFPN))
    return MODELS.build(cfg | dict(distiller=distiller or frskd(family)) | kwargs)


def grads(module: torch.nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def part(losses: dict, prefix: str) -> torch.Tensor:
    values = [v for n, v in losses.items() if n.startswith(prefix) and 'loss' in n]
    return sum(sum(v) if isinstance(v, list) else v for v in values)


@pytest.mark.parametrize('family', FAMILIES)
def test_weight_zero_is_plain_mmdetection_to_the_last_bit(family, train_steps):
    torch.manual_seed(0)
    plain = MODELS.build(small(family))
    plain_losses, plain_grads = train_steps(plain)
    distilled = build(family, frskd(family, 0.0), self_teacher_weight=0.0)
    losses, gradients = train_steps(distilled)
    assert losses == plain_losses
    assert all(torch.equal(gradients[name], grad) for name, grad in plain_grads.items())
    states = plain.state_dict(), distilled.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize('family', FAMILIES)
def test_the_self_teachers_own_loss_reaches_the_backbone_but_not_the_students_head(family):
    model = build(family)
    model.init_weights()
    part(losses_of(model, batch()), 'self_teacher.').backward()
    assert grads(model.backbone) > 0 and grads(model.neck) > 0
    assert grads(model.self_teacher.model.backbone) > 0
    heads = [m for n, m in model.architecture.named_children() if n.endswith('head')]
    assert heads and all(grads(head) == 0 for head in heads)
    own = [m for n, m in model.self_teacher.model.named_children() if n.endswith('head')]
    assert len(own) == len(heads) and all(grads(head) > 0 for head in own)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_distillation_never_moves_the_self_teacher(family):
    model = build(family)
    model.init_weights()
    part(losses_of(model, batch()), 'distill.').backward()
    assert grads(model.self_teacher) == 0
    assert grads(model.backbone) > 0 and grads(model.neck) > 0


def test_not_even_through_a_loss_that_does_not_stop_gradients():
    distiller = frskd('retinanet')
    distiller['distill_losses']['loss_frskd_at'] = dict(type='mmkd.PyramidLoss', loss=dict(type='mmrazor.L1Loss'))
    model = build('retinanet', distiller)
    model.init_weights()
    part(losses_of(model, batch()), 'distill.').backward()
    assert grads(model.self_teacher) == 0 and grads(model.neck) > 0


@pytest.mark.parametrize('family', FAMILIES)
def test_every_parameter_has_a_gradient_in_every_step(family):
    """What several processes need without `find_unused_parameters`, with every mixture of weights."""
    for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        model = build(family, frskd(family, weights[0]), self_teacher_weight=weights[1])
        model.init_weights()
        total, _ = model.parse_losses(losses_of(model, batch()))
        total.backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize('family', FAMILIES)
def test_the_self_teacher_has_a_head_of_the_same_class_with_its_own_weights(family):
    model = build(family)
    for name, head in model.architecture.named_children():
        if name.endswith('head'):
            own = getattr(model.self_teacher.model, name)
            assert type(own) is type(head)
            assert not {id(p) for p in own.parameters()} & {id(p) for p in head.parameters()}


def test_both_roi_heads_score_the_students_proposals():
    model = build('faster-rcnn')
    model.init_weights()
    seen = []
    for name, network in (('student', model.architecture), ('own', model.self_teacher.model)):
        extractor = network.roi_head.bbox_roi_extractor
        extractor.register_forward_hook(lambda m, inputs, out, name=name: seen.append((name, inputs[1].detach())))
    losses = losses_of(model, batch())
    student, own, shared = seen
    assert [student[0], own[0], shared[0]] == ['student', 'own', 'own']
    assert torch.equal(student[1], shared[1]) and not torch.equal(student[1], own[1])
    assert losses['distill.loss_frskd_kd'] > 0


def test_draws_nothing_from_the_students_random_state():
    states = []
    for weight in (0.0, 1.0):
        model = build('faster-rcnn', frskd('faster-rcnn', weight), self_teacher_weight=weight)
        model.init_weights()
        torch.manual_seed(3)
        losses_of(model, batch())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_nothing_of_it_is_left_in_the_checkpoint_or_at_test_time():
    from torch.utils.flop_counter import FlopCounterMode

    plain = MODELS.build(small('retinanet'))
    model = build('retinanet')
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    calls, costs, outputs = [], [], []
    for module in model.self_teacher.modules():
        module.register_forward_hook(lambda *args: calls.append(1))
    for network in (plain, model):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs.append(network.eval()(torch.ones(1, 3, 64, 96))[0])
        costs.append(counter.get_total_flops())
    assert costs[0] == costs[1] > 0 and not calls
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*outputs, strict=True))


def test_the_self_teacher_is_saved_apart_and_comes_back():
    model = build('retinanet')
    state = model.self_teacher.saved_state()
    assert any(name.startswith('model.bbox_head.') for name in state)
    with torch.no_grad():
        for parameter in model.self_teacher.parameters():
            parameter.zero_()
    model.self_teacher.load_saved_state(state)
    assert all(torch.equal(value, state[name]) for name, value in model.self_teacher.saved_state().items())


def test_learns_without_soft_labels_until_its_schedule_begins():
    schedules = {
        name: dict(begin=2, end=4, ramp='sigmoid', by_epoch=False) for name in ('loss_frskd_at', 'loss_frskd_kd')
    }
    model = build('yolox', frskd('yolox') | dict(schedules=schedules))
    model.init_weights()
    hub = MessageHub.get_current_instance()
    for iteration in range(5):
        hub.update_info('iter', iteration)
        losses = losses_of(model, batch())
        assert part(losses, 'self_teacher.') > 0
        assert (part(losses, 'distill.') > 0) == (iteration >= 2)
    full = float(part(losses, 'distill.').detach())
    hub.update_info('iter', 2)
    assert float(part(losses_of(model, batch()), 'distill.').detach()) < 0.02 * full


def test_grows_on_the_backbone_too():
    distiller = frskd('retinanet')
    distiller['student_recorders']['features']['source'] = 'backbone'
    model = build(
        'retinanet',
        distiller,
        source='backbone',
        self_teacher=dict(type='mmkd.BiFPNSelfTeacher', width=1, norm='GN'),
    )
    assert type(model.self_teacher.model.neck) is type(model.neck)
    model.init_weights()
    losses = losses_of(model, batch())
    assert {f'distill.loss_frskd_at_p{i}' for i in (3, 4, 5)} <= set(losses)
    part(losses, 'distill.').backward()
    assert grads(model.backbone) > 0 and grads(model.self_teacher) == 0


def test_wider_features_need_a_changed_head():
    wide = dict(type='mmkd.BiFPNSelfTeacher', width=2, norm='GN')
    with pytest.raises(RuntimeError, match='channels'):
        build('retinanet', self_teacher=wide)
    model = build('retinanet', self_teacher=wide, changes={'bbox_head.in_channels': 32})
    model.init_weights()
    assert part(losses_of(model, batch()), 'self_teacher.') > 0


def test_a_copy_has_a_self_teacher_of_its_own():
    model = build('retinanet')
    copied = copy.deepcopy(model)
    copied.init_weights()
    assert copied.self_teacher is not model.self_teacher
    part(losses_of(copied, batch()), 'self_teacher.').backward()
    assert grads(copied.self_teacher) > 0 and grads(model.self_teacher) == 0 and grads(model.architecture) == 0


def test_ranks_with_seeds_of_their_own_begin_with_the_same_self_teacher(tmp_path: Path):
    """`randomness=dict(diff_rank_seed=True)`; the Runner's own broadcast does not see what is saved apart."""

    def work(rank: int) -> None:
        torch.distributed.init_process_group('gloo')
        model = build('retinanet')
        torch.manual_seed(rank)
        model.init_weights()
        torch.save(
            dict(model.self_teacher.saved_state(), student=model.bbox_head.retina_cls.weight), tmp_path / f'{rank}.pth'
        )

    ended = in_ranks(work, tmp_path / 'log', processes=2)
    assert ended.codes == (0, 0), (tmp_path / 'log').read_text()
    states = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    different = [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
    assert different == ['student']  # which the Runner broadcasts itself


def test_nothing_of_a_step_is_kept():
    model = build('retinanet')
    model.init_weights()
    losses_of(model, batch())
    for side in (True, False):
        assert all(not r.data_buffer for r in model.distiller.recorders(side).recorders.values())
    assert model.self_teacher.model.backbone._given is None


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match='has no layer'):
        build('retinanet', source='necks')
    with pytest.raises(ValueError, match='must give a tuple of levels'):
        build('retinanet', source='backbone.layer2')
    with pytest.raises(ValueError, match='self_teacher_weight must be >= 0'):
        build('retinanet', self_teacher_weight=-1.0)
    with pytest.raises(TypeError, match='architecture must be a config'):
        build('retinanet', architecture=MODELS.build(small('retinanet')))


def test_the_self_teacher_follows_the_mode_of_yolox():
    """`YOLOXModeSwitchHook` switches the L1 loss on at the student's head alone."""
    model = build('yolox')
    assert 'self_teacher.loss_l1' not in losses_of(model, batch())
    model.bbox_head.use_l1 = True
    losses = losses_of(model, batch())
    assert losses['student.loss_l1'] > 0 and losses['self_teacher.loss_l1'] > 0


def test_a_self_teacher_that_is_not_trained_does_not_decay():
    model = build('retinanet', self_teacher_weight=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5, momentum=0.9)
    DistillCheckpointHook()._spare_idle(SimpleNamespace(model=model, optim_wrapper=OptimWrapper(optimizer)))
    before = copy.deepcopy(model.self_teacher).saved_state()
    model.parse_losses(losses_of(model, batch()))[0].backward()
    student = model.neck.fpn_convs[0].conv.weight.clone()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.self_teacher.saved_state().items())
    assert not torch.equal(model.neck.fpn_convs[0].conv.weight, student)

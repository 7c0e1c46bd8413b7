"""`NumberGuardHook`: what is not a number stops the run before a weight is changed, and is named."""

import copy
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner

from mmkd.engine.bad_batch import load_batch
from mmkd.engine.first_steps import FirstSteps, reaches
from mmkd.engine.hooks.guard_hook import NonFiniteError, NumberGuardHook
from mmkd.testing.toy_run import ToyRun, make_toy_run


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'), train=12, epochs=2)


def poison_loss(model: Any) -> None:
    model.distiller.distill_losses['loss_kd'].loss_weight = math.nan


def poison_student(model: Any) -> None:
    model.bbox_head.loss_bbox.loss_weight = math.inf


def poison_teacher(model: Any) -> None:
    model.teacher.neck.fpn_convs[1].conv.bias.data.fill_(math.inf)


def poison_gradient(model: Any) -> None:
    level = model.distiller.connectors['adapt'].levels[0]

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return g * math.nan

    level.forward = lambda x, plain=level.forward: Explode.apply(plain(x))


def flatten_loss(model: Any) -> None:
    """A saturated loss: a gradient path, but always one value."""
    loss = model.distiller.distill_losses['loss_kd']
    loss.forward = lambda preds_S, preds_T, **_: tuple(0 * one.sum() + 0.25 for one in preds_S)


POISONS = dict(loss=poison_loss, student=poison_student, teacher=poison_teacher, gradient=poison_gradient)
POISONS['flat'] = flatten_loss


@HOOKS.register_module(force=True)
class PoisonHook(Hook):
    """Poisons the model before one iteration (from 1) and notes the weights it had; for one iteration only if asked."""

    before: dict = {}

    def __init__(self, kind: str, at: int = 4, once: bool = False) -> None:
        self.kind, self.at, self.once = kind, at, once

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter + 1 == self.at:
            PoisonHook.before = copy.deepcopy(runner.model.state_dict())
            POISONS[self.kind](runner.model)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.once and runner.iter + 1 == self.at:
            runner.model.distiller.distill_losses['loss_kd'].loss_weight = 1.0


def run(toy: ToyRun, folder: Path, *hooks: dict, **options: Any) -> Runner:
    cfg = toy.load(**options)
    cfg.work_dir, cfg.custom_hooks, cfg.log_level = str(folder / 'run'), list(hooks), 'WARNING'
    cfg.train_cfg.val_interval = 99
    cfg.experiment_name = re.sub(r'\W', '_', str(folder))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize(
    ('kind', 'says'),
    [
        ('loss', 'distill.loss_kd_p3 is nan'),
        ('student', r'student.loss_bbox\[0\] is inf'),
        ('teacher', r'teacher feature neck level 1 is nan'),
        ('gradient', 'the gradient of distill.loss_kd_p3 is not finite in .* parameters'),
    ],
)
def test_names_what_is_not_finite_and_stops_before_the_step(kind: str, says: str, toy: ToyRun, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=says) as caught:
        run(toy, tmp_path, dict(type='PoisonHook', kind=kind))
    text = str(caught.value)
    assert 'iteration 4 (epoch 1)' in text
    assert len(re.findall(r'train_\d+\.png', text)) == 2
    assert not list((tmp_path / 'run').glob('epoch_*.pth'))


def test_weights_are_those_before_the_bad_step(toy: ToyRun, tmp_path: Path) -> None:
    hook = NumberGuardHook()
    cfg = toy.load()
    cfg.work_dir, cfg.custom_hooks = str(tmp_path / 'run'), [dict(type='PoisonHook', kind='loss')]
    runner = Runner.from_cfg(cfg)
    assert any(isinstance(h, type(hook)) for h in runner.hooks)
    with pytest.raises(NonFiniteError):
        runner.train()
    parameters = dict(runner.model.named_parameters())
    assert all(torch.equal(value, parameters[key]) for key, value in PoisonHook.before.items() if key in parameters)


def test_the_saved_batch_goes_wrong_again(toy: ToyRun, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        run(toy, tmp_path, dict(type='PoisonHook', kind='teacher'))
    (path,) = (tmp_path / 'run').glob('bad_batch_iter_4_rank_0_*.pth')
    inputs, samples, rest = load_batch(path)
    assert 'teacher feature neck level 1 is nan' in rest['culprits']
    model = MODELS.build(toy.load().model)
    model.init_weights()
    model.load_state_dict(rest['state_dict'])
    model.distiller.load_saved_state(rest['apart']['distiller'])
    model.train()
    assert all(torch.isfinite(v) for k, v in model(inputs, samples, mode='loss').items() if k.startswith('distill.'))
    poison_teacher(model)
    assert torch.isnan(model(inputs, samples, mode='loss')['distill.loss_kd_p4'])


def test_a_stated_number_of_steps_is_left_out(toy: ToyRun, tmp_path: Path) -> None:
    guard = dict(type='mmkd.NumberGuardHook', skip=1)
    runner = run(toy, tmp_path, dict(type='PoisonHook', kind='loss', once=True), guard)
    assert runner.iter == 12
    assert all(torch.isfinite(value).all() for value in runner.model.state_dict().values())
    assert next(h for h in runner.hooks if isinstance(h, NumberGuardHook)).skipped == 1


def test_one_more_than_the_stated_number_stops(toy: ToyRun, tmp_path: Path) -> None:
    guard = dict(type='mmkd.NumberGuardHook', skip=2)
    with pytest.raises(NonFiniteError, match='iteration 6'):
        run(toy, tmp_path, dict(type='PoisonHook', kind='loss'), guard)
    assert len(list((tmp_path / 'run').glob('bad_batch_*.pth'))) == 3


def test_a_skipped_step_leaves_weights_and_buffers_as_they_were(toy: ToyRun, tmp_path: Path) -> None:
    guard = dict(type='mmkd.NumberGuardHook', skip=1)
    with pytest.raises(NonFiniteError):
        run(toy, tmp_path, dict(type='PoisonHook', kind='loss'), guard)
    _, _, rest = load_batch(next((tmp_path / 'run').glob('bad_batch_iter_5_*.pth')))
    floats = {key: value for key, value in PoisonHook.before.items() if 'running' in key or 'weight' in key}
    for key, value in floats.items():
        if 'running' not in key:
            assert torch.equal(value, rest['state_dict'][key])


def test_accumulated_gradients_are_watched_too(toy: ToyRun, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match='iteration 3 '):
        run(toy, tmp_path, dict(type='PoisonHook', kind='loss', at=3), optim_wrapper__accumulative_counts=4)


def test_training_with_the_guard_is_the_same_to_the_last_bit(toy: ToyRun, tmp_path: Path) -> None:
    class Deaf(NumberGuardHook):
        def before_train(self, runner: Runner) -> None: ...

    HOOKS.register_module(name='NumberGuardHook', module=Deaf, force=True)
    try:
        without = run(toy, tmp_path / 'a', dict(type='NumberGuardHook')).model.state_dict()
    finally:
        HOOKS._module_dict.pop('NumberGuardHook')
    guarded = run(toy, tmp_path / 'b', dict(type='mmkd.NumberGuardHook', skip=3)).model.state_dict()
    assert all(torch.equal(value, guarded[key]) for key, value in without.items())


@OPTIM_WRAPPERS.register_module(force=True)
class NeverSteps(OptimWrapper):
    """As mixed precision whose scaled gradients always overflow."""

    loss_scaler = None

    def step(self, **kwargs: Any) -> None: ...


def test_mixed_precision_that_never_steps_is_stopped(toy: ToyRun, tmp_path: Path) -> None:
    guard = dict(type='mmkd.NumberGuardHook', overflows=5)
    with pytest.raises(NonFiniteError, match='left out the last 6 steps'):
        run(toy, tmp_path, guard, optim_wrapper__type='NeverSteps')


def test_mixed_precision_may_leave_out_a_few_steps(toy: ToyRun, tmp_path: Path) -> None:
    assert run(toy, tmp_path, optim_wrapper__type='NeverSteps').iter == 12


def log_of(folder: Path) -> str:
    return next((folder / 'run').rglob('*.log')).read_text()


def test_a_loss_without_gradient_is_reported(toy: ToyRun, tmp_path: Path) -> None:
    options = {
        'model__architecture__backbone__frozen_stages': 4,
        'model__distiller__student_recorders__neck__source': 'backbone',
        'model__distiller__teacher_recorders__neck__source': 'backbone',
    }
    run(toy, tmp_path, **options)
    assert 'loss_kd gives the student no gradient' in log_of(tmp_path)


def test_a_constant_loss_is_reported(toy: ToyRun, tmp_path: Path) -> None:
    run(toy, tmp_path, model__architecture__bbox_head__loss_bbox__loss_weight=0.0)
    assert 'student.loss_bbox was exactly 0 in each of the first 10 iterations' in log_of(tmp_path)


def test_a_constant_distillation_loss_is_reported(toy: ToyRun, tmp_path: Path) -> None:
    run(toy, tmp_path, dict(type='PoisonHook', kind='flat', at=1))
    assert 'loss_kd was exactly 1.25 in each of the first 10 iterations' in log_of(tmp_path)


def test_a_record_that_never_comes_is_reported(toy: ToyRun) -> None:
    model = MODELS.build(toy.load().model)
    watch = FirstSteps(model, 3)
    weight = model.backbone.conv1.weight
    said = []
    for step in range(3):
        model.teacher.neck(model.teacher.backbone(torch.zeros(1, 3, 64, 64)))
        said.append(watch.look({'distill.loss_kd_p3': weight.sum() * step}))
    assert said == [[], [], ['The recorded layer student neck did not run in the first 3 iterations.']]


def test_a_right_run_says_nothing(toy: ToyRun, tmp_path: Path) -> None:
    run(toy, tmp_path)
    said = log_of(tmp_path)
    assert 'exactly' not in said and 'no gradient' not in said and 'did not run' not in said


def test_the_graph_is_followed_to_the_students_parameters() -> None:
    own, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    wanted = {id(p) for p in own.parameters()}
    assert reaches(other(own(torch.ones(1, 2))).sum(), wanted)
    assert not reaches(other(own(torch.ones(1, 2)).detach()).sum(), wanted)
    assert not reaches(torch.ones(()), wanted)


@pytest.mark.slow
def test_all_processes_stop_together_and_name_the_rank(toy: ToyRun, tmp_path: Path) -> None:
    cfg = toy.load()
    cfg.custom_imports = dict(imports=['poison_rank'], allow_failed_imports=False)
    cfg.custom_hooks = [dict(type='PoisonRankHook', rank=1, at=2)]
    cfg.log_level = 'WARNING'
    cfg.dump(str(tmp_path / 'distill.py'))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(root / 'tools/train.py'), str(tmp_path / 'distill.py'), '--launcher', 'pytorch']
    environment = dict(os.environ, PYTHONPATH=f'{root}:{root / "tests"}', OMP_NUM_THREADS='1')
    command += ['--work-dir', str(tmp_path / 'run')]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    said = re.findall(r'ERROR \(NonFiniteError\): Not finite at iteration 2 .*', done.stderr)
    assert done.returncode != 0
    # the launcher ends the other rank as soon as one has ended, perhaps before it has spoken
    assert said and set(said) == {said[0]}
    assert 'On rank 1: distill.loss_kd_p3 is nan' in said[0] and 'rank 0' not in said[0]
    assert len(list((tmp_path / 'run').glob('bad_batch_iter_2_rank_?_0.pth'))) == 2


@pytest.mark.parametrize('name', ['skip', 'watch', 'overflows'])
def test_negative_numbers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f'{name} must be >= 0, got -1'):
        NumberGuardHook(**{name: -1})

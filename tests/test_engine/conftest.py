"""Runs on the toy set: configurations of teacher and student, trained in this process."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmkd import compat
from mmkd.engine.launch import prepare_training, train
from mmkd.testing.detection_data import detection_data
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector

SMALL = dict(width=8, channels=16, convs=1)
_NUMBER = itertools.count()


@pytest.fixture(scope='session')
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy set: 8 training and 4 validation images of 96x80 px."""
    return make_toy_data(tmp_path_factory.mktemp('data') / 'toy', train=8, val=4, size=(96, 80))


def ssim_distiller(**changes: Any) -> dict:
    """SSIM on the necks through 1x1 connectors."""
    neck = dict(type='ModuleOutputs', source='neck')
    adapted = dict(from_student=True, recorder='neck', connector='adapt')
    loss = dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.SSIMLoss', data_range=1.0, loss_weight=4.0))
    return (
        dict(
            type='mmkd.DetectionDistiller',
            student_recorders=dict(neck=dict(neck)),
            teacher_recorders=dict(neck=dict(neck)),
            connectors=dict(adapt=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))),
            distill_losses=dict(loss_ssim=loss),
            loss_forward_mappings=dict(
                loss_ssim=dict(preds_S=adapted, preds_T=dict(from_student=False, recorder='neck'))
            ),
        )
        | changes
    )


@pytest.fixture
def plain_config(toy: Path) -> Callable[..., Config]:
    """Configuration of a plain detector on the toy set."""

    def make(family: str = 'retinanet', epochs: int = 2, seed: int = 0, **changes: int) -> Config:
        schedule = Schedule(epochs=epochs, scale=(96, 80), batch=2, warmup=2)
        cfg = training_config(toy_detector(family, **(SMALL | changes)), detection_data(toy), schedule, seed)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
        cfg.log_level = 'WARNING'
        cfg.experiment_name = f'run{next(_NUMBER)}'
        return cfg

    return make


@pytest.fixture
def distill_config(plain_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """Configuration of a distillation from a teacher whose weights are made here."""

    def make(family: str = 'retinanet', distiller: dict | None = None, **kwargs: Any) -> Config:
        teacher = plain_config(family, channels=24)
        path = tmp_path / f'teacher_{family}.pth'
        with torch.random.fork_rng():
            torch.manual_seed(7)
            torch.save(dict(state_dict=MODELS.build(teacher.model).state_dict()), path)
        cfg = plain_config(family, **kwargs)
        cfg.model = dict(
            type='mmkd.TeacherStudentDistill',
            architecture=cfg.model,
            teacher=teacher.model,
            teacher_ckpt=str(path),
            distiller=distiller or ssim_distiller(),
        )
        # A teacher of random weights detects nothing, which is not the point here.
        cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', num_images=0)
        return cfg

    return make


@pytest.fixture
def run() -> Callable[..., Runner]:
    """Train a configuration as `tools/train.py` does; returns its runner."""

    def start(cfg: Config, work_dir: Path, **options: Any) -> Runner:
        cfg.experiment_name = f'run{next(_NUMBER)}'
        prepare_training(cfg, config_name='test', work_dir=str(work_dir), **options)
        return train(cfg)

    return start


def load(path: Path) -> dict:
    return compat.load_checkpoint_file(path)


def equal(left: object, right: object) -> bool:
    """Equality of nested containers of tensors and numbers, to the last bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right or (left != left and right != right)

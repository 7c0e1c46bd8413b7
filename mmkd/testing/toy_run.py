"""A whole distillation in miniature, for tests of tools and hooks: data, teacher with weights, config of a run.

Images are 96x64 px, the teacher is random (so its accuracy is not checked), and an epoch takes under a second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmkd.testing.detection_data import detection_data
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector


@dataclass(frozen=True)
class ToyRun:
    """Files of a small distillation.

    Args:
        root: folder that holds everything.
        config: configuration of the distillation.
        teacher: configuration of the teacher, which is also a plain training.
        teacher_ckpt: the teacher's checkpoint.
        data: folder of the data set.
    """

    root: Path
    config: Path
    teacher: Path
    teacher_ckpt: Path
    data: Path

    def load(self, **options: Any) -> Config:
        """The distillation's configuration, with keys as in `--cfg-options`."""
        cfg = Config.fromfile(str(self.config))
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
        return cfg


def neck_source(from_student: bool, **more: Any) -> dict:
    """Entry of `loss_forward_mappings` that reads the recorder `neck`."""
    return dict(recorder='neck', from_student=from_student, **more)


def neck_distiller() -> dict:
    """A distiller that compares the necks: 1x1 convolutions, the normalised L2 loss on every level."""
    recorder = dict(neck=dict(type='ModuleOutputs', source='neck'))
    return dict(
        type='mmkd.DetectionDistiller',
        student_recorders=recorder,
        teacher_recorders=recorder,
        connectors=dict(adapt=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))),
        distill_losses=dict(
            loss_kd=dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.NormalizedLpLoss', p=2, loss_weight=1.0))
        ),
        loss_forward_mappings=dict(
            loss_kd=dict(preds_S=neck_source(True, connector='adapt'), preds_T=neck_source(False))
        ),
        schedules={},
    )


def make_toy_run(root: str | Path, *, epochs: int = 1, train: int = 4, val: int = 2) -> ToyRun:
    """Write data, teacher, its weights and the configuration of the distillation.

    Args:
        root: folder to write into; made if needed.
        epochs: passes over the training images, in batches of 2.
        train: number of training images.
        val: number of validation images.

    Returns:
        Where everything lies.
    """
    root = Path(root)
    init_default_scope('mmdet')
    data = make_toy_data(root / 'data', train=train, val=val, size=(96, 64))
    schedule = Schedule(epochs=epochs, scale=(96, 64), batch=2)
    described = detection_data(data)
    teacher = training_config(toy_detector('retinanet', width=8, channels=24, convs=1), described, schedule, 0)
    teacher.dump(str(root / 'teacher.py'))
    torch.save(dict(meta={}, state_dict=MODELS.build(teacher.model).state_dict()), root / 'teacher.pth')
    student = toy_detector('retinanet', width=8, channels=16, convs=1)
    model = dict(
        type='mmkd.TeacherStudentDistill',
        architecture=student,
        teacher=str(root / 'teacher.py'),
        teacher_ckpt=str(root / 'teacher.pth'),
        distiller=neck_distiller(),
    )
    cfg = training_config(model, described, schedule, 0)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=3)
    cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', num_images=0)
    cfg.dump(str(root / 'distill.py'))
    return ToyRun(root, root / 'distill.py', root / 'teacher.py', root / 'teacher.pth', data)

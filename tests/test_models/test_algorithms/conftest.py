"""Small real detectors under distillation."""

import copy
from collections.abc import Callable

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS

from mmkd.testing.toy_detectors import toy_detector

FAMILIES = ('retinanet', 'faster-rcnn', 'gfl', 'fcos', 'yolox')
SMALL = dict(width=8, channels=16, convs=1)


def small(family: str, **changes: int) -> dict:
    """Configuration of a detector of a family, small enough for many steps."""
    return toy_detector(family, **(SMALL | changes))


def neck_distiller(loss: dict | None = None, **changes: object) -> dict:
    """Distiller that compares the whole neck outputs of both sides."""
    loss = loss or dict(type='mmkd.SSIMLoss', data_range=1.0)
    neck = dict(type='ModuleOutputs', source='neck')
    sides = dict(preds_S=dict(from_student=True, recorder='neck'), preds_T=dict(from_student=False, recorder='neck'))
    return (
        dict(
            type='mmkd.DetectionDistiller',
            student_recorders=dict(neck=dict(neck)),
            teacher_recorders=dict(neck=dict(neck)),
            distill_losses=dict(loss_feat=dict(type='mmkd.PyramidLoss', loss=loss)),
            loss_forward_mappings=dict(loss_feat=sides),
        )
        | changes
    )


def head_distiller(source: str, loss: dict) -> dict:
    """Distiller that compares the first output of a head on both sides, as `loss_kd`."""
    head = dict(type='ModuleOutputs', source=source)
    sides = {
        key: dict(from_student=side, recorder='head', data_idx=0)
        for key, side in (('preds_S', True), ('preds_T', False))
    }
    return neck_distiller(
        student_recorders=dict(head=dict(head)),
        teacher_recorders=dict(head=dict(head)),
        distill_losses=dict(loss_kd=loss),
        loss_forward_mappings=dict(loss_kd=sides),
    )


def build_teacher(family: str, **changes: int) -> torch.nn.Module:
    """A built teacher with weights of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(77)
        return MODELS.build(small(family, **changes))


def build_algorithm(family: str, distiller: dict, teacher: object = None, **kwargs: object) -> torch.nn.Module:
    """An algorithm whose student starts from seed 0."""
    teacher = build_teacher(family) if teacher is None else teacher
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='mmkd.TeacherStudentDistill',
            architecture=small(family),
            teacher=teacher,
            distiller=distiller,
            **kwargs,
        )
    )


def batch(images: int = 2, size: tuple[int, int] = (128, 160), num_classes: int = 4) -> dict:
    """Images with boxes, the same ones each time."""
    with torch.random.fork_rng():
        return demo_mm_inputs(images, [(3, *size)] * images, num_items=[3] * images, num_classes=num_classes)


def losses_of(model: torch.nn.Module, data: dict) -> dict:
    """Losses of one preprocessed batch."""
    prepared = model.data_preprocessor(copy.deepcopy(data), True)
    return model(**prepared, mode='loss')


@pytest.fixture
def train_steps() -> Callable:
    """Train a model for some steps; returns the summed losses of each step and the last gradients."""

    def train(model: torch.nn.Module, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
        model.init_weights()
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        torch.manual_seed(5)
        totals = []
        for step in range(steps):
            data = batch(size=(128, 160 + 32 * (step % 2)))
            total, _ = model.parse_losses(losses_of(model, data))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(float(total.detach()))
        return totals, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    return train

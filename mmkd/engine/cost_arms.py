"""What `tools/benchmark_cost.py` compares, built without a download: plain student, teacher, distillation, MMRazor's.

All arms of one configuration have the same student, the same teacher weights and the same made batch.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor

from mmkd.engine.config_check import initialise_without_download
from mmkd.engine.detector_classes import num_classes
from mmkd.engine.student_config import is_distillation
from mmkd.models.algorithms.model_config import load_model_source
from mmkd.models.algorithms.sample_copies import copied_samples
from mmkd.models.algorithms.step_clock import StepClock
from mmkd.models.algorithms.teacher_options import TeacherOptions, split_teacher

PLAIN, TEACHER, DISTILLED = 'plain', 'teacher', 'distilled'
MMRAZOR = ('SingleTeacherDistill', 'FpnTeacherDistill')
OBJECTS = 8
# Small enough that the weights, and with them the work of a step, stay the same from round to round.
LEARNING_RATE_FACTOR = 1e-6


@dataclass
class Arm:
    """One thing to measure.

    Args:
        name: `plain`, `teacher`, `distilled`, `distilled (options)`, or a class of MMRazor.
        step: does it once.
        model: what takes the steps.
        clock: of an algorithm of mmkd, tells the parts of a step.
    """

    name: str
    step: Callable[[], Any]
    model: BaseModel
    clock: StepClock | None = None


def distilled_name(options: TeacherOptions) -> str:
    """Name of the distilled arm whose teacher has these options."""
    return f'{DISTILLED} ({options})' if options else DISTILLED


def made_batch(images: int, size: tuple[int, int], classes: int, device: str) -> tuple[Tensor, list[DetDataSample]]:
    """A preprocessed batch (images, 3, H, W) of noise, with `OBJECTS` boxes an image, small ones and large ones."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(images, 3, *size, generator=generator)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    samples = []
    for number in range(images):
        sides = torch.logspace(-1.3, -0.3, OBJECTS)[:, None] * torch.tensor([size[1], size[0]])
        corners = torch.rand(OBJECTS, 2, generator=generator) * (torch.tensor([size[1], size[0]]) - sides)
        labels = torch.randint(0, classes, (OBJECTS,), generator=generator)
        sample = DetDataSample(metainfo=dict(meta, flip=False, img_id=number, img_path='made'))
        sample.gt_instances = InstanceData(bboxes=torch.cat([corners, corners + sides], 1), labels=labels)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample.to(device))
    return inputs.to(device), samples


class Workbench:
    """Builds the arms of a configuration.

    Args:
        cfg: configuration of a distillation by mmkd.
        size: (H, W) px of the padded input.
        batch: images a step.
        device: `cpu` or `cuda`.

    Raises:
        ValueError: the configuration distils nothing, or its student is no detector with classes.
    """

    def __init__(self, cfg: Config, size: tuple[int, int], batch: int, device: str = 'cpu') -> None:
        if not is_distillation(cfg) or not str(cfg.model.type).startswith('mmkd.'):
            raise ValueError('The configuration must be a distillation by one of mmkd.* algorithms.')
        self.cfg, self.device = cfg, device
        self.student_cfg = self._student_config()
        with self._scope():
            student = MODELS.build(copy.deepcopy(self.student_cfg))
        classes = num_classes(student)
        if classes is None:
            raise ValueError(f'{type(student).__name__} has no head with num_classes; only detectors are measured.')
        self.inputs, self.samples = made_batch(batch, size, classes, device)

    def _student_config(self) -> dict:
        model = copy.deepcopy(self.cfg.model.architecture)
        if self.cfg.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', self.cfg.data_preprocessor)
        return model

    @contextmanager
    def _scope(self) -> Iterator[None]:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with DefaultScope.overwrite_default_scope(self.cfg.get('default_scope', 'mmdet')):
                yield
        finally:
            logging.disable(before)

    def _student(self) -> BaseModel:
        torch.manual_seed(0)
        student = MODELS.build(copy.deepcopy(self.student_cfg))
        initialise_without_download(student)
        return student

    @property
    def has_teacher(self) -> bool:
        """Whether the method has a teacher beside the student."""
        return self.cfg.model.get('teacher') is not None

    def make_teacher(self) -> BaseModel:
        """The teacher with made weights."""
        with self._scope():
            torch.manual_seed(1)
            teacher = MODELS.build(load_model_source(self.cfg.model.teacher).model)
            initialise_without_download(teacher)
        return teacher.requires_grad_(False).eval()

    def plain(self) -> Arm:
        """The student alone: forward, backward, optimiser."""
        with self._scope():
            student = self._student()
        return self._training(PLAIN, student)

    def teacher(self) -> Arm:
        """The float32 teacher as far as a stock forward must go: features, or with the dense head if it is recorded."""
        model = self.make_teacher().to(self.device)
        sources = (self.cfg.model.distiller.get('teacher_recorders') or {}).values()
        head = any('head' in r.source and not r.source.startswith('roi_head') for r in sources)

        @torch.no_grad()
        def step() -> None:
            if head:
                model(self.inputs, self.samples, mode='tensor')
            else:
                model.extract_feat(self.inputs)

        return Arm(TEACHER, step, model)

    def distilled(self, options: dict | None = None) -> Arm:
        """The configuration's own algorithm; every loss is on, whatever its schedule.

        Args:
            options: of the teacher; None takes the configuration's.
        """
        model_cfg = copy.deepcopy(self.cfg.model)
        model_cfg.architecture = self.student_cfg
        own = split_teacher(model_cfg.get('teacher'))[1]
        name = DISTILLED
        if self.has_teacher:
            given = {k: v for k, v in model_cfg.teacher.items() if k != 'config'} if own else {}
            given = given if options is None else options
            teacher = dict(config=self.make_teacher(), **given)
            name = distilled_name(split_teacher(teacher)[1])
        with self._scope():
            torch.manual_seed(0)
            arguments = dict(model_cfg)
            if self.has_teacher:
                arguments.update(teacher=teacher)
                arguments.pop('teacher_ckpt', None)
            model = MODELS.build(arguments)
            initialise_without_download(model)
        model.distiller.schedules = {}
        arm = self._training(name, model)
        arm.clock = model.clock = StepClock() if self.device != 'cpu' else StepClock(time.process_time)
        return arm

    def mmrazor(self, kind: str) -> Arm:
        """The same pair and losses in an unchanged algorithm of MMRazor.

        Args:
            kind: one of `MMRAZOR`.

        Raises:
            ValueError: the distiller says something that MMRazor's `ConfigurableDistiller` cannot.
        """
        distiller = stock_distiller(self.cfg.model.distiller)
        with self._scope():
            student = self._student()
            cfg = dict(type=f'mmrazor.{kind}', architecture=student, teacher=self.make_teacher(), distiller=distiller)
            model = MODELS.build(cfg)
        return self._training(kind, model)

    def _training(self, name: str, model: BaseModel) -> Arm:
        model.to(self.device).train()
        wrapper = copy.deepcopy(self.cfg.optim_wrapper)
        wrapper.optimizer.lr = LEARNING_RATE_FACTOR * wrapper.optimizer.lr
        if self.device == 'cpu' and wrapper.type == 'AmpOptimWrapper':
            raise ValueError('AmpOptimWrapper needs a GPU; measure on --device cuda.')
        with self._scope():
            optimizer = build_optim_wrapper(model, wrapper)

        def step() -> None:
            torch.manual_seed(2)  # the same proposals are sampled in every arm
            if hasattr(model, 'clock'):
                model.clock.begin(self.inputs.device)
            with optimizer.optim_context(model):
                losses = model(self.inputs, copied_samples(self.samples), mode='loss')
            total, _ = model.parse_losses(losses)
            optimizer.update_params(total)
            if hasattr(model, 'clock'):
                model.clock.end()

        return Arm(name, step, model)


def stock_distiller(distiller: dict) -> dict:
    """A `DetectionDistiller`'s configuration for MMRazor's `ConfigurableDistiller`.

    Raises:
        ValueError: masks, reserved records, strides, connectors without channels: MMRazor knows none of them.
    """
    for loss, entries in distiller['loss_forward_mappings'].items():
        for key, entry in entries.items():
            unknown = sorted(set(entry) & {'mask', 'other', 'strides'}) + sorted(
                {entry.get('recorder')} & {'labels', 'rois', 'data_samples'}
            )
            if unknown or entry.get('connector') is not None:
                what = unknown or ['connector']
                raise ValueError(
                    f'--against mmrazor: {loss}.{key} uses {", ".join(what)}, which has no counterpart in MMRazor '
                    '(connectors there need their channels typed). Only losses on plain records can be compared.'
                )
    kept = {
        key: copy.deepcopy(dict(distiller[key]))
        for key in ('student_recorders', 'teacher_recorders', 'distill_losses', 'loss_forward_mappings')
    }
    return dict(type='ConfigurableDistiller', _scope_='mmrazor', **kept)

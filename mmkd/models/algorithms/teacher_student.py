"""`TeacherStudentDistill`: a student detector learns from a frozen teacher beside its own loss."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmkd.models.algorithms.dry_student import prefixed, probe_student
from mmkd.models.algorithms.inherit import inherit_weights
from mmkd.models.algorithms.missing_operator import lent_operators
from mmkd.models.algorithms.plain_student import PlainStudentAlgorithm, training_progress
from mmkd.models.algorithms.probe_size import probe_input
from mmkd.models.algorithms.roi_forward import PREFIX
from mmkd.models.algorithms.teacher import Teacher
from mmkd.models.apart import own_randomness
from mmkd.registry import MODELS


@MODELS.register_module()
class TeacherStudentDistill(PlainStudentAlgorithm):
    """Trains a student with its own loss and the distillation losses of a distiller.

    The student is MMDetection's own: its checkpoint, its parameter names, its hooks and, with every distillation
    weight at 0, its losses and gradients to the last bit. The teacher is frozen, runs only as far as its last recorded
    layer, and is never saved.

    Args:
        architecture: configuration of the student or the built student.
        teacher: the teacher as `'pkg::config'`, path, configuration or built model; or `dict(config=..., precision=...,
            channels_last=..., fold_bn=..., compile=...)` to run it cheaper (`TeacherOptions`, docs/cost.md).
        distiller: configuration of a `DetectionDistiller`.
        teacher_ckpt: path or URL of the teacher's checkpoint; None takes the one that MMDetection's metafile lists.
        teacher_strict: refuse a checkpoint that does not fit the teacher.
        inherit: children of the student that start from the teacher's weights where shapes allow, such as
            `('neck', 'bbox_head')` (the "inherit" switch of FGD and ICD).
        data_preprocessor: that of a student whose configuration has none.

    Raises:
        FileNotFoundError: a configuration does not exist.
        MissingOperatorError: a layer needs a GPU, and there is none.
        TypeError: an argument has the wrong type.
        ValueError: layers, channels or names that do not fit; the message names them.
    """

    def __init__(
        self,
        architecture: dict | BaseModel,
        teacher: str | Mapping[str, Any] | BaseModel,
        distiller: dict | nn.Module,
        teacher_ckpt: str | None = None,
        teacher_strict: bool = True,
        inherit: tuple[str, ...] = (),
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(architecture, data_preprocessor)
        self._teacher = Teacher(teacher, teacher_ckpt, strict=teacher_strict)
        self.inherit = (inherit,) if isinstance(inherit, str) else tuple(inherit)
        self._renormalise = self._teacher.renormalise_from(self.architecture)
        with own_randomness():
            if isinstance(distiller, Mapping):
                distiller = ROOT_MODELS.build(distiller)
            self.add_apart('distiller', distiller)
            with lent_operators(student=self.architecture, teacher=self.teacher):
                self._connect()

    @property
    def teacher(self) -> BaseModel:
        """The frozen teacher network."""
        return self._teacher.model

    def _connect(self) -> None:
        """Attach the recorders and let both networks run dry once, so that the distiller sees the records."""
        self.distiller.prepare_from_teacher(self.teacher)
        inputs = probe_input(student=self.architecture, teacher=self.teacher)
        with self.distiller.teacher_recorders:
            sources, forget = self.distiller.module_sources(from_student=False), partial(self.distiller.release, False)
            features = self._teacher.tap(sources, inputs, forget)
        self.student_targets = probe_student(self.architecture, self.distiller, inputs)
        self._run_on_rois(features, num_images=1)
        self.distiller.connect(tuple(inputs.shape[-2:]))
        self.student_targets.release()

    def _apply(self, fn: Any, recurse: bool = True) -> 'TeacherStudentDistill':
        super()._apply(fn, recurse)
        self._teacher.move(fn)
        return self

    def _set_device(self, device: torch.device) -> None:
        """Where images go: MMEngine tells the children's preprocessors, and the teacher is no child."""
        super()._set_device(device)
        self._teacher.set_device(device)

    def init_weights(self) -> None:
        """Initialise the student as without distillation, load the teacher, hand down what is inherited."""
        super().init_weights()
        self._teacher.load()
        if self.inherit:
            inherit_weights(self.architecture, self.teacher, self.inherit)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor | list[Tensor]]:
        """One training step's losses: `student.*` as without distillation, and `distill.*`.

        Args:
            inputs: (N, 3, H, W) the student's preprocessed batch.
            data_samples: ground truth and metainfo of each image.

        Returns:
            Losses by name.
        """
        needs_teacher = self.distiller.begin_step(*training_progress())
        features = None
        if needs_teacher and not self._teacher.settled:
            self._teacher.settle(self._renormalise(inputs, data_samples), data_samples)
        if needs_teacher:
            # Closed before the student runs: recorders of functions and methods hear whoever calls them.
            with self.clock.part('teacher'), self.distiller.teacher_recorders:
                features = self._teacher.run(self._renormalise(inputs, data_samples), data_samples)
        losses = self._run_student(inputs, data_samples)
        if needs_teacher:
            with self.clock.part('teacher'):
                self._finish_teacher(features, len(inputs))
        reserved = dict(self.student_targets.records(len(inputs)), data_samples=data_samples)
        with self.clock.part('distill'):
            distilled = self.distiller.compute_distill_losses(reserved)
        self.distiller.release()
        self.student_targets.release()
        return prefixed('student', losses) | prefixed('distill', distilled)

    def _finish_teacher(self, features: Any, num_images: int) -> None:
        """What needs the student's proposals, and records as the losses expect them."""
        self._run_on_rois(features, num_images)
        if self._teacher.options:
            self.distiller.reader.convert(False, self._teacher.options.restore)

    def _run_on_rois(self, features: Any, num_images: int) -> None:
        """Record the teacher's RoI head, if it is wanted, on the student's proposals; the other records stay."""
        with ExitStack() as stack:
            for recorder in self.distiller.teacher_recorders.recorders.values():
                if recorder.source.startswith(PREFIX):
                    stack.enter_context(recorder)
            self._teacher.run_on(features, self.student_targets.records(num_images)['rois'])

    def _run_student(self, inputs: Tensor, data_samples: list) -> dict[str, Any]:
        if not any(self.distiller.active(loss) for loss in self.distiller.mappings):
            return self.architecture(inputs, data_samples, mode='loss')
        with self.distiller.student_recorders, self.student_targets:
            return self.architecture(inputs, data_samples, mode='loss')

    def runner_hooks(self) -> list[dict]:
        """As the base class, and a check of the teacher before training."""
        return [*super().runner_hooks(), dict(type='mmkd.TeacherCheckHook')]

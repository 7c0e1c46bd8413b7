"""`SelfTeacherDistill`: a network grown on the student refines its features and teaches it."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmkd.models.algorithms.dry_student import Listening, prefixed, probe_student
from mmkd.models.algorithms.grown_teacher import GrownTeacher, detach_records, grown_config
from mmkd.models.algorithms.missing_operator import lent_operators
from mmkd.models.algorithms.plain_student import PlainStudentAlgorithm, training_progress
from mmkd.models.algorithms.probe_size import probe_input
from mmkd.models.algorithms.sample_copies import copied_samples
from mmkd.models.apart import own_randomness
from mmkd.models.distillers.tapped_layers import check_layers
from mmkd.registry import MODELS

# The self-teacher's samplers draw from random state of their own, another one in each iteration.
STEP_SEED = 0x66727364


@MODELS.register_module()
class SelfTeacherDistill(PlainStudentAlgorithm):
    """Trains a student together with a self-teacher, and lets the self-teacher teach it.

    `L = L_student + w L_self-teacher + sum of the distiller's losses`, after Ji et al. 2021 (FRSKD), equation 6,
    https://arxiv.org/abs/2103.08273. Stop-gradients as the paper: what the self-teacher gives is a target, so that the
    distillation never moves it, while its own loss on the ground truth reaches the student's layers through the
    features. For detectors a re-interpretation: the paper has no detection experiment; `docs/frskd.md`.

    Nothing here knows what the student is: the self-teacher is a network of the student's own class, with its
    backbone replaced by the refined features, heads of its own and its own `loss`. After training only the student is
    left; its inference costs what it costs without distillation.

    Args:
        architecture: configuration of the student.
        self_teacher: configuration of the refining network, such as `BiFPNSelfTeacher`.
        distiller: configuration of a `DetectionDistiller`. The teacher's layers are those of the self-teacher: its
            refined features are the output of `backbone`, its heads have the student's names.
        source: the student's layer whose output, a tuple of levels, is refined.
        changes: changes to the self-teacher's configuration: `{'head.in_channels': 1024}`, or nested dicts. In this
            project's trials a head wider than a small student's made the better teacher, `docs/frskd.md`.
        self_teacher_weight: w, >= 0; with 0 the self-teacher is not trained.
        data_preprocessor: that of a student whose configuration has none.

    Raises:
        MissingOperatorError: a layer needs a GPU, and there is none.
        TypeError: an argument has the wrong type.
        ValueError: layers, channels or names that do not fit, or a negative weight.
    """

    def __init__(
        self,
        architecture: dict,
        self_teacher: dict,
        distiller: dict | nn.Module,
        source: str = 'neck',
        changes: Mapping[str, Any] | None = None,
        self_teacher_weight: float = 1.0,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        if not isinstance(architecture, Mapping):
            raise TypeError(
                f'architecture must be a config, from which the self-teacher is built, got {type(architecture)}.'
            )
        if self_teacher_weight < 0:
            raise ValueError(f'self_teacher_weight must be >= 0, got {self_teacher_weight}.')
        super().__init__(architecture, data_preprocessor)
        self.source = source
        self.self_teacher_weight = self_teacher_weight
        check_layers(self.architecture, [source], 'student')
        with own_randomness():
            if isinstance(distiller, Mapping):
                distiller = ROOT_MODELS.build(distiller)
            self.add_apart('distiller', distiller)
            self._connect(lambda features: grown_config(architecture, self_teacher, source, features, changes or {}))

    def _connect(self, config: Any) -> None:
        layer = self.architecture.get_submodule(self.source)
        with Listening(layer) as heard, lent_operators(student=self.architecture):
            inputs = probe_input(student=self.architecture)
            self.student_targets = probe_student(self.architecture, self.distiller, inputs, sources=(self.source,))
        if not isinstance(heard.output, list | tuple):
            raise ValueError(f'source={self.source!r} must give a tuple of levels, it gives {type(heard.output)}.')
        grown = GrownTeacher(config(heard.output))
        self.add_apart('self_teacher', grown.to(inputs.device))
        with lent_operators(self_teacher=grown):
            grown.connect(self.distiller, inputs, heard.output, self.student_targets.records(1)['rois'])
        self.distiller.connect(tuple(inputs.shape[-2:]))
        self.student_targets.release()

    def listen_again(self) -> None:
        """As the base class, and for the self-teacher."""
        super().listen_again()
        self.distiller.listen_again(self.self_teacher.model, from_student=False)

    def idle_parameters(self) -> list[nn.Parameter]:
        """As the base class, and those of a self-teacher that is not trained."""
        own = list(self.self_teacher.parameters()) if self.self_teacher_weight == 0 else []
        return super().idle_parameters() + own

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Any]:
        """One training step's losses: `student.*` as without distillation, `self_teacher.*` and `distill.*`.

        Args:
            inputs: (N, 3, H, W) the preprocessed batch.
            data_samples: ground truth and metainfo of each image.

        Returns:
            Losses by name.
        """
        teaches = self.distiller.begin_step(*training_progress())
        untouched = copied_samples(data_samples)
        recorded = any(self.distiller.active(loss) for loss in self.distiller.mappings)
        layer = self.architecture.get_submodule(self.source)
        with (
            Listening(layer) as heard,
            self.distiller.student_recorders if recorded else nullcontext(),
            self.student_targets if recorded else nullcontext(),
        ):
            losses = self.architecture(inputs, data_samples, mode='loss')
        targets = self.student_targets.records(len(inputs))
        rois = targets['rois'] if teaches else None
        with self.clock.part('teacher'):
            own = self._run_self_teacher(heard.output, inputs, untouched, rois, teaches)
        with self.clock.part('distill'):
            distilled = self.distiller.compute_distill_losses(dict(targets, data_samples=data_samples))
        self.distiller.release()
        self.student_targets.release()
        return prefixed('student', losses) | prefixed('self_teacher', own) | prefixed('distill', distilled)

    def _run_self_teacher(
        self, features: Any, inputs: Tensor, data_samples: list, rois: Tensor | None, teaches: bool
    ) -> dict[str, Any]:
        """The self-teacher's own losses; its records are targets afterwards."""
        trained = self.self_teacher_weight != 0
        own: dict[str, Any] = {}
        if trained or teaches:
            seed = STEP_SEED + training_progress()[1]
            self.self_teacher.follow(self.architecture)
            with self.distiller.teacher_recorders if teaches else nullcontext(), torch.set_grad_enabled(trained):
                with own_randomness(seed):
                    own, refined = self.self_teacher.run(features, inputs, data_samples)
                if teaches:
                    self.self_teacher.run_on(self.distiller, refined, rois)
                    detach_records(self.distiller)
        if not trained:
            # Several processes need every parameter in the graph of every step.
            return dict(loss_off=0 * sum(p.sum() for p in self.self_teacher.parameters()))
        return {
            name: _scaled(value, self.self_teacher_weight) if 'loss' in name else value for name, value in own.items()
        }


def _scaled(value: Any, weight: float) -> Any:
    if weight == 1:
        return value
    return [weight * part for part in value] if isinstance(value, list | tuple) else weight * value

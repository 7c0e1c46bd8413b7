"""`MultiScaleSelfDistill`: the levels of a student's pyramid teach each other, without a teacher."""

from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmkd.models.algorithms.dry_student import prefixed, probe_student
from mmkd.models.algorithms.missing_operator import lent_operators
from mmkd.models.algorithms.plain_student import PlainStudentAlgorithm, training_progress
from mmkd.models.algorithms.probe_size import probe_input
from mmkd.models.apart import own_randomness
from mmkd.models.connectors.cross_scale import CrossScaleConnector
from mmkd.registry import MODELS


@MODELS.register_module()
class MultiScaleSelfDistill(PlainStudentAlgorithm):
    """Trains a student with its own loss and losses between its own records.

    Multi-scale self-distillation after Jia et al. 2024, https://doi.org/10.1007/s44267-024-00040-3: a
    re-interpretation, since only the abstract was at hand; `docs/mssd.md` lists what was chosen. Which level teaches
    which is said by a pair of `CrossScaleConnector`s, where by a mask, how much by the loss and its schedule.
    The teaching side gets no gradient. Checkpoint, parameter names and hooks are the plain student's; with weight
    0 its losses and gradients are too, to the last bit.

    Args:
        architecture: configuration of the student or the built student.
        distiller: configuration of a `DetectionDistiller` whose records are all the student's.
        data_preprocessor: that of a student whose configuration has none.

    Raises:
        MissingOperatorError: a layer needs a GPU, and there is none.
        TypeError: an argument has the wrong type.
        ValueError: a record of a teacher, or layers, channels or names that do not fit.
    """

    def __init__(
        self,
        architecture: dict | BaseModel,
        distiller: dict | nn.Module,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(architecture, data_preprocessor)
        with own_randomness():
            if isinstance(distiller, Mapping):
                distiller = ROOT_MODELS.build(distiller)
            if distiller.recorders(from_student=False).recorders:
                raise ValueError('MultiScaleSelfDistill has no teacher: leave out teacher_recorders.')
            self.add_apart('distiller', distiller)
            with lent_operators(student=self.architecture):
                self._connect()

    def _connect(self) -> None:
        inputs = probe_input(student=self.architecture)
        self.student_targets = probe_student(self.architecture, self.distiller, inputs)
        self.distiller.connect(tuple(inputs.shape[-2:]))
        for loss, sources in self.distiller.mappings.items():
            name = sources['preds_S'].connector if 'preds_S' in sources else None
            connector = self.distiller.connectors[name] if name is not None else None
            if isinstance(connector, CrossScaleConnector):
                self.distiller.level_names[loss] = connector.pair_names(self.distiller.level_names[loss])
        self.student_targets.release()

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Any]:
        """One training step's losses: `student.*` as without distillation, and `distill.*`.

        Args:
            inputs: (N, 3, H, W) the preprocessed batch.
            data_samples: ground truth and metainfo of each image, boxes in px of `inputs`.

        Returns:
            Losses by name.
        """
        self.distiller.begin_step(*training_progress())
        if any(self.distiller.active(loss) for loss in self.distiller.mappings):
            with self.distiller.student_recorders, self.student_targets:
                losses = self.architecture(inputs, data_samples, mode='loss')
        else:
            losses = self.architecture(inputs, data_samples, mode='loss')
        reserved = dict(self.student_targets.records(len(inputs)), data_samples=data_samples)
        with self.clock.part('distill'):
            distilled = self.distiller.compute_distill_losses(reserved)
        self.distiller.release()
        self.student_targets.release()
        return prefixed('student', losses) | prefixed('distill', distilled)

"""A self-teacher grown on a student: a network of the student's own class on the student's own features."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmkd.models.algorithms.dry_student import Listening
from mmkd.models.algorithms.roi_forward import PREFIX, RoIForward
from mmkd.models.algorithms.tapped_forward import TappedForward, blank_samples
from mmkd.models.apart import SavedApart
from mmkd.models.self_teachers.grown_features import GrownFeatures


def grown_config(
    architecture: Mapping, refine: Mapping, source: str, features: Sequence[Tensor], changes: Mapping
) -> ConfigDict:
    """Configuration of the self-teacher.

    It is the student's, with `GrownFeatures` in place of the backbone, and without what lies between the backbone and
    the layer whose features are refined, or a data preprocessor of its own.

    Args:
        architecture: configuration of the student.
        refine: configuration of the refining network.
        source: layer of the student whose output is refined: `backbone`, or a layer behind it such as `neck`.
        features: that output, one map a level.
        changes: further changes by key (`bbox_head.in_channels`), as `--cfg-options`.
    """
    model = copy.deepcopy(dict(architecture))
    for name in ('data_preprocessor', 'init_cfg', 'pretrained'):
        model.pop(name, None)
    model[source.split('.')[0]] = None
    model['backbone'] = dict(
        type=GrownFeatures,
        refine=dict(refine),
        in_channels=tuple(level.shape[1] for level in features),
        coarse_first=features[0].shape[2] < features[-1].shape[2],
    )
    cfg = Config(dict(model=model))
    if changes:
        cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    return cfg.model


class GrownTeacher(SavedApart):
    """The self-teacher's network, and which of its records a step needs.

    Args:
        config: what `grown_config` gave.
    """

    def __init__(self, config: ConfigDict) -> None:
        super().__init__()
        self.model: BaseModel = ROOT_MODELS.build(config)

    def _features_layer(self) -> nn.Module:
        return self.model.neck if getattr(self.model, 'neck', None) is not None else self.model.backbone

    def connect(self, distiller: nn.Module, inputs: Tensor, features: Any, rois: Tensor | None) -> None:
        """Attach the distiller's recorders and run dry once, so that they hold one record; keeps statistics.

        Args:
            distiller: a `DetectionDistiller`; its teacher's layers are this network's.
            inputs: (N, 3, H, W) the student's batch.
            features: the student's features of it.
            rois: (R, 5) the student's proposals, where a layer of the RoI head is recorded.

        Raises:
            ValueError: a layer does not exist or never runs.
        """
        distiller.prepare_from_teacher(self.model)
        sources = distiller.module_sources(from_student=False)
        self._on_rois = RoIForward(self.model, sources)
        probe = TappedForward(self.model, set(sources) - set(self._on_rois.sources))
        training = self.model.training
        self.model.eval().backbone.give(features)
        with torch.no_grad(), distiller.teacher_recorders, Listening(self._features_layer()) as heard:
            probe.probe(inputs, blank_samples(inputs), forget=partial(distiller.release, False))
            if self._on_rois:
                self._on_rois(heard.output, rois)
        self.model.train(training).backbone.give(None)
        probe.close()

    @property
    def reads_rois(self) -> bool:
        """Whether a layer of the RoI head is recorded, so that the student's proposals are needed."""
        return bool(self._on_rois)

    def follow(self, student: nn.Module) -> None:
        """Take over what hooks have switched on the student: `YOLOXModeSwitchHook` sets `use_l1` of its head."""
        head, own = getattr(student, 'bbox_head', None), getattr(self.model, 'bbox_head', None)
        if hasattr(head, 'use_l1') and hasattr(own, 'use_l1'):
            own.use_l1 = head.use_l1

    def run(self, features: Any, inputs: Tensor, data_samples: list) -> tuple[dict[str, Any], Any]:
        """The self-teacher's own losses on the ground truth, and the features its head read."""
        self.model.backbone.give(features)
        with Listening(self._features_layer()) as heard:
            losses = self.model(inputs, data_samples, mode='loss')
        self.model.backbone.give(None)
        return losses, heard.output

    def run_on(self, distiller: nn.Module, features: Any, rois: Tensor | None) -> None:
        """Record the RoI head, if it is wanted, on the student's proposals instead of the self-teacher's own."""
        if not self._on_rois:
            return
        for recorder in distiller.teacher_recorders.recorders.values():
            if recorder.source.startswith(PREFIX):
                recorder.reset_data_buffer()
        with torch.no_grad():
            self._on_rois(features, rois)


def detach_records(distiller: nn.Module) -> None:
    """Cut the self-teacher's records from its graph: whatever the losses do, they never move it."""
    for recorder in distiller.teacher_recorders.recorders.values():
        recorder.data_buffer[:] = [_detached(record) for record in recorder.data_buffer]


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)(_detached(item) for item in value)
    return value

"""What algorithms without a teacher share: the student's dry forward, and listening to one of its layers."""

from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmkd.models.algorithms.roi_forward import PREFIX
from mmkd.models.algorithms.student_targets import StudentTargets, wanted_records
from mmkd.models.algorithms.tapped_forward import TappedForward, blank_samples


class Listening:
    """Keeps what a layer gives while the context is open.

    Args:
        layer: any module; its last output counts.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.output: Any = None

    def __enter__(self) -> 'Listening':
        """Start listening."""
        self._handle = self.layer.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exc: Any) -> None:
        """Stop listening; the output stays."""
        self._handle.remove()

    def _keep(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.output = outputs


def probe_student(student: BaseModel, distiller: nn.Module, inputs: Tensor, *, sources: tuple = ()) -> StudentTargets:
    """Attach the distiller's recorders to the student and let it run dry once, so that they hold one record.

    Args:
        student: left in the mode and with the statistics that it had.
        distiller: a `DetectionDistiller`.
        inputs: (N, 3, H, W) any batch.
        sources: further layers that the forward must reach.

    Returns:
        What listens to the student's own targets.

    Raises:
        ValueError: a layer does not exist or never runs.
    """
    distiller.prepare_from_student(student)
    on_rois = any(name.startswith(PREFIX) for name in distiller.module_sources(from_student=False))
    targets = StudentTargets(student, wanted_records(distiller.mappings) | ({'rois'} if on_rois else set()))
    probe = TappedForward(student, [*distiller.module_sources(from_student=True), *sources])
    training = student.training
    student.eval()
    with torch.no_grad(), distiller.student_recorders, targets:
        probe.probe(inputs, blank_samples(inputs), forget=partial(distiller.release, True), whole=on_rois)
    student.train(training)
    probe.close()
    return targets


def prefixed(prefix: str, losses: dict[str, Any]) -> dict[str, Any]:
    """Entries named `prefix.name`."""
    return {f'{prefix}.{name}': value for name, value in losses.items()}

"""What the student's own loss decides on the way: the proposals it samples and the classes it assigns.

Shapes: `N` images, `R` RoIs of the batch, `P` points (anchors) of the batch in the order image, level, row, column,
anchor; `K` classes, so that label `K` is background.
"""

from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorHead, ATSSHead, FCOSHead, GFLHead, YOLOXHead
from torch import Tensor, nn

from mmkd.models.distillers.wiring import Source, all_sources


def _by_level(labels: list[Tensor], num_images: int) -> Tensor:
    # L x (N, points of the level) -> (P,)
    return torch.cat([level.reshape(num_images, -1) for level in labels], dim=1).flatten()


def _anchor_labels(results: list[tuple], head: nn.Module) -> Tensor:
    labels = results[-1][1 if isinstance(head, ATSSHead | GFLHead) else 0]
    return _by_level(labels, len(labels[0]))


def _yolox_labels(results: list[tuple], head: nn.Module) -> Tensor:
    # N x (foreground (points,), one-hot classes times IoU (foreground, K), ...) -> (P,)
    labels = []
    for foreground, classes, *_ in results:
        image = torch.full(foreground.shape, head.num_classes, dtype=torch.long, device=foreground.device)
        if len(classes):
            image[foreground.bool()] = classes.argmax(dim=1)
        labels.append(image)
    return torch.cat(labels)


class StudentTargets:
    """Listens to the student's loss for the reserved records `rois` and `labels`.

    `rois` (R, 5) are the student's sampled proposals (image index and box in px of the padded input). `labels` are the
    classes assigned to them, (R,), or for a dense head to its points, (P,). Only what the distiller asks for is kept.
    Use it as a context around the student's forward.

    Args:
        student: a detector of MMDetection.
        wanted: names of reserved records that some loss or the teacher's RoI head needs.

    Raises:
        ValueError: the student has no such target, or its head is of an unknown kind.
    """

    def __init__(self, student: nn.Module, wanted: set[str]) -> None:
        self.student = student
        self.wanted = wanted & {'rois', 'labels'}
        self._rois: Tensor | None = None
        self._results: list[tuple] = []
        self._listening = False
        if 'rois' in self.wanted:
            extractor = getattr(getattr(student, 'roi_head', None), 'bbox_roi_extractor', None)
            if extractor is None or isinstance(extractor, nn.ModuleList):
                raise ValueError(
                    f'{type(student).__name__} samples no proposals in a single RoI head: no record "rois".'
                )
            extractor.register_forward_hook(self._keep_rois)
        self._head, self._method, self._read = self._label_source() if 'labels' in self.wanted else (None, '', None)

    def _label_source(self) -> tuple[nn.Module, str, Callable | None]:
        roi_head = getattr(self.student, 'roi_head', None)
        if roi_head is not None and not isinstance(roi_head.bbox_head, nn.ModuleList):
            return roi_head.bbox_head, 'get_targets', None
        head = getattr(self.student, 'bbox_head', None)
        if isinstance(head, YOLOXHead):
            return head, '_get_targets_single', _yolox_labels
        if isinstance(head, AnchorHead):
            return head, 'get_targets', _anchor_labels
        if isinstance(head, FCOSHead):
            return head, 'get_targets', None
        raise ValueError(
            f'The record "labels" is known for single RoI heads and for RetinaNet, ATSS, GFL, FCOS and YOLOX heads, '
            f'not for {type(head or roi_head).__name__}.'
        )

    def _keep_rois(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        if self._listening:
            self._rois = inputs[1].detach()

    def __enter__(self) -> 'StudentTargets':
        """Start listening."""
        self._listening = True
        if self._head is not None:
            method = getattr(self._head, self._method)

            def kept(*args: Any, **kwargs: Any) -> Any:
                result = method(*args, **kwargs)
                self._results.append(result)
                return result

            self._head.__dict__[self._method] = kept
        return self

    def __exit__(self, *exc: Any) -> None:
        """Stop listening and leave the head as it was."""
        self._listening = False
        if self._head is not None:
            self._head.__dict__.pop(self._method, None)

    def records(self, num_images: int) -> dict[str, Tensor | None]:
        """What was heard in the last forward; None for what nobody wanted or nobody said."""
        labels = None
        if self._results:
            if self._read is not None:
                labels = self._read(self._results, self._head)
            elif isinstance(self._head, FCOSHead):
                labels = _by_level(self._results[-1][0], num_images)
            else:
                labels = self._results[-1][0]
        return dict(rois=self._rois, labels=labels)

    def release(self) -> None:
        """Forget the last forward."""
        self._rois, self._results = None, []


def wanted_records(mappings: dict[str, dict[str, Source]]) -> set[str]:
    """Names of the reserved records that some loss reads."""
    return {source.recorder for source in all_sources(mappings) if source.recorder in ('rois', 'labels')}

"""What the student's own loss decides on the way: the proposals it samples and the classes it assigns.

Shapes: `N` images, `R` RoIs of the batch, `P` points (anchors) of the batch in the order image, level, row, column,
anchor; `K` classes, so that label `K` is background.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead, GFLHead, RTMDetHead, YOLOXHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from torch import Tensor, nn

from mmkd.models.distillers.wiring import Source, all_sources

# Head that defines both `get_targets` and the loss that calls it -> where its labels stand in what that gives. A
# subclass with targets or a loss of its own (YOLOF, PAA, TOOD, VFNet, ...) puts something else there or never asks.
_LABELS_AT: dict[type, int] = {AnchorHead: 0, ATSSHead: 1, GFLHead: 1, RTMDetHead: 1, FCOSHead: 0}


def _owner(head: type, method: str) -> type | None:
    return next((cls for cls in head.__mro__ if method in vars(cls)), None)


def label_reader(head: type) -> tuple[str, Callable] | None:
    """How the classes that a dense head assigns to its points are heard.

    Args:
        head: class of the head.

    Returns:
        Name of the method to listen to, and the function that makes (P,) labels from its results, the head and the
        number of images; None for a head that is not known.
    """
    loss = _owner(head, 'loss_by_feat')
    if loss is YOLOXHead and _owner(head, '_get_targets_single') is YOLOXHead:
        return '_get_targets_single', _yolox_labels
    if loss in _LABELS_AT and _owner(head, 'get_targets') is loss:
        return 'get_targets', partial(_level_labels, _LABELS_AT[loss])
    return None


def _level_labels(index: int, results: list[tuple], head: nn.Module, num_images: int) -> Tensor:
    # L x (N, points of the level), or their flattened form, -> (P,)
    return torch.cat([level.reshape(num_images, -1) for level in results[-1][index]], dim=1).flatten()


def _yolox_labels(results: list[tuple], head: nn.Module, num_images: int) -> Tensor:
    # N x (foreground (points,), one-hot classes times IoU (foreground, K), ...) -> (P,)
    labels = []
    for foreground, classes, *_ in results:
        image = torch.full(foreground.shape, head.num_classes, dtype=torch.long, device=foreground.device)
        if len(classes):
            # SimOTA takes a point for every box, be its IoU 0: the row is then 0 and says no class.
            own = torch.where(classes.amax(dim=1) > 0, classes.argmax(dim=1), -1)
            image.masked_scatter_(foreground.bool(), own)  # `image[foreground] = own` would wait for a GPU
        labels.append(image)
    return torch.cat(labels)


def _roi_labels(results: list[tuple], head: nn.Module, num_images: int) -> Tensor:
    return results[-1][0]


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
        self._head, self._method, self._read = None, '', _roi_labels
        if 'labels' in self.wanted:
            self._head, self._method, self._read = self._label_source()

    def _label_source(self) -> tuple[nn.Module, str, Callable]:
        roi_head = getattr(self.student, 'roi_head', None)
        if roi_head is not None and not isinstance(roi_head.bbox_head, nn.ModuleList):
            return roi_head.bbox_head, 'get_targets', _roi_labels
        head = getattr(self.student, 'bbox_head', None)
        reader = label_reader(type(head))
        if reader is None or not head.use_sigmoid_cls:
            raise ValueError(
                f'The record "labels" is known for single RoI heads and for RetinaNet, ATSS, GFL, RTMDet, FCOS and '
                f'YOLOX heads with one sigmoid a class, not for {type(head or roi_head).__name__}'
                f'{"" if reader is None else " with a softmax"}. Compare features instead (ikd_neck, mkd_neck, frskd).'
            )
        return head, *reader

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
        labels = self._read(self._results, self._head, num_images) if self._results else None
        return dict(rois=self._rois, labels=labels)

    def release(self) -> None:
        """Forget the last forward."""
        self._rois, self._results = None, []


def wanted_records(mappings: dict[str, dict[str, Source]]) -> set[str]:
    """Names of the reserved records that some loss reads."""
    return {source.recorder for source in all_sources(mappings) if source.recorder in ('rois', 'labels')}

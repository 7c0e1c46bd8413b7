"""Which method file suits a pair: `ikd`, `mkd` and `frskd` have one for every kind of head.

| method | dense heads of one kind | single RoI heads | anything else |
| --- | --- | --- | --- |
| `ikd` | `ikd` | `ikd_roi` | `ikd_neck` |
| `mkd` | `mkd` | `mkd_roi` | `mkd_neck` |
| `frskd` | `frskd_dense` | `frskd_roi` | `frskd` (attention maps alone); classifiers: `frskd_classifier` |

`frskd` has no teacher, so that the student's head alone counts. `frskd_fit` and the other stems are taken as they
are; `NAME.py` names exactly that file.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import mmdet.models  # noqa: F401 registers the heads
from mmdet.registry import MODELS

from mmkd.models.algorithms.student_targets import label_reader

HeadKind = Literal['dense', 'roi', 'classifier', 'other']

# Method -> kind of head -> stem of the file.
_FILES: dict[str, dict[str, str]] = {
    'ikd': dict(dense='ikd', roi='ikd_roi', other='ikd_neck'),
    'mkd': dict(dense='mkd', roi='mkd_roi', other='mkd_neck'),
    'frskd': dict(dense='frskd_dense', roi='frskd_roi', classifier='frskd_classifier', other='frskd'),
}
_OF_THE_STUDENT_ALONE = ('frskd',)
# Methods without a teacher: their algorithm, with what it needs beside student and distiller.
SELF_DISTILLATION: dict[str, dict[str, Any]] = {
    'mssd': dict(type='mmkd.MultiScaleSelfDistill'),
    'frskd': dict(
        type='mmkd.SelfTeacherDistill',
        self_teacher=dict(type='mmkd.ResidualBiFPNSelfTeacher', num_layers=2, norm='GN'),
    ),
}
# MMDetection's usual widths. A self-teacher whose head is as narrow as a small student's was no better a detector than
# plain training makes, and taught nothing (docs/frskd.md).
_USUAL_WIDTHS = {'bbox_head.feat_channels': 256, 'roi_head.bbox_head.fc_out_channels': 1024}
WIDER = 4
# What must agree for two heads to put the same meaning into the same number; a missing key is the head's default.
_SAME_IN_DENSE = ('type', 'num_classes', 'anchor_generator', 'strides', 'regress_ranges')


def method_file(method: str, student: Mapping[str, Any], teacher: Mapping[str, Any] | None = None) -> str:
    """The file that a method means for a pair.

    Args:
        method: Name such as `ikd`, a stem such as `ikd_neck`, or `ikd.py` for exactly that file.
        student: Model config of the detector.
        teacher: Model config of the teacher; None where there is none or it is not known, which counts as one of the
            student's kind.

    Returns:
        Stem of a file in `configs/_base_/methods`; a name that has no choice is returned as it is.
    """
    if method.endswith('.py'):
        return method.removesuffix('.py')
    files = _FILES.get(method)
    if files is None:
        return method
    kind = head_kind(student)
    if method not in _OF_THE_STUDENT_ALONE and teacher is not None and not same_heads(student, teacher):
        kind = 'other'
    return files.get(kind, files['other'])


def method_family(stem: str) -> str:
    """The method that a stem belongs to: `ikd` for `ikd_neck`."""
    return stem.removesuffix('.py').split('_')[0]


def method_algorithm(stem: str, student: Mapping[str, Any]) -> dict[str, Any]:
    """The algorithm that runs a method file.

    Args:
        stem: such as `ikd_neck`.
        student: Model config of the student.

    Returns:
        A new dict of `type`, and what that algorithm needs beside student, teacher and distiller. A self-teacher's head
        is `WIDER` times as wide as the student's, as far as MMDetection's usual width.
    """
    family = method_family(stem)
    settings = copy.deepcopy(SELF_DISTILLATION.get(family, dict(type='mmkd.TeacherStudentDistill')))
    changes = wider_head(student) if 'self_teacher' in settings else {}
    return dict(settings, changes=changes) if changes else settings


def wider_head(student: Mapping[str, Any]) -> dict[str, Any]:
    """Changes that make a narrow head wider, as `SelfTeacherDistill` takes them; empty where it has the usual width.

    Args:
        student: Model config, whose head says its width.
    """
    changes: dict[str, Any] = {}
    for key, usual in _USUAL_WIDTHS.items():
        *path, last = key.split('.')
        head: Any = student
        for part in path:
            head = head.get(part) if isinstance(head, Mapping) else None
        width = head.get(last) if isinstance(head, Mapping) else None
        if isinstance(width, int) and 0 < width <= usual // 2:
            changed: Any = min(WIDER, usual // width) * width
            for part in [last, *reversed(path)]:
                changed = {part: changed}
            changes |= changed
    return changes


def head_kind(model: Mapping[str, Any]) -> HeadKind:
    """What a model's logits are.

    Args:
        model: Model config.

    Returns:
        `dense`: one sigmoid a class on every point, of a head whose assigned points are known; `roi`: softmax in a
        single RoI head; `classifier`; `other`.
    """
    roi_head, bbox_head, head = (model.get(key) for key in ('roi_head', 'bbox_head', 'head'))
    if roi_head is not None:
        box = roi_head.get('bbox_head')
        single = isinstance(box, Mapping) and isinstance(roi_head.get('bbox_roi_extractor'), Mapping)
        return 'roi' if single and not _uses_sigmoid(box, default=False) else 'other'
    if isinstance(bbox_head, Mapping):
        return 'dense' if _is_dense(bbox_head) and _uses_sigmoid(bbox_head, default=True) else 'other'
    if isinstance(head, Mapping) and str(model.get('type')).endswith('Classifier'):
        return 'classifier'
    return 'other'


def same_heads(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two detectors' logits can be compared number by number.

    Args:
        one: Model config.
        other: Model config.

    Returns:
        True for dense heads of one type with the same anchors, and for single RoI heads, with the same classes.
    """
    kind = head_kind(one)
    if kind not in ('dense', 'roi') or kind != head_kind(other):
        return False
    if kind == 'roi':
        boxes = [model['roi_head']['bbox_head'] for model in (one, other)]
        return boxes[0].get('num_classes') == boxes[1].get('num_classes')
    heads = [model['bbox_head'] for model in (one, other)]
    return all(_plain(heads[0].get(key)) == _plain(heads[1].get(key)) for key in _SAME_IN_DENSE)


def _is_dense(head: Mapping[str, Any]) -> bool:
    kind = head.get('type')
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and label_reader(found) is not None


def _uses_sigmoid(head: Mapping[str, Any], *, default: bool) -> bool:
    loss = head.get('loss_cls')
    return bool(loss.get('use_sigmoid', False)) if isinstance(loss, Mapping) else default


def _plain(value: Any) -> Any:
    """Lists and tuples alike: a config that was written to a file and read again has lists."""
    if isinstance(value, Mapping):
        return {key: _plain(inside) for key, inside in value.items()}
    return [_plain(inside) for inside in value] if isinstance(value, list | tuple) else value

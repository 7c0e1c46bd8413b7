"""Which classes a detector predicts and a data set has, and which of a detector's layers tell them apart.

`K` is the number of foreground classes of a head, `A` its number of priors (anchors or points) per cell.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import RPN
from torch import nn

# Words in the names of layers that predict boxes or how good a box is, all of them without classes in one-stage heads.
_BOX_WORDS = ('reg', 'bbox', 'centerness', 'iou', 'obj', 'wh_head', 'offset', 'pts')
_SIZES = ('out_channels', 'out_features', 'num_features')
_WIDTHS = ('feat_channels', 'conv_out_channels', 'fc_out_channels', 'embed_dims')


def num_classes(model: nn.Module) -> int | None:
    """Foreground classes that a detector's (last) classification head predicts; None if it has no such head."""
    head = getattr(model, 'bbox_head', None)
    roi_head = getattr(model, 'roi_head', None)
    if head is None and roi_head is not None:
        head = roi_head.bbox_head
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    return getattr(head, 'num_classes', None)


def classes_by_set(dataset: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Names of the classes of a data set, or of every data set that it joins.

    MMDetection's `ConcatDataset` has one `metainfo` for all its parts only where these agree in every key.

    Args:
        dataset: any data set; wrappers are opened where several data sets are inside.

    Returns:
        One entry a data set, as (what to call it, its classes); those without classes are left out.
    """
    found = []
    for part in _parts(dataset):
        metainfo = getattr(part, 'metainfo', None) or {}
        for one in [metainfo] if isinstance(metainfo, Mapping) else metainfo:
            classes = one.get('classes') or ()
            found.append((part, (classes,) if isinstance(classes, str) else tuple(classes)))
    names = [f'data set {n} of {len(found)} ({_described(part)})' for n, (part, _) in enumerate(found, 1)]
    return [(name, classes) for name, (_, classes) in zip(names, found, strict=True) if classes]


def _parts(dataset: Any) -> list[Any]:
    """The data sets that a wrapper joins; one alone stays in its wrappers, which may rename its classes."""
    if getattr(dataset, 'datasets', None):
        return [part for one in dataset.datasets for part in _parts(one)]
    inner = _parts(dataset.dataset) if hasattr(dataset, 'dataset') else []
    return inner if len(inner) > 1 else [dataset]


def _described(dataset: Any) -> str:
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    file = getattr(dataset, 'ann_file', None)
    return type(dataset).__name__ + (f', {file}' if file else '')


def differing_sets(sets: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    """What sets a data set of `classes_by_set` apart from the first of them, in words; nothing where all agree."""
    for name, classes in sets[1:]:
        if classes != sets[0][1]:
            yield f'{name} has the classes {classes}, but {sets[0][0]} has {sets[0][1]}'


def reads_text(model: nn.Module) -> bool:
    """Whether a detector is open-vocabulary: the classes are words that it reads, `num_classes` a number of tokens."""
    return hasattr(model, 'language_model')


def owning_head(model: nn.Module, name: str) -> tuple[str, nn.Module] | None:
    """The innermost module with `num_classes` around a layer (or the layer itself), with its name; None without.

    Raises:
        AttributeError: the model has no such layer.
    """
    parts = name.split('.')
    for end in range(len(parts), 0, -1):
        outer = '.'.join(parts[:end])
        module = model.get_submodule(outer)
        if isinstance(getattr(module, 'num_classes', None), int):
            return outer, module
    return None


def gives_classes(model: nn.Module, name: str, channels: Sequence[int] = ()) -> bool:
    """Whether the output of a detector's layer has an axis that grows with the number of classes.

    True for a whole head (or what holds one), and for its layers of the size of class scores or of boxes per class.
    Feature layers inside a head, region proposal networks, boxes and centerness of one-stage heads have no such axis.

    Args:
        model: the detector.
        name: of the layer.
        channels: `C` of what the layer gave on each level, where known; else its own attributes tell.

    Raises:
        AttributeError: the model has no such layer.
    """
    owner, layer = owning_head(model, name), model.get_submodule(name)
    if 'rpn_head' in name.split('.') or finds_objects_only(model, owner and owner[1]):
        return False
    if owner is None:  # such as `roi_head`
        return 'head' in name and any(isinstance(getattr(m, 'num_classes', None), int) for m in layer.modules())
    outer, head = owner
    if outer == name:
        return True
    below = name[len(outer) + 1 :]
    sizes = set(channels) or {_output_size(layer)}
    if any(word in below for word in _BOX_WORDS):
        return bool(sizes & _sizes_of_class_boxes(head))
    in_a_stack = '.' in below  # predictors stand alone, hidden layers in lists
    hidden = {getattr(head, width, None) for width in _WIDTHS} if in_a_stack else set()
    return bool(sizes & _sizes_of_scores(head) - hidden)


def finds_objects_only(model: nn.Module, head: nn.Module | None) -> bool:
    """Region proposal networks tell objects from background; `num_classes` is 1 whatever the data set has."""
    return isinstance(model, RPN) or isinstance(head, RPNHead)


def _output_size(layer: nn.Module) -> int | None:
    for attribute in _SIZES:
        if isinstance(getattr(layer, attribute, None), int):
            return getattr(layer, attribute)
    sizes = (_output_size(child) for child in reversed(list(layer.children())))
    return next((size for size in sizes if size is not None), None)


def _sizes_of_scores(head: nn.Module) -> set[int]:
    """K or K + 1 with background, A times; YOLOv3 has boxes in the same layer."""
    classes = head.num_classes
    if not hasattr(head, 'num_base_priors'):  # heads of regions and points: some have a background, some have not
        sizes = {classes, classes + 1}
        if getattr(head, 'custom_cls_channels', False):
            sizes.add(head.loss_cls.get_cls_channels(classes))
        return sizes
    priors = head.num_base_priors
    per_prior = {getattr(head, name) for name in ('cls_out_channels', 'num_attrib') if hasattr(head, name)}
    counts = priors if isinstance(priors, list | tuple) else [priors]
    return {count * size for count in counts for size in per_prior or {classes, classes + 1}}


def _sizes_of_class_boxes(head: nn.Module) -> set[int]:
    if getattr(head, 'reg_class_agnostic', True):
        return set()
    return {getattr(getattr(head, 'bbox_coder', None), 'encode_size', 4) * head.num_classes}


def recorded_class_outputs(model: nn.Module) -> list[str]:
    """Names of the teacher's recorded layers whose output has a class axis.

    Args:
        model: an algorithm with a teacher and a distiller.
    """
    distiller, found = model.distiller, []
    sources = distiller.module_sources(from_student=False)
    for name, recorder in distiller.recorders(False).recorders.items():
        source = getattr(recorder, 'source', None)
        if source not in sources or type(recorder).__name__ == 'ModuleInputsRecorder':  # what goes in are features
            continue
        tap = distiller.taps.get((False, name))
        if gives_classes(model.teacher, source, tap.channels if tap else ()):
            found.append(source)
    return found

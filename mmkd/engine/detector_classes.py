"""Which classes a detector predicts and a data set has, and which of a detector's layers depend on their number."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import RPN
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from mmkd.models.algorithms.model_config import detected_classes
from mmkd.models.apart import own_randomness


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
            found.append((part, detected_classes(one)))
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


def finds_objects_only(model: nn.Module, head: nn.Module | None) -> bool:
    """Region proposal networks tell objects from background; `num_classes` is 1 whatever the data set has."""
    return isinstance(model, RPN) or isinstance(head, RPNHead)


def class_parameters(model: nn.Module, config: Mapping[str, Any]) -> set[str] | None:
    """Names of a detector's parameters whose shape follows from the number of its classes.

    Found by building the detector once more, for one class more.

    Args:
        model: the detector.
        config: its configuration; empty for a model that was built elsewhere.

    Returns:
        Names as in `named_parameters`; None where the configuration names no number of classes, or the detector
        cannot be built for another.
    """
    changed = _one_class_more(ConfigDict(config))
    if changed == config:
        return None
    try:
        with own_randomness():
            other = ROOT_MODELS.build(copy.deepcopy(changed))
    except Exception:  # of any detector: weights a class that are given as a list, say
        return None
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    return {name for name, parameter in model.named_parameters() if shapes.get(name) != parameter.shape}


def _one_class_more(config: Any) -> Any:
    if isinstance(config, Mapping):
        changed = {key: _one_class_more(value) for key, value in config.items()}
        if isinstance(config.get('num_classes'), int):
            changed['num_classes'] = config['num_classes'] + 1
        return type(config)(changed)
    return type(config)(map(_one_class_more, config)) if isinstance(config, list | tuple) else config


def gives_classes(model: nn.Module, layer: str, parameters: set[str] | None) -> bool:
    """Whether the output of a detector's layer depends on the number of classes.

    It does where a parameter of the layer (or of one inside) does. Where that could not be found out, every layer of a
    head that has `num_classes` is taken for one.

    Args:
        model: the detector.
        layer: its name.
        parameters: what `class_parameters` found.
    """
    if parameters is not None:
        return any(name.startswith(f'{layer}.' if layer else '') for name in parameters)
    around = [model.get_submodule(layer.rsplit('.', end)[0]) for end in range(layer.count('.') + 1)]
    heads = [module for module in (*around, *model.get_submodule(layer).modules()) if hasattr(module, 'num_classes')]
    return any(not finds_objects_only(model, head) for head in heads)


def recorded_class_outputs(model: nn.Module) -> list[str]:
    """Names of the teacher's recorded layers whose output depends on the number of classes.

    Args:
        model: an algorithm with a teacher and a distiller.
    """
    recorders = model.distiller.recorders(False).recorders.values()
    outputs = [r for r in recorders if hasattr(r, 'forward_hook') and type(r).__name__ != 'ModuleInputsRecorder']
    layers = [recorder.source for recorder in outputs]  # what goes into a layer are features
    if not layers:
        return []
    parameters = class_parameters(model.teacher, model._teacher.source.model)
    return [layer for layer in layers if gives_classes(model.teacher, layer, parameters)]

"""Mistakes that can be found before any long work: paths, class names and counts, checkpoints, work directory.

Everything is checked, and everything wrong is said at once.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmkd import compat
from mmkd.engine.student_config import is_distillation
from mmkd.models.algorithms.model_config import load_model_source
from mmkd.models.algorithms.teacher import CheckpointMismatchError, load_strictly
from mmkd.models.apart import own_randomness
from mmkd.models.distillers.wiring import nearest

CHECKPOINT_ERRORS = (FileNotFoundError, compat.UnsafeCheckpointError, CheckpointMismatchError)


class PreflightError(ValueError):
    """A configuration that cannot be trained as it stands."""


def _datasets(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    for name in ('train_dataloader', 'val_dataloader'):
        loader = cfg.get(name)
        pending = [loader.dataset] if loader else []
        while pending:
            dataset = pending.pop()
            pending += [dataset.dataset] if 'dataset' in dataset else list(dataset.get('datasets', []))
            if 'dataset' not in dataset and 'datasets' not in dataset:
                yield name, dataset


def check_data(cfg: Config) -> Iterator[str]:
    """Data folders and annotation files that are not there, and class names that are not in the annotations."""
    for name, dataset in _datasets(cfg):
        root = Path(dataset.get('data_root') or '')
        if dataset.get('data_root') and not root.is_dir():
            yield f'{name}: the data folder {root} does not exist. Set data_root.'
            continue
        annotations = dataset.get('ann_file')
        if not annotations:
            continue
        path = Path(annotations) if Path(annotations).is_absolute() else root / annotations
        if not path.is_file():
            yield f'{name}: the annotation file {path} does not exist.'
        elif path.suffix == '.json':
            yield from _check_categories(name, dataset, path)


def _check_categories(name: str, dataset: ConfigDict, path: Path) -> Iterator[str]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        categories = [category['name'] for category in content['categories']]
    except (ValueError, KeyError, TypeError) as error:
        yield f'{name}: {path} is no COCO annotation file ({type(error).__name__}: {error}).'
        return
    for wanted in dataset_classes(dataset):
        if wanted not in categories:
            yield f'{name}: the class {wanted!r} is not in {path.name}; {nearest(wanted, categories)}.'


def dataset_classes(dataset: ConfigDict) -> tuple[str, ...]:
    """Class names of a data set's configuration: its metainfo, or those of its type."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        cls = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
        classes = getattr(cls, 'METAINFO', {}).get('classes', ())
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _head_classes(model: Any, path: str = 'model') -> Iterator[tuple[str, int]]:
    """Class counts of the heads that predict the data set's classes."""
    for name in ('bbox_head', 'mask_head', 'roi_head'):
        part = model.get(name)
        for one in part if isinstance(part, list | tuple) else [part]:
            if isinstance(one, dict):
                if 'num_classes' in one:
                    yield f'{path}.{name}', one['num_classes']
                if name == 'roi_head':
                    yield from _head_classes(one, f'{path}.{name}')


def check_classes(cfg: Config) -> Iterator[str]:
    """A head of the student whose `num_classes` is not the data set's."""
    student = cfg.model.architecture if is_distillation(cfg) else cfg.model
    for name, dataset in _datasets(cfg):
        classes = dataset_classes(dataset)
        for path, count in _head_classes(student):
            if classes and name == 'train_dataloader' and count != len(classes):
                yield f'{path}.num_classes is {count}, but the training set has {len(classes)} classes: {classes}.'


def check_distiller(cfg: Config) -> Iterator[str]:
    """A top-level `distiller` that differs from the one in the model, and so has no effect."""
    if is_distillation(cfg) and 'distiller' in cfg and cfg.distiller != cfg.model.get('distiller'):
        yield (
            'The top-level distiller differs from model.distiller and has no effect; change model.distiller (on the '
            'command line: --cfg-options model.distiller....=).'
        )


def check_teacher(cfg: Config) -> Iterator[str]:
    """A teacher whose configuration or checkpoint is missing, damaged, hostile, or of another network."""
    model = cfg.model
    if not is_distillation(cfg) or 'teacher' not in model:
        return
    try:
        source = load_model_source(model.teacher)
        checkpoint = model.get('teacher_ckpt') or source.weights
        if checkpoint is None:
            yield f'No weights are published for the teacher {source.name}; give its own: model.teacher_ckpt=<path>.'
            return
        if checkpoint.startswith(('http://', 'https://')):
            return  # downloaded and checked when training starts, before the first step
        state = compat.load_checkpoint_file(str(compat.fetch_checkpoint(checkpoint)))
        with own_randomness():
            network = MODELS.build(source.model)
        load_strictly(network, state, name=source.name, strict=model.get('teacher_strict', True))
    except (*CHECKPOINT_ERRORS, ValueError, TypeError, KeyError) as error:
        yield f'teacher: {error}'


def check_load_from(cfg: Config) -> Iterator[str]:
    """A checkpoint to start or resume from that is missing, damaged or hostile."""
    name = cfg.get('load_from')
    if not name or '://' in name:
        return
    try:
        compat.load_checkpoint_file(str(compat.fetch_checkpoint(name)))
    except CHECKPOINT_ERRORS as error:
        yield f'load_from: {error}'


def check_work_dir(cfg: Config) -> Iterator[str]:
    """A work directory that holds another run, which would be overwritten."""
    folder = Path(cfg.work_dir)
    if cfg.get('resume') or not is_main_process():
        return
    if folder.is_file():
        yield f'The work directory {folder} is a file.'
    elif (folder / 'last_checkpoint').is_file() or any(folder.glob('*.pth')):
        yield f'The work directory {folder} already holds a run. Resume it with --resume, or choose another --work-dir.'


CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    check_work_dir,
    check_data,
    check_classes,
    check_distiller,
    check_load_from,
    check_teacher,
)


def check_training(cfg: Config) -> None:
    """Run every check and report all that is wrong.

    Raises:
        PreflightError: one line for each mistake.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        found = [problem for check in CHECKS for problem in check(cfg)]
    if found:
        raise PreflightError('\n'.join(found))

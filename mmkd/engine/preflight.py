"""Mistakes that can be found before any long work, so that nothing is written for a run that cannot be.

Everything is checked, and everything wrong is said at once.
"""

import copy
import os
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mmkd import compat
from mmkd.engine import config_rules
from mmkd.engine.dry_step import step_problem
from mmkd.engine.explain import explain
from mmkd.engine.preflight_data import check_data, dataset_classes, datasets
from mmkd.engine.preflight_sizes import check_sizes
from mmkd.engine.preflight_start import CHECKPOINT_ERRORS, Start, check_start, read_start
from mmkd.engine.student_config import is_distillation
from mmkd.engine.work_dir import check_work_dir
from mmkd.models.algorithms.checkpoint_state import load_strictly
from mmkd.models.algorithms.inherit import inherit_weights
from mmkd.models.algorithms.teacher import Teacher
from mmkd.models.apart import own_randomness
from mmkd.near_names import nearest

# Keys that MMEngine and mmkd's tools read beyond the Runner's own arguments, whether a configuration has them or not.
KNOWN_KEYS = ('runner_type', 'model_wrapper_cfg', 'find_unused_parameters', 'custom_imports', 'compile', 'tta_model')
KNOWN_KEYS += ('tta_pipeline', 'activation_checkpointing', 'efficient_conv_bn_eval', 'data_root', 'distiller')


class PreflightError(ValueError):
    """A configuration that cannot be trained as it stands."""


def check_options(cfg: Config, options: dict[str, Any]) -> None:
    """Refuse an override of a setting that nobody reads.

    Raises:
        ValueError: its first word is not known to the Runner, or only helps to write the configuration, as `max_epochs`
            at the top of MMDetection's YOLOX: what was made of it stays as it is.
    """
    known = {*KNOWN_KEYS, *signature(Runner.__init__).parameters}
    for key in options:
        first = key.split('.')[0]
        if first in known:
            continue
        if first not in cfg:
            raise ValueError(
                f'--cfg-options: nothing reads {first!r} (in {key}); {nearest(first, {*known, *cfg.keys()})}.'
            )
        places = ', '.join(_places(cfg._cfg_dict, first)[:3])
        raise ValueError(
            f'--cfg-options: {first!r} only helped to write the configuration; nothing reads it any more. Set what was '
            f'made of it{f": {places}" if places else ", such as train_cfg.max_epochs or optim_wrapper.optimizer.lr"}.'
        )


def _places(value: Any, name: str, path: str = '') -> list[str]:
    """Keys of a name inside a configuration, with dots, but for those at its top."""
    found = []
    for key, child in value.items() if isinstance(value, dict) else ():
        inner = f'{path}.{key}' if path else str(key)
        found += [inner] * (key == name and bool(path)) + _places(child, name, inner)
    return found


def _head_classes(model: Any, path: str) -> Iterator[tuple[str, int]]:
    """Class counts of the heads that predict the data set's classes.

    Open-vocabulary detectors have none: their `num_classes` is a number of tokens (`detector_classes.reads_text`).
    """
    if 'language_model' in model:
        return
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
    where, student = ('model.architecture', cfg.model.architecture) if is_distillation(cfg) else ('model', cfg.model)
    for name, dataset in datasets(cfg):
        classes = dataset_classes(dataset) if name == 'train_dataloader' else ()
        for path, count in _head_classes(student, where) if classes else ():
            if count != len(classes):
                shown = ', '.join(classes[:8]) + (', ...' if len(classes) > 8 else '')
                yield f'{path}.num_classes is {count}, but the training set has {len(classes)} classes: {shown}.'


def _inherited_distillers(cfg: Config) -> list[Any]:
    """The top-level `distiller` of each file that the configuration's own file inherits."""
    if not cfg.filename or not Path(cfg.filename).is_file():
        return []
    bases = [Config._get_cfg_path(base, cfg.filename)[0] for base in Config._get_base_files(cfg.filename)]
    return [Config.fromfile(base).get('distiller') for base in bases]


def check_distiller(cfg: Config) -> Iterator[str]:
    """A top-level `distiller` that was changed, which has no effect; the model's own may be another than inherited."""
    differs = is_distillation(cfg) and 'distiller' in cfg and cfg.distiller != cfg.model.get('distiller')
    if differs and cfg.distiller not in _inherited_distillers(cfg):
        yield (
            'The top-level distiller differs from model.distiller and has no effect; change model.distiller (on the '
            'command line: --cfg-options model.distiller....=).'
        )


def check_model(cfg: Config, *, weights: bool = True, start: Start | None = None) -> Iterator[str]:
    """A model that cannot be built, wired or stepped, or a checkpoint that is not its or its teacher's own.

    Args:
        cfg: the configuration.
        weights: see whether the teacher's checkpoint fits.
        start: the checkpoint from which the training starts.
    """
    model = copy.deepcopy(cfg.model)  # DETR's kind write into what they are built from
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    try:
        with own_randomness():
            built = MODELS.build(model)
    except Exception as error:
        if os.environ.get('MMKD_TRACEBACK') == '1':
            raise
        yield f'model: {explain(error, dict(model=cfg.model))}'
        if weights:
            yield from _check_teacher_alone(model)
        return
    teacher = getattr(built, '_teacher', None)
    if getattr(built, 'inherit', ()):
        try:
            inherit_weights(built.architecture, teacher.model, built.inherit)
        except ValueError as error:
            yield f'model: {error}'
    if weights and teacher is not None:
        yield from _check_weights(teacher)
    if start is not None:
        yield from check_start(built, start)
    with own_randomness():
        problem = step_problem(built)
    if problem is not None:
        yield f'model: {problem}'


def _check_weights(teacher: Teacher) -> Iterator[str]:
    """A checkpoint on this machine that is damaged or not the teacher's.

    Published weights are downloaded and checked when training starts, before the first step.
    """
    if teacher.loaded or '://' in str(teacher.checkpoint):
        return
    try:
        state = compat.load_checkpoint_file(str(compat.fetch_checkpoint(teacher.checkpoint)))
        load_strictly(
            teacher.model, state, name=f'{teacher.source.name} from {teacher.checkpoint}', strict=teacher.strict
        )
    except CHECKPOINT_ERRORS as error:
        yield f'teacher_ckpt: {error}'


def _check_teacher_alone(model: dict[str, Any]) -> Iterator[str]:
    """The teacher's file, where something else is wrong with the model: both are said at once."""
    if model.get('teacher') is None:
        return
    try:
        with own_randomness():
            teacher = Teacher(model['teacher'], model.get('teacher_ckpt'), strict=model.get('teacher_strict', True))
    except Exception:  # the teacher itself is what was said already
        return
    yield from _check_weights(teacher)


CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    check_data,
    check_classes,
    check_distiller,
    *config_rules.PROBLEMS,
)


def find_problems(cfg: Config, *, data: bool = True, weights: bool = True) -> list[str]:
    """Everything that is wrong with a configuration for training, one line each.

    Args:
        cfg: the configuration.
        data: look for the data sets too.
        weights: see whether the teacher's checkpoint fits.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        sizes = list(check_sizes(cfg))
        found = sizes + [problem for check in CHECKS if data or check is not check_data for problem in check(cfg)]
        start = read_start(cfg)
        found += start.problems
        return found if sizes else found + list(check_model(cfg, weights=weights, start=start))


def check_training(cfg: Config) -> None:
    """Run every check and report all that is wrong.

    Raises:
        PreflightError: one line for each mistake.
    """
    found = [*check_work_dir(cfg), *find_problems(cfg)]
    if found:
        raise PreflightError('\n'.join(found))

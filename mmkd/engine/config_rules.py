"""Settings that MMEngine accepts and that still are mistakes: each rule gives sentences about a configuration.

Only the configuration is read; `config_wiring` and `config_step` look at the built networks.
"""

import filecmp
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from mmkd.engine.hook_rules import best_score_unknown, checkpoint_keys, checkpoint_numbers
from mmkd.engine.method_choice import SELF_DISTILLATION
from mmkd.engine.preflight_data import dataset_classes, datasets, is_elsewhere
from mmkd.engine.rate_rules import (
    learning_rate_of_zero,
    loop_limit,
    max_epochs,
    milestones_after_the_end,
    parameter_groups_without_parameters,
    rate_of_the_self_teacher,
    rate_without_scaling,
)
from mmkd.engine.student_config import is_distillation


def _distiller(cfg: Config) -> Mapping[str, Any]:
    return (cfg.model.get('distiller') or {}) if is_distillation(cfg) else {}


def schedules_after_the_end(cfg: Config) -> Iterator[str]:
    """A distillation loss whose schedule begins when training is over.

    An iteration loop has fewer epochs than iterations; how many is known when the data is there (`ScheduleHook`).
    """
    epochs, iterations = max_epochs(cfg), loop_limit(cfg, 'max_iters')
    for name, schedule in (_distiller(cfg).get('schedules') or {}).items():
        by_epoch = schedule.get('by_epoch', True)
        limit, unit = (epochs, 'epochs') if by_epoch and epochs is not None else (iterations, 'iterations')
        if limit is not None and schedule.get('begin', 0) >= limit:
            own = f'{schedule["begin"]} {"epochs" if by_epoch else "iterations"}'
            yield f'schedules.{name} begins at {own}, but training ends at {limit} {unit}: never on.'


def _both_classes(cfg: Config) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Classes of the training and the validation set where they differ."""
    found = {name: dataset_classes(dataset) for name, dataset in datasets(cfg)}
    train, val = found.get('train_dataloader'), found.get('val_dataloader')
    return (train, val) if train and val and train != val else None


def classes_in_another_order(cfg: Config) -> Iterator[str]:
    """Training and validation sets that number the same classes differently."""
    both = _both_classes(cfg)
    if both and sorted(both[0]) == sorted(both[1]):
        yield f'The validation set has the classes in another order: {both[1]} instead of {both[0]}.'


def other_classes_in_validation(cfg: Config) -> Iterator[str]:
    """Training and validation sets of different classes, as trackers and detectors that read words may have."""
    both = _both_classes(cfg)
    student = cfg.model.architecture if is_distillation(cfg) else cfg.model
    if both and sorted(both[0]) != sorted(both[1]) and 'language_model' not in student:
        yield f'The validation set has other classes: {both[1]} instead of {both[0]}. Equal labels must mean the same.'


def _scored_files(cfg: Config) -> tuple[list[str], list[ConfigDict]]:
    """Annotation files (json, on this machine) that the evaluator reads, and the validation sets."""
    metrics = cfg.get('val_evaluator') or []
    files = []
    for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
        path = metric.get('ann_file')
        if str(path).endswith('.json') and not is_elsewhere(metric, path):
            files.append(path)
    return files, [dataset for name, dataset in datasets(cfg) if name == 'val_dataloader']


def _same_file(one: str, other: str) -> bool:
    """Whether two paths lead to the same file, or to a copy of it."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return os.path.isfile(one) and os.path.isfile(other) and filecmp.cmp(one, other, shallow=False)


def evaluator_of_another_set(cfg: Config) -> Iterator[str]:
    """An evaluator that reads other annotations than the validation set."""
    files, sets = _scored_files(cfg)
    if len(sets) != 1:
        return
    own = sets[0].get('ann_file')
    if not str(own).endswith('.json') or is_elsewhere(sets[0], sets[0].get('data_root')):
        return
    whole = os.path.join(sets[0].get('data_root') or '', own)
    if not any(_same_file(path, whole) for path in files):  # panoptic sets are scored by another file beside their own
        for path in files:
            yield f'val_evaluator reads {path}, but the validation set {own}: the AP would be of other images.'


def evaluator_of_several_sets(cfg: Config) -> Iterator[str]:
    """One annotation file for validation sets that are joined: only its author knows whether it is of all of them."""
    files, sets = _scored_files(cfg)
    if len(sets) > 1:
        for path in files:
            yield f'val_evaluator reads {path}, and {len(sets)} validation sets are joined: it must be of all images.'


def everything_switched_off(cfg: Config) -> Iterator[str]:
    """Distillation losses that all have weight 0, or none at all."""
    losses = _distiller(cfg).get('distill_losses')
    if is_distillation(cfg) and 'distiller' in cfg.model and not losses:
        yield 'model.distiller has no distill_losses: nothing would be distilled.'
    weights = {name: _weight(loss) for name, loss in (losses or {}).items()}
    for name, weight in weights.items():
        if weight == 0:
            yield f'{name} has loss_weight 0: it would never be computed.'


def _weight(loss: Mapping[str, Any]) -> float | None:
    inner = loss.get('loss')
    return loss.get('loss_weight') if not isinstance(inner, Mapping) else _weight(inner)


def both_sides_the_same(cfg: Config) -> Iterator[str]:
    """A loss that compares a record with itself where there is a teacher, or takes the teacher for the student.

    Two connectors on one side (mssd's levels that teach each other) are meant.
    """
    if 'teacher' not in cfg.model:
        return
    for name, entries in (_distiller(cfg).get('loss_forward_mappings') or {}).items():
        sides = {key: entries[key].get('from_student') for key in ('preds_S', 'preds_T') if key in entries}
        connectors = {entries[key].get('connector') for key in sides}
        meant = len(connectors) == 2 and None not in connectors
        if len(sides) == 2 and len(set(sides.values())) == 1 and not (sides['preds_S'] and meant):
            side = 'student' if sides['preds_S'] else 'teacher'
            yield f'loss_forward_mappings.{name}: preds_S and preds_T both come from the {side}.'
        elif sides.get('preds_S') is False and sides.get('preds_T') is True:
            yield f'loss_forward_mappings.{name}: preds_S comes from the teacher and preds_T from the student.'


def grown_teacher_missing(cfg: Config) -> Iterator[str]:
    """Losses of a method whose teacher is grown on the student, in an algorithm that has another."""
    for name in _distiller(cfg).get('distill_losses') or {}:
        family = name.removeprefix('loss_').split('_')[0]
        algorithm = SELF_DISTILLATION.get(family, {})
        if 'teacher' in cfg.model and 'self_teacher' in algorithm:
            yield (
                f'{name} is of {family}, which grows its own teacher: model.type must be {algorithm["type"]}, without '
                f'`teacher`. tools/new_config.py --method {family} writes such a config.'
            )


def recorders_without_use(cfg: Config) -> Iterator[str]:
    """Recorders that no mapping reads."""
    used: dict[bool, set] = {True: set(), False: set()}

    def note(entry: Any) -> None:
        if isinstance(entry, Mapping):
            if 'recorder' in entry:
                used[bool(entry.get('from_student', True))].add(entry['recorder'])
            note(entry.get('other'))

    distiller = _distiller(cfg)
    for entries in (distiller.get('loss_forward_mappings') or {}).values():
        for entry in entries.values():
            note(entry)
    for side, from_student in (('student_recorders', True), ('teacher_recorders', False)):
        for name in distiller.get(side) or {}:
            if name not in used[from_student]:
                yield f'{side}.{name} is read by no loss.'


def never_validated(cfg: Config) -> Iterator[str]:
    """A validation interval beyond the end."""
    loop = cfg.get('train_cfg') or {}
    limit = max_epochs(cfg)
    interval = loop.get('val_interval', 1)
    if limit and cfg.get('val_dataloader') and isinstance(interval, int) and interval > limit:
        yield f'val_interval is {interval}, but training ends at {limit} epochs: never validated.'


def validated_on_training_data(cfg: Config) -> Iterator[str]:
    """The same annotation file for training and validation."""
    files = {name: dataset.get('ann_file') for name, dataset in datasets(cfg)}
    if files.get('train_dataloader') and files.get('train_dataloader') == files.get('val_dataloader'):
        yield f'Training and validation read the same annotations: {files["train_dataloader"]}.'


def slow_flags(cfg: Config) -> Iterator[str]:
    """`find_unused_parameters`, which mmkd does not need."""
    wrapper = cfg.get('model_wrapper_cfg') or {}
    if cfg.get('find_unused_parameters') or wrapper.get('find_unused_parameters'):
        yield 'find_unused_parameters is not needed, costs time and hides layers that learn nothing.'


def stock_algorithm(cfg: Config) -> Iterator[str]:
    """MMRazor's own algorithms, which check nothing."""
    name = str(cfg.model.get('type', ''))
    if 'teacher' in cfg.model and not name.startswith('mmkd.'):
        yield (
            f"{name} is MMRazor's own: its wiring and its teacher's weights are not checked, and its checkpoints "
            'hold the teacher. mmkd.TeacherStudentDistill takes the same distillers.'
        )


def another_runner(cfg: Config) -> Iterator[str]:
    """A runner or a wrapper under which distillation would lose its hooks or its layers."""
    if not is_distillation(cfg):
        return
    runner = RUNNERS.get(cfg.runner_type) if cfg.get('runner_type') else Runner
    if isinstance(runner, type) and not issubclass(runner, Runner):
        yield (
            f"runner_type={cfg.runner_type!r} is no subclass of MMEngine's Runner: connectors would not be saved, and "
            'no check would run. FSDP, DeepSpeed and ColossalAI are not supported with a distillation; leave it out.'
        )
    name = (cfg.get('model_wrapper_cfg') or {}).get('type')
    wrapper = MODEL_WRAPPERS.get(name) if isinstance(name, str) else name
    if isinstance(wrapper, type) and not issubclass(wrapper, DistributedDataParallel):
        yield (
            f"model_wrapper_cfg.type={name!r} is no DistributedDataParallel: it would not wrap the student's layers "
            'where the algorithm uses them. Use MMDistributedDataParallel, or leave model_wrapper_cfg out.'
        )


def another_preprocessor(cfg: Config) -> Iterator[str]:
    """A preprocessor of the algorithm beside the student's own, which is the one that counts."""
    model = cfg.get('model') or {}
    own = (model.get('architecture') or {}).get('data_preprocessor') if is_distillation(cfg) else None
    if own and model.get('data_preprocessor') and model.data_preprocessor != own:
        yield (
            "model.data_preprocessor differs from the student's own, which counts; change "
            'model.architecture.data_preprocessor instead.'
        )


PROBLEMS: tuple[Callable[[Config], Iterator[str]], ...] = (
    schedules_after_the_end,
    classes_in_another_order,
    evaluator_of_another_set,
    parameter_groups_without_parameters,
    learning_rate_of_zero,
    both_sides_the_same,
    grown_teacher_missing,
    another_runner,
    another_preprocessor,
    checkpoint_keys,
    checkpoint_numbers,
    best_score_unknown,
)
WARNINGS: tuple[Callable[[Config], Iterator[str]], ...] = (
    other_classes_in_validation,
    evaluator_of_several_sets,
    everything_switched_off,
    recorders_without_use,
    rate_without_scaling,
    rate_of_the_self_teacher,
    milestones_after_the_end,
    never_validated,
    validated_on_training_data,
    slow_flags,
    stock_algorithm,
)

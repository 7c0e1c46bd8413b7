"""Settings of MMEngine's checkpoint hook that show only at the first save or the first validation.

`CheckpointHook` takes any key and hands it to the saving behind the first epoch, which would be lost. The other hooks
refuse a key that they do not know when the Runner is built.
"""

import warnings
from collections.abc import Iterator, Mapping
from inspect import Parameter, signature
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, METRICS, RUNNERS, Registry
from mmengine.runner import Runner

from mmkd.evaluation.kitti_ap import LEVELS
from mmkd.evaluation.kitti_metric import KittiMetric
from mmkd.evaluation.kitti_objects import TYPES
from mmkd.near_names import nearest

_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_RECALLS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')


def checkpoint_keys(cfg: Config) -> Iterator[str]:
    """A key of a checkpoint hook that neither the hook nor the Runner's saving knows."""
    for where, hook, kind in _checkpoint_hooks(cfg):
        known = _known_keys(kind, _class(RUNNERS, cfg.get('runner_type')) or Runner)
        for key in hook if known else ():
            if key not in ('type', 'priority', '_scope_', *known):
                yield (
                    f'{where}.{key}: {kind.__name__} knows no such key, and the first save would end the training; '
                    f'{nearest(str(key), known)}.'
                )


def checkpoint_numbers(cfg: Config) -> Iterator[str]:
    """Numbers of a checkpoint hook that are none, or an interval that is neither positive nor -1."""
    for where, hook, _ in _checkpoint_hooks(cfg):
        unit = 'epochs' if hook.get('by_epoch', True) else 'iterations'
        interval = hook.get('interval', -1)
        if not _is_whole(interval) or (interval < 1 and interval != -1):
            yield (
                f'{where}.interval is {interval!r}: {unit} from one save to the next, a whole number from 1, or -1 for '
                'the last one alone.'
            )
        for key in ('max_keep_ckpts', 'save_begin'):
            if not _is_whole(hook.get(key, 0)):
                yield f'{where}.{key} is {hook[key]!r}: it must be a whole number.'


def best_score_unknown(cfg: Config) -> Iterator[str]:
    """A `save_best` that the evaluator does not give, such as MMDetection 2's `bbox_mAP`: `coco/bbox_mAP` now."""
    names = _score_names(cfg)
    for where, hook, _ in _checkpoint_hooks(cfg):
        wanted = hook.get('save_best') or ()
        for name in [wanted] if isinstance(wanted, str) else wanted:
            if names and name != 'auto' and name not in names and not _is_of_a_class(cfg, name):
                yield (
                    f'{where}.save_best: val_evaluator gives no {name!r}, and the first validation would end the '
                    f"training; {nearest(str(name), names)}, or 'auto' for the first one."
                )


def _checkpoint_hooks(cfg: Config) -> Iterator[tuple[str, Mapping[str, Any], type]]:
    """Place, settings and class of every checkpoint hook."""
    own = [(f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items()]
    own += [(f'custom_hooks[{index}]', hook) for index, hook in enumerate(cfg.get('custom_hooks') or ())]
    for where, hook in own:
        kind = _class(HOOKS, hook.get('type')) if isinstance(hook, Mapping) else None
        if kind and issubclass(kind, CheckpointHook):
            yield where, hook, kind


def _class(registry: Registry, kind: Any) -> type | None:
    """The class of a `type`, looked for where MMEngine would; None where that is nothing that is registered."""
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as current:
            kind = current.get(kind)
    return kind if isinstance(kind, type) else None


def _known_keys(kind: type, runner: type) -> set[str]:
    """What a hook takes; empty where its own class or the runner's saving takes anything.

    What MMEngine's own saving takes the hook gives it already, all of it.
    """
    inits = [signature(one.__init__).parameters for one in kind.__mro__[:-1] if '__init__' in vars(one)]
    if not any(found.kind is Parameter.VAR_KEYWORD for found in inits[0].values()):
        return set()  # MMEngine refuses it when the Runner is built
    saving = signature(getattr(runner, 'save_checkpoint', Runner.save_checkpoint)).parameters
    if any(found.kind is Parameter.VAR_KEYWORD for found in saving.values()):
        return set()
    more = set(saving) - set(signature(Runner.save_checkpoint).parameters)
    found = {name for one in inits for name, what in one.items() if what.kind is not Parameter.VAR_KEYWORD}
    return (found | more) - {'self'}


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def _coco_metric() -> type:
    """MMDetection's `CocoMetric`; the first import of its module warns of a package that only another metric wants."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        from mmdet.evaluation import CocoMetric
    return CocoMetric


def _metrics(cfg: Config) -> list[Mapping[str, Any]]:
    found = cfg.get('val_evaluator') or []
    return list(found) if isinstance(found, list | tuple) else [found]


def _score_names(cfg: Config) -> set[str]:
    """All names that the evaluator can give; empty where one of its metrics is not known here."""
    names: set[str] = set()
    coco = _coco_metric()
    for metric in _metrics(cfg):
        kind = _class(METRICS, metric.get('type')) if isinstance(metric, Mapping) else None
        if kind not in (coco, KittiMetric) or metric.get('format_only'):
            return set()
        own = _coco_names(metric) if kind is coco else _kitti_names()
        names |= {f'{metric.get("prefix") or kind.default_prefix}/{name}' for name in own}
    return names


def _coco_names(metric: Mapping[str, Any]) -> Iterator[str]:
    kinds = metric.get('metric', 'bbox')
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == 'proposal_fast':
            yield from (f'AR@{number}' for number in metric.get('proposal_nums', (100, 300, 1000)))
        elif kind == 'proposal':
            yield from metric.get('metric_items') or _RECALLS
        else:
            yield from (f'{kind}_{item}' for item in metric.get('metric_items') or _ITEMS)


def _kitti_names() -> Iterator[str]:
    for name in (*TYPES, 'mean'):
        yield from (f'{name}_{points}_{level}' for points in ('R40', 'R11') for level in LEVELS)


def _is_of_a_class(cfg: Config, name: str) -> bool:
    """Whether a name can be a class's, which `CocoMetric` reads from its file."""
    by_class = [metric for metric in _metrics(cfg) if metric.get('classwise')]
    prefixes = [metric.get('prefix') or _coco_metric().default_prefix for metric in by_class]
    return name.endswith('_precision') and name.split('/')[0] in prefixes

"""Rules about learning rates and how long they last, as those of `config_rules`."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from mmkd.engine.explain import registered_names
from mmkd.near_names import nearest

# Where the self-teacher's refining network hangs; MMEngine looks for `custom_keys` anywhere in a parameter's name.
GROWN = 'self_teacher.model.backbone.refine'


def loop_limit(cfg: Config, name: str) -> int | None:
    """`max_epochs` or `max_iters`; what is no number there is the preflight's to say."""
    limit = (cfg.get('train_cfg') or {}).get(name)
    return limit if isinstance(limit, int) else None


def max_epochs(cfg: Config) -> int | None:
    """Epochs of the training; None for a loop of iterations."""
    return loop_limit(cfg, 'max_epochs') if (cfg.get('train_cfg') or {}).get('by_epoch', True) else None


def _custom_keys(cfg: Config) -> Mapping[str, Any]:
    return ((cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}


def parameter_groups_without_parameters(cfg: Config) -> Iterator[str]:
    """`custom_keys` that still name MMRazor's `architecture.`."""
    for key in _custom_keys(cfg):
        if key.startswith('architecture'):
            yield (
                f'paramwise_cfg.custom_keys.{key} matches nothing: parameters have the plain names of the student '
                f'({key.removeprefix("architecture").lstrip(".") or "backbone"}).'
            )


def learning_rate_of_zero(cfg: Config) -> Iterator[str]:
    """An optimiser that is not there, that changes nothing, or whose rate is no number."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    kind, rate = optimizer.get('type'), optimizer.get('lr')
    if isinstance(kind, str) and not _is_registered(kind):
        near = nearest(kind, registered_names('optimizer'))
        yield f'optim_wrapper.optimizer.type: no optimizer is registered as {kind!r}; {near}.'
    if isinstance(rate, bool) or not isinstance(rate, int | float | None):
        yield f'optim_wrapper.optimizer.lr must be a number, got {rate!r}.'
    elif rate is not None and rate <= 0:
        yield f'optim_wrapper.optimizer.lr is {rate}: nothing would be learnt.'


def _is_registered(kind: str) -> bool:
    try:
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:  # `get` alone does not know the default scope
            return registry.get(kind) is not None
    except (KeyError, ImportError):  # a scope whose package is not installed
        return False


def rate_without_scaling(cfg: Config) -> Iterator[str]:
    """A batch that is not the one for which the learning rate was chosen."""
    scale, loader = cfg.get('auto_scale_lr') or {}, cfg.get('train_dataloader') or {}
    base, batch = scale.get('base_batch_size'), loader.get('batch_size')
    counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    batch = batch and batch * counts if not scale.get('enable') else batch
    if base and batch and base % batch == 0 and base != batch and not scale.get('enable'):
        yield (
            f'The learning rate is meant for {base} images a step; {batch} a process make that with {base // batch} '
            'processes. With another number use --auto-scale-lr.'
        )
    elif base and batch and base % batch:
        yield f'The learning rate is meant for {base} images a step, the batch is {batch} a process: --auto-scale-lr.'


def milestones_after_the_end(cfg: Config) -> Iterator[str]:
    """Learning rate steps that come when training is over."""
    limit = max_epochs(cfg)
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list | tuple) else [schedulers]:
        late = [m for m in scheduler.get('milestones', []) if limit and scheduler.get('by_epoch', True) and m >= limit]
        if late:
            yield f'param_scheduler has milestones {late}, but training ends at {limit} epochs.'


def rate_of_the_self_teacher(cfg: Config) -> Iterator[str]:
    """A rate for the student's backbone that the self-teacher's refining network gets, too."""
    if not str(cfg.model.get('type')).endswith('SelfTeacherDistill'):
        return
    keys = _custom_keys(cfg)
    deciding = next((key for key in sorted(sorted(keys), key=len, reverse=True) if key in GROWN), None)
    if deciding is not None and 'self_teacher' not in deciding and keys[deciding].get('lr_mult', 1) != 1:
        yield (
            f'paramwise_cfg.custom_keys.{deciding} also holds for the refining network of the self-teacher, {GROWN}, '
            f'whose learning rate is multiplied by {keys[deciding]["lr_mult"]}. If the student alone is meant, add '
            f"'self_teacher.model': dict(lr_mult=1)."
        )

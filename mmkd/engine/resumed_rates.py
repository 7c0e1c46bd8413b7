"""The learning rate of a run that resumes with another batch than it had."""

from typing import Any

from mmengine.runner import Runner


def scale_learning_rates(runner: Runner, checkpoint: dict[str, Any]) -> float:
    """Bring the rates in a checkpoint to those that the Runner has scaled for its own batch.

    MMEngine scales the optimiser that it builds, and then loads the checkpoint's rates over it.

    Args:
        runner: has built and scaled its optimiser.
        checkpoint: its optimiser and schedulers are changed in place.

    Returns:
        The factor.

    Raises:
        ValueError: the run has several optimisers, for which the factor is not known.
    """
    saved = checkpoint['optimizer']
    if 'param_groups' not in saved:
        raise ValueError('A run with several optimisers cannot be resumed with another number of processes.')
    now, before = (groups[0] for groups in (runner.optim_wrapper.optimizer.param_groups, saved['param_groups']))
    ratio = now.get('initial_lr', now['lr']) / before.get('initial_lr', before['lr'])
    groups = [*saved['param_groups'], saved.get('base_param_settings') or {}]
    for group in groups:
        for name in ('lr', 'initial_lr'):
            if name in group:
                group[name] *= ratio
    for scheduler in checkpoint.get('param_schedulers') or ():
        if scheduler.get('param_name') == 'lr':
            for name in ('base_values', '_last_value'):
                if name in scheduler:
                    scheduler[name] = [value * ratio for value in scheduler[name]]
    return ratio

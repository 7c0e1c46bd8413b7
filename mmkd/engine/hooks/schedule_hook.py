"""Epochs for the schedules of distillation losses, also where the training loop counts iterations alone."""

from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner

from mmkd.models.algorithms.plain_student import EPOCH_LENGTH
from mmkd.models.distillers.schedule import WeightSchedule
from mmkd.registry import HOOKS


class ScheduleError(RuntimeError):
    """A schedule that counts epochs in a training that has none."""

    user_mistake = True


@HOOKS.register_module()
class ScheduleHook(Hook):
    """Tells the algorithm how many iterations an epoch has, and warns of a loss that is never on.

    MMEngine's `IterBasedTrainLoop` stays at epoch 0. There an epoch is as many iterations as all processes need to see
    the training set once, and the epoch of a step follows from the iteration alone, so that resuming needs no state.
    Algorithms bring this hook by themselves.
    """

    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Find the length of an epoch.

        Raises:
            ScheduleError: a schedule counts epochs, the loop iterations, and the loader has no length.
        """
        distiller = getattr(getattr(runner.model, 'module', runner.model), 'distiller', None)
        schedules: dict[str, WeightSchedule] = getattr(distiller, 'schedules', {})
        length = epoch_length(runner.train_dataloader)
        iterations = isinstance(runner.train_loop, IterBasedTrainLoop)
        runner.message_hub.update_info(EPOCH_LENGTH, length if iterations else None, resumed=False)
        for name, schedule in schedules.items():
            if schedule.by_epoch and length is None and (schedule.begin > 0 or schedule.end is not None):
                raise ScheduleError(
                    f'schedules.{name} counts epochs, but the training loop counts iterations and the training set has '
                    'no length. Give the schedule in iterations: by_epoch=False.'
                )
            last = (runner.max_iters - 1) // (length if schedule.by_epoch and length else 1)
            if not schedule.ever_on(last):
                unit = 'epoch' if schedule.by_epoch else 'iteration'
                text = f'schedules.{name} is still 0 in the last {unit}, {last} (counted from 0): never distilled.'
                print_log(text, logger='current', level=30)


def epoch_length(loader: Any) -> int | None:
    """Iterations until all processes together have seen a loader's data set once; None if it has no length."""
    try:
        length = len(loader)
    except TypeError:
        return None
    sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
    if isinstance(sampler, InfiniteSampler):  # its length is that of the whole set, not of its process's share
        length = -(-length // get_world_size())
    return max(length, 1)

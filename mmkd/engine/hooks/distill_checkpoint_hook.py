"""A checkpoint that is the plain student's, with what resuming needs kept apart in the same file."""

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mmkd import __version__
from mmkd.engine.loader_state import LoadingState
from mmkd.engine.mmdet_config import one_metainfo
from mmkd.engine.random_state import get_random_state, on_cpu, set_random_state
from mmkd.engine.resumed_rates import scale_learning_rates
from mmkd.engine.student_config import student_config
from mmkd.registry import HOOKS


class ResumeError(RuntimeError):
    """A checkpoint from which this run cannot continue."""

    user_mistake = True


@HOOKS.register_module()
class DistillCheckpointHook(Hook):
    """Saves and restores what a distillation needs beside its student.

    `checkpoint['mmkd']` holds the version, the states of the modules saved apart (`distiller`, ...; with EMA also
    `ema_*`), the random state of every process, the number of processes, whether it was written inside an epoch, and
    the teacher's name and hash; `meta['cfg']` is the plain student's configuration, which is also written to
    `student.py` in the work directory.
    Validation leaves no trace in the random state, so that a resumed run continues as the uninterrupted one would.
    Algorithms bring this hook by themselves.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._student_text = ''
        self._rng: list[dict] | None = None
        self._resumed: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None
        self._loading: LoadingState | None = None
        self._inside_epoch = False
        # parameters that were idle in every forward since the last step; None where there was none
        self._idle: set[nn.Parameter] | None = None
        self._stepped = False

    @staticmethod
    def _model(runner: Runner) -> nn.Module:
        return getattr(runner.model, 'module', runner.model)

    def before_train(self, runner: Runner) -> None:
        """Write the student's configuration, keep idle connectors from decaying, restore the random state."""
        if is_main_process():
            plain = student_config(runner.cfg)
            for key in ('work_dir', 'launcher'):  # of this run: another one would write over its checkpoints
                plain.pop(key, None)
            plain.update(load_from=None, resume=False)
            self._student_text = plain.pretty_text
            (Path(runner.work_dir) / 'student.py').write_text(self._student_text, encoding='utf-8')
        self._spare_idle(runner)
        self._loading = LoadingState(runner)
        if self._resumed is not None:
            self._loading.restore(self._resumed)
            self._resumed = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """The first batch is there: loading has begun where it should."""
        self._inside_epoch = True
        if runner.iter == self._loading.begin:
            self._loading.first_batch()

    def _spare_idle(self, runner: Runner) -> None:
        """Weight decay and momentum would move what is not trained in a step: its zero gradients are dropped."""
        model = self._model(runner)

        def drop(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            self._stepped = True
            for parameter in self._still_idle(model):
                parameter.grad = None

        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if hasattr(wrapper, 'optim_wrappers') else [wrapper]
        for one in wrappers:
            one.optimizer.register_step_pre_hook(drop)

    def _still_idle(self, model: nn.Module) -> set[nn.Parameter]:
        """Idle in this forward and, where gradients are accumulated, in those before it."""
        idle = set(model.idle_parameters())
        return idle if self._idle is None else idle & self._idle

    def before_val(self, runner: Runner) -> None:
        """Remember the random state; a best checkpoint makes MMEngine write an iteration's once more behind it."""
        self._before_val = get_random_state()
        if not isinstance(runner.train_loop, EpochBasedTrainLoop) and self._loading is not None:
            self._rng = all_gather_object(self._loading.collect(runner.iter))

    def after_val(self, runner: Runner) -> None:
        """Continue training as if there had been no validation."""
        if self._before_val is not None:
            set_random_state(self._before_val)

    def after_train_epoch(self, runner: Runner) -> None:
        """Collect the random states of all processes before the checkpoint is written."""
        self._inside_epoch = False
        self._rng = all_gather_object(self._loading.collect(runner.iter))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """As `after_train_epoch`, where a checkpoint is due after an iteration; which parameters are idle is noted."""
        self._idle = None if self._stepped else self._still_idle(self._model(runner))
        self._stepped = False
        hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        last = runner.iter + 1 == runner.max_iters
        if last or any(self._is_due(runner, hook) for hook in hooks):
            self._rng = all_gather_object(self._loading.collect(runner.iter + 1))

    def _is_due(self, runner: Runner, hook: CheckpointHook) -> bool:
        return hook.interval > 0 and self.every_n_train_iters(runner, hook.interval, hook.save_begin)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what resuming needs, and the student's own configuration."""
        model = self._model(runner)
        checkpoint['meta']['cfg'] = self._student_text or student_config(runner.cfg).pretty_text
        checkpoint['meta']['dataset_meta'] = one_metainfo(checkpoint['meta'].get('dataset_meta'))
        states = {name: module.saved_state() for name, module in model.apart_modules().items()}
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                averaged = hook.ema_model.module.apart_modules()
                states |= {f'ema_{name}': module.saved_state() for name, module in averaged.items()}
        rng = self._rng if self._rng is not None else [get_random_state()]
        teacher = getattr(model, '_teacher', None)
        checkpoint['mmkd'] = dict(states, version=__version__, rng=rng, world_size=get_world_size())
        checkpoint['mmkd']['inside_epoch'] = self._inside_epoch
        checkpoint['mmkd']['images'] = images_a_step(runner)
        if teacher is not None:
            known = dict(config=teacher.source.name, sha256=teacher.sha256, options=str(teacher.options))
            checkpoint['mmkd']['teacher'] = known

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """On resuming, restore what `before_save_checkpoint` added; `load_from` takes the student alone.

        Raises:
            ResumeError: another teacher, another number of images a step, a checkpoint from inside an epoch, or one
                without the optimiser's state.
        """
        if not runner._resume:
            return
        saved = checkpoint.get('mmkd')
        if saved is None:
            raise ResumeError(
                'The checkpoint to resume was not written by a distillation. To start from its weights, use '
                'load_from without resume.'
            )
        model = self._model(runner)
        self._check_same_run(runner, model, checkpoint)
        for name, module in model.apart_modules().items():
            if name not in saved:
                raise ResumeError(f'The checkpoint to resume has no state of {name!r}: another method wrote it.')
            module.load_saved_state(saved[name])
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                for name, module in hook.ema_model.module.apart_modules().items():
                    if f'ema_{name}' in saved:
                        module.load_saved_state(saved[f'ema_{name}'])
        self._resumed = self._random_state(saved, runner.rank)
        if _other_batch(saved, runner):
            ratio = scale_learning_rates(runner, checkpoint)
            print_log(
                f'{_both_batches(saved, runner)}: its learning rate is multiplied by {ratio:.4g}, as --auto-scale-lr '
                'asks. Schedules by iteration go on counting the steps of the earlier batch.',
                logger='current',
                level=30,
            )

    def _random_state(self, saved: dict, rank: int) -> dict[str, Any] | None:
        """This process's own; None, with a warning, where there were more processes than now, or fewer."""
        before, now = len(saved['rng']), get_world_size()
        if before == now:
            return on_cpu(saved['rng'][rank])
        print_log(
            f'The random state of {before} {_processes(before)} in the checkpoint cannot be given to {now}: the order '
            'of the images, their augmentation and sampling are drawn anew, so that the run does not go on as it would '
            'have without the interruption. Its weights, optimiser and schedules do.',
            logger='current',
            level=30,
        )
        return None

    def _check_same_run(self, runner: Runner, model: nn.Module, checkpoint: dict) -> None:
        saved, meta = checkpoint['mmkd'], checkpoint['meta']
        teacher = getattr(model, '_teacher', None)
        before = saved.get('teacher') or {}
        if teacher is not None and before.get('sha256') != teacher.sha256:
            raise ResumeError(
                f'The run to resume had another teacher: {before.get("config")} with sha256 {before.get("sha256")}, '
                f'now {teacher.source.name} with {teacher.sha256}.'
            )
        if teacher is not None and before.get('options', 'plain') != str(teacher.options):
            print_log(
                f'The teacher of the run to resume had the options {before.get("options", "plain")}, now '
                f'{teacher.options}: its features differ a little.',
                logger='current',
                level=30,
            )
        missing = [part for part in ('optimizer', 'param_schedulers') if part not in checkpoint]
        if missing:
            raise ResumeError(
                f'The checkpoint to resume holds no {" and no ".join(missing)}, as the best_*.pth of CheckpointHook. '
                'Use one of epoch_*.pth or iter_*.pth; to start from its weights, use load_from without resume.'
            )
        scaled = (runner.auto_scale_lr or {}).get('enable', False)
        if _other_batch(saved, runner) and not scaled:
            raise ResumeError(
                f'{_both_batches(saved, runner)}: the batch and with it the learning rate would change. Use the same '
                'number, or --auto-scale-lr.'
            )
        # the number of iterations says it only where all epochs had the same length
        inside = saved.get('inside_epoch', meta['iter'] % len(runner.train_dataloader) and not scaled)
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and inside:
            raise ResumeError(
                f'The checkpoint was written inside an epoch (behind iteration {meta["iter"]}); an epoch-based run '
                "resumes from an epoch's checkpoint only. Use one of those, or IterBasedTrainLoop."
            )


def _processes(number: int) -> str:
    return 'process' if number == 1 else 'processes'


def images_a_step(runner: Runner) -> int | None:
    """Images behind one step of the optimiser, over all processes and accumulated forwards; None if not known."""
    loader = runner.train_dataloader
    batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
    return batch and batch * get_world_size() * getattr(runner.optim_wrapper, '_accumulative_counts', 1)


def _other_batch(saved: dict, runner: Runner) -> bool:
    """Whether a step now has another number of images than in the run that wrote a checkpoint."""
    before, now = saved.get('images'), images_a_step(runner)
    if before is None or now is None:  # an earlier mmkd
        return saved['world_size'] != get_world_size()
    return before != now


def _both_batches(saved: dict, runner: Runner) -> str:
    text = f'The run to resume had {saved["world_size"]} processes, now {get_world_size()}'
    if saved.get('images') is not None:
        text += f', and {saved["images"]} images a step, now {images_a_step(runner)}'
    return text

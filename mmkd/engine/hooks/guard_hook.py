"""Numbers that are none: NaN and infinity in losses, gradients and teacher features stop the run and are named."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from mmkd.engine.bad_batch import save_batch
from mmkd.engine.first_steps import FirstSteps
from mmkd.engine.listener import RunListener
from mmkd.registry import HOOKS


class NonFiniteError(RuntimeError):
    """A loss, gradient or teacher feature is NaN or infinite."""

    user_mistake = True


@dataclass
class _Batch:
    """One forward: what went in, and the numbers that came out."""

    inputs: Tensor
    samples: list
    names: list[str]
    values: Tensor

    def culprits(self) -> list[str]:
        return [
            f'{name} is {value}'
            for name, value in zip(self.names, self.values.tolist(), strict=True)
            if not torch.isfinite(torch.tensor(value))
        ]

    def images(self) -> list[str]:
        return [str(s.metainfo.get('img_path', s.metainfo.get('img_id', '?'))) for s in self.samples]


def flat_losses(losses: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every scalar of a training step's losses by name; `[i]` for the entries of a list."""
    for name, value in losses.items():
        if isinstance(value, Tensor):
            yield name, value.mean()
        else:
            yield from ((f'{name}[{i}]', part.mean()) for i, part in enumerate(value))


@HOOKS.register_module()
class NumberGuardHook(Hook):
    """Looks at every loss, every gradient and every recorded teacher feature before the weights are changed.

    The batch is saved as `bad_batch_*.pth` in the work directory (see `mmkd.engine.bad_batch`). All processes decide
    together. A step that mixed precision leaves out because its scaled gradients overflowed is no fault, unless it
    happens `overflows` times in a row. The first iterations are also watched for losses that never change or teach
    nobody and for records that never come (`FirstSteps`); these are warnings. Algorithms bring this hook by themselves.

    Args:
        skip: how many steps of the run may be left out; the next one stops it. Weights and buffers stay as they were.
        watch: number of first iterations to watch.
        overflows: consecutive steps that mixed precision may leave out.

    Raises:
        ValueError: a number is negative.
    """

    priority = 'VERY_HIGH'

    def __init__(self, *, skip: int = 0, watch: int = 10, overflows: int = 50) -> None:
        for name, value in (('skip', skip), ('watch', watch), ('overflows', overflows)):
            if value < 0:
                raise ValueError(f'{name} must be >= 0, got {value}.')
        self.skip, self.watch, self.overflows = skip, watch, overflows
        self.skipped = 0
        self._unstepped = 0
        self._pending: list[_Batch] = []
        self._features: list[tuple[str, Tensor]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Listen to the model, the teacher's recorded layers and the optimisers."""
        model = getattr(runner.model, 'module', runner.model)
        self._runner, self._model = runner, model
        if hasattr(model, 'listen_again'):
            model.listen_again()
        self._first = FirstSteps(model, self.watch)
        self._handles = [
            model.register_forward_pre_hook(RunListener(self._remember)),
            model.register_forward_hook(RunListener(self._observe), with_kwargs=True),
        ]
        if hasattr(model, '_teacher') and hasattr(model, 'distiller'):
            for source in model.distiller.module_sources(from_student=False):
                layer = model.teacher.get_submodule(source)
                # before the hook that stops the teacher behind its last recorded layer
                self._handles.append(layer.register_forward_hook(RunListener(self._feature(source)), prepend=True))
        wrapper = runner.optim_wrapper
        for one in wrapper.values() if hasattr(wrapper, 'optim_wrappers') else [wrapper]:
            self._handles.append(one.optimizer.register_step_pre_hook(self._before_step))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Forget features of what ran between the steps, such as the check of the teacher's accuracy."""
        self._features.clear()

    def after_train(self, runner: Runner) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _feature(self, source: str) -> Any:
        def note(module: nn.Module, inputs: Any, outputs: Any) -> None:
            maps = outputs if isinstance(outputs, list | tuple) else [outputs]
            for level, value in enumerate(maps):
                if isinstance(value, Tensor) and value.is_floating_point():
                    name = f'teacher feature {source}' + (f' level {level}' if len(maps) > 1 else '')
                    # 0 times a sum: NaN if any element is NaN or infinite, without a map of truth values
                    self._features.append((name, 0 * value.detach().float().sum()))

        return note

    def _remember(self, module: nn.Module, args: Any) -> None:
        """Statistics of a bad batch must not stay in BatchNorm's buffers if its step is left out."""
        if self.skip and module.training:
            self._buffers = [(b, b.detach().clone()) for b in module.buffers()]

    def _observe(self, module: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        if kwargs.get('mode', args[2] if len(args) > 2 else None) != 'loss' or not module.training:
            self._features.clear()
            return
        inputs, samples = kwargs.get('inputs', args[0] if args else None), kwargs.get('data_samples')
        samples = samples if samples is not None else args[1]
        named = dict(flat_losses(losses))
        for text in self._first.look(named):
            print_log(text, logger='current', level=30)
        numbers = [*named.items(), *self._features]
        self._features.clear()
        values = torch.stack([value.detach().float() for _, value in numbers])
        self._pending.append(_Batch(inputs, samples, [name for name, _ in numbers], values))

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """All gradients are there, no weight is changed yet."""
        overflow = getattr(optimizer, 'found_inf', None)
        if overflow is not None and bool(overflow):
            return  # a fused optimiser is called for overflowed gradients too, and leaves its weights by itself
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        norms = [n.float().reshape(1) for n in torch._foreach_norm([p.grad for p in parameters])]
        self._unstepped = 0
        if self._bad([*(batch.values for batch in self._pending), *norms]):
            self._fault(gradients=True)
            for parameter in parameters:
                parameter.grad = None
        self._pending.clear()

    def _bad(self, values: list[Tensor]) -> bool:
        bad = (~torch.isfinite(torch.cat(values))).any().float()
        if get_world_size() > 1:
            all_reduce(bad)
        return bool(bad.item())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Losses of a forward without a step: gradients are accumulated, or mixed precision left the step out.

        Raises:
            NonFiniteError: a loss or teacher feature is not finite, or mixed precision has not made a step for long.
        """
        if not self._pending:
            return
        bad = self._bad([batch.values for batch in self._pending])
        if bad:
            self._fault(gradients=False)
            self._model.zero_grad(set_to_none=True)
        self._pending.clear()
        scaled = hasattr(runner.optim_wrapper, 'loss_scaler')
        self._unstepped += scaled
        if self._unstepped > self.overflows * getattr(runner.optim_wrapper, '_accumulative_counts', 1):
            raise NonFiniteError(
                f'Mixed precision left out the last {self._unstepped} steps: the gradients are never finite, whatever '
                'the scale. Train without --amp, or with a lower learning rate.'
            )

    def _fault(self, *, gradients: bool) -> None:
        """Name and save what is wrong; stop, or count one more step that is left out."""
        iteration = self._runner.iter + 1
        facts, files = [], []
        for number, batch in enumerate(self._pending):
            facts += batch.culprits()
            path = Path(self._runner.work_dir) / f'bad_batch_iter_{iteration}_rank_{get_rank()}_{number}.pth'
            known = dict(iteration=iteration, culprits=batch.culprits())
            try:
                save_batch(path, batch.inputs, batch.samples, self._model, **known)
                files.append(str(path))
            except (OSError, RuntimeError) as error:  # a full disk must not hide what went wrong
                files.append(f'could not be saved ({error})')
        if gradients and not any(all_gather_object(facts)):
            facts = self._blame_gradients()
        images = [image for batch in self._pending for image in batch.images()]
        for buffer, before in self._buffers:
            buffer.data.copy_(before)
        text = self._text(iteration, all_gather_object(dict(facts=facts, images=images, files=files)))
        self.skipped += 1
        if self.skipped > self.skip:
            raise NonFiniteError(text)
        print_log(f'{text} Step left out ({self.skipped} of {self.skip}).', logger='current', level=30)

    def _text(self, iteration: int, found: list[dict]) -> str:
        epoch = self._runner.epoch + 1
        parts = []
        for rank, one in enumerate(found):
            if one['facts'] or len(found) == 1:
                where = f'On rank {rank}: ' if len(found) > 1 else ''
                facts = '; '.join(one['facts'][:6]) or 'a gradient is not finite'
                parts.append(f'{where}{facts}. Images: {", ".join(one["images"])}. Batch: {", ".join(one["files"])}.')
        return f'Not finite at iteration {iteration} (epoch {epoch}). ' + ' '.join(parts)

    def _blame_gradients(self) -> list[str]:
        """All losses are finite, a gradient is not: run the batch again and differentiate each loss alone."""
        batch = self._pending[-1]
        named = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        try:
            losses = dict(flat_losses(self._model.forward(batch.inputs, batch.samples, mode='loss')))
            found = []
            for loss, value in losses.items():
                if not value.requires_grad or 'loss' not in loss:
                    continue
                gradients = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
                pairs = zip(named, gradients, strict=True)
                bad = [name for name, g in pairs if g is not None and not torch.isfinite(g).all()]
                if bad:
                    found.append(f'the gradient of {loss} is not finite in {len(bad)} parameters, such as {bad[0]}')
        except Exception:  # activation checkpointing, or a detector that changed its batch
            found = []
        self._features.clear()
        return found or ['a gradient is not finite (the losses are)']

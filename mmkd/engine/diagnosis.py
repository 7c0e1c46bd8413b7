"""What a distillation does to its student in one step: gradients beside the task's, features beside the teacher's.

Everything is read from the graph of the training step itself, before its backward pass: no second forward, no random
number, no statistics, no reduction by DDP. So the weights are the same to the last bit with and without it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn
from torch.nn import functional as F

from mmkd.engine.listener import RunListener
from mmkd.functional.similarity import linear_cka

# Cells of a level that are compared: a regular grid over all of them, at most so many; coarser levels are left out.
MOST_CELLS, LEAST_CELLS = 512, 16
TASK, TOGETHER, SELF_TEACHER = 'student', 'all together', 'self_teacher'


@dataclass
class LossReading:
    """One distillation loss in one step.

    Args:
        value: the loss without its schedule's factor, levels added up.
        factor: the schedule's.
        weight: `loss_weight`, where the loss has one.
        gradient: norm of its gradient in the shared parameters.
        cosine: of the angle between its gradient and the task's; NaN where one of them is 0.
        similarity: linear CKA between what the loss compares, mean over levels; NaN where it compares no features.
        before_connector: the same for the two records before any connector; NaN where there is no connector.
    """

    value: float = math.nan
    factor: float = 1.0
    weight: float = math.nan
    gradient: float = math.nan
    cosine: float = math.nan
    similarity: float = math.nan
    before_connector: float = math.nan


@dataclass
class Reading:
    """One measured step.

    Args:
        task: value of the student's own losses.
        gradient: norm of their gradient in the shared parameters; NaN where it cannot be had.
        losses: by name; with several of them also their sum, as `all together`.
    """

    task: float = math.nan
    gradient: float = math.nan
    losses: dict[str, LossReading] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: dict) -> 'Reading':
        """A reading from what `dataclasses.asdict` made of it."""
        return cls(**{**content, 'losses': {name: LossReading(**one) for name, one in content['losses'].items()}})

    def share(self, loss: str) -> float:
        """Gradient norm of a loss over that of the task; NaN where either cannot be had."""
        return self.losses[loss].gradient / self.gradient if self.gradient else math.nan

    def numbers(self) -> Iterator[tuple[Any, str]]:
        """Every measured number as owner and attribute, in the same order in every process."""
        yield from ((self, name) for name in ('task', 'gradient'))
        for name in sorted(self.losses):
            keys = ('value', 'gradient', 'cosine', 'similarity', 'before_connector')
            yield from ((self.losses[name], key) for key in keys)


def shared_parameters(student: nn.Module) -> list[nn.Parameter]:
    """Trained parameters of backbone and neck, which task and distillation share; of all where there is no backbone."""
    parts = [getattr(student, name, None) for name in ('backbone', 'neck')]
    found = [p for part in parts if isinstance(part, nn.Module) for p in part.parameters() if p.requires_grad]
    return found or [p for p in student.parameters() if p.requires_grad]


class DiagnosisProbe:
    """Listens to an algorithm and measures the training step that runs while it is armed.

    Args:
        model: an algorithm with a `DetectionDistiller`.
        loss_scale: what mixed precision multiplies the loss with before the backward pass.

    Raises:
        ValueError: the model distils nothing.
    """

    def __init__(self, model: nn.Module, loss_scale: Callable[[], float] = lambda: 1.0) -> None:
        if not hasattr(getattr(model, 'distiller', None), 'mappings'):
            raise ValueError(f'A diagnosis needs a distillation of mmkd, got {type(model).__name__}.')
        self.model, self.loss_scale = model, loss_scale
        self.armed = False
        self.reading: Reading | None = None
        self._similar: dict[str, tuple[float, float]] = {}
        self._handles = [model.register_forward_hook(RunListener(self._measure), with_kwargs=True)]
        for name in model.distiller.mappings:
            loss = model.distiller.distill_losses[name]
            heard = RunListener(partial(self._compare, name))
            self._handles.append(loss.register_forward_pre_hook(heard, with_kwargs=True))

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def arm(self) -> None:
        """Measure the next training step."""
        self.armed, self.reading = True, None
        self._similar.clear()

    def take(self) -> Reading | None:
        """The reading of the armed step, mean over processes; every process must ask. None where no step ran."""
        reading, self.reading, self.armed = self.reading, None, False
        if reading is not None and get_world_size() > 1:
            _average(reading, next(self.model.parameters()).device)
        return reading

    @torch.no_grad()
    def _compare(self, loss: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.armed:
            return
        with torch.autocast(next(self.model.parameters()).device.type, enabled=False):
            compared = similarity(kwargs.get('preds_S'), kwargs.get('preds_T'))
            self._similar[loss] = (compared, self._similarity_of_records(loss))

    def _similarity_of_records(self, loss: str) -> float:
        """Both records as the networks gave them, where a connector stands between them and the loss."""
        distiller = self.model.distiller
        sources = [distiller.mappings[loss].get(key) for key in ('preds_S', 'preds_T')]
        if any(source is None or source.reserved for source in sources) or not any(s.connector for s in sources):
            return math.nan
        if sources[0].from_student == sources[1].from_student:  # levels of one network, which teach each other
            return math.nan
        return similarity(*(distiller.reader.record(source, loss) for source in sources))

    def _measure(self, module: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        if not self.armed or not module.training or kwargs.get('mode', args[2] if len(args) > 2 else None) != 'loss':
            return
        self.armed = False
        sums = self._sums(losses)
        reading = Reading(task=sums[TASK].item())
        for name, value in sums.items():
            if name != TASK:
                reading.losses[name] = self._reading(name, value)
        with torch.autocast(sums[TASK].device.type, enabled=False):
            self._add_gradients(reading, sums)
        self.reading = reading

    def _sums(self, losses: dict[str, Any]) -> dict[str, Tensor]:
        """The step's losses, added up to one for the task, one for each distillation loss that is on, and the rest."""
        active = [name for name in self.model.distiller.mappings if self.model.distiller.active(name)]
        sums: dict[str, Tensor] = {}
        for name, value in losses.items():
            part, _, rest = name.partition('.')
            key = part
            if part == 'distill':
                key = max((loss for loss in active if rest.startswith(loss)), key=len, default=None)
            if key is not None and 'loss' in name:
                sums[key] = sums.get(key, 0) + _total(value)
        return sums

    def _reading(self, name: str, value: Tensor) -> LossReading:
        distiller = self.model.distiller
        factor = distiller.factors.get(name, 1.0)
        reading = LossReading(value=value.item() / factor, factor=factor)
        if name in self._similar:
            reading.similarity, reading.before_connector = self._similar[name]
        if name in distiller.distill_losses:
            reading.weight = float(getattr(distiller.distill_losses[name], 'loss_weight', math.nan))
        return reading

    def _add_gradients(self, reading: Reading, sums: dict[str, Tensor]) -> None:
        if any(_is_checkpointed(value) for value in sums.values()):
            return
        parameters = shared_parameters(self.model.architecture)
        scale = self.loss_scale()
        task = _gradient(sums[TASK], parameters, scale)
        reading.gradient = _norm(task)
        total: list[Tensor] | None = None
        for name, found in reading.losses.items():
            gradient = _gradient(sums[name], parameters, scale)
            _note(found, gradient, task)
            if name != SELF_TEACHER:
                total = gradient if total is None else [a + b for a, b in zip(total, gradient, strict=True)]
        names = [name for name in reading.losses if name != SELF_TEACHER]
        if len(names) > 1:
            together = LossReading(value=sum(sums[name].item() for name in names))
            _note(together, total, task)
            reading.losses[TOGETHER] = together


def _total(value: Any) -> Tensor:
    return value.mean() if isinstance(value, Tensor) else sum(part.mean() for part in value)


def _note(reading: LossReading, gradient: list[Tensor], task: list[Tensor]) -> None:
    reading.gradient = _norm(gradient)
    product = sum(((a.double() * b.double()).sum() for a, b in zip(gradient, task, strict=True)), torch.zeros(()))
    norms = reading.gradient * _norm(task)
    reading.cosine = product.item() / norms if norms else math.nan


def _gradient(value: Tensor, parameters: list[nn.Parameter], scale: float) -> list[Tensor]:
    """Gradient of one loss; `.grad` of the parameters and the graph stay as they are."""
    if not value.requires_grad:
        return [torch.zeros((), device=p.device) for p in parameters]
    found = torch.autograd.grad(value, parameters, torch.full_like(value, scale), retain_graph=True, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros((), device=p.device) if g is None else g.float() / scale for g, p in pairs]


def _norm(gradient: list[Tensor]) -> float:
    return torch.stack([norm.double() for norm in torch._foreach_norm(gradient)]).norm().item()


def _is_checkpointed(value: Tensor) -> bool:
    """Whether a graph holds reentrant activation checkpoints, which torch differentiates by `backward()` alone."""
    pending, seen = [value.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if 'Checkpoint' in type(node).__name__:
            return True
        seen.add(node)
        pending.extend(function for function, _ in node.next_functions)
    return False


def similarity(student: Any, teacher: Any) -> float:
    """Linear CKA between two records, mean over the levels that both have and that are large enough.

    Args:
        student: (N, C1, H1, W1) map, (n, C1) matrix, or nested tuples of them.
        teacher: the same with other channels; a finer grid is averaged down to the coarser one.

    Returns:
        About 0 to 1, or NaN where there is nothing to compare.
    """
    pairs = [list(_tensors(side)) for side in (student, teacher)]
    if len(pairs[0]) != len(pairs[1]):
        return math.nan
    found = []
    for x, y in zip(*pairs, strict=True):
        rows = _rows(x, y)
        if rows is not None and len(rows[0]) >= LEAST_CELLS:
            found.append(linear_cka(*rows).item())
    known = [value for value in found if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both sides as (cells, C), the same cells of the same grid."""
    if x.dim() != y.dim() or len(x) != len(y) or x.dim() not in (2, 4):
        return None
    if x.dim() == 4:
        grid = tuple(min(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True))
        x, y = (F.adaptive_avg_pool2d(side.float(), grid) if side.shape[2:] != grid else side for side in (x, y))
        x, y = (side.permute(0, 2, 3, 1).flatten(0, 2) for side in (x, y))  # (N, C, H, W) -> (N*H*W, C)
    chosen = torch.linspace(0, len(x) - 1, min(len(x), MOST_CELLS), device=x.device).round().long()
    return x[chosen].double(), y[chosen].double()


def _average(reading: Reading, device: torch.device) -> None:
    """Mean of every number over the processes that have it."""
    slots = list(reading.numbers())
    own = torch.tensor([getattr(owner, name) for owner, name in slots], dtype=torch.float64, device=device)
    both = torch.stack([own.nan_to_num(0.0, posinf=math.inf, neginf=-math.inf), (~own.isnan()).double()])
    all_reduce(both)
    for (owner, name), total, count in zip(slots, *both.tolist(), strict=True):
        setattr(owner, name, total / count if count else math.nan)

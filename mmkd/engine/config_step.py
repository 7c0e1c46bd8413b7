"""One measured training step on one real image: losses, gradients, time and memory against plain training."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from math import isfinite
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import Tensor, nn

from mmkd.engine.config_report import ConfigReport
from mmkd.models.algorithms.missing_operator import gpu_of_this_process
from mmkd.models.algorithms.sample_copies import copied_samples
from mmkd.models.apart import own_randomness

REPEATS = 3
# A loss this far from the student's own rules the training, or is lost in it.
LARGE, SMALL = 100.0, 1e-4
# Noise, in the weights of a self-teacher, that stands for some training.
STIR = 0.05


def one_image(cfg: Config, model: nn.Module) -> dict[str, Any]:
    """The first training image through the data set's own pipeline and the student's preprocessor.

    Raises:
        ValueError: no image is left after filtering, or the pipeline gives no `inputs` and `data_samples`.
    """
    try:
        with redirect_stdout(io.StringIO()):  # pycocotools prints
            dataset = DATASETS.build(cfg.train_dataloader.dataset)
    except ValueError as error:
        if 'need at least one array' in str(error):  # MMEngine's answer to a set without images
            raise ValueError(
                'The training set is empty after filtering: no image has a box of its classes (filter_cfg).'
            ) from error
        raise
    try:
        item = dataset[0]
    except Exception as error:
        path = dataset.get_data_info(0).get('img_path')
        raise ValueError(f'The training pipeline fails on {path} ({type(error).__name__}): {error}') from error
    if not isinstance(item, dict) or not {'inputs', 'data_samples'} <= set(item):
        raise ValueError("The training pipeline gives no 'inputs' and 'data_samples': it must end with PackDetInputs.")
    with torch.no_grad():
        return model.data_preprocessor(pseudo_collate([item]), training=True)


@contextmanager
def kept_for_backward() -> Iterator[list[int]]:
    """Bytes of activations that autograd keeps, each storage counted once."""
    seen: set[int] = set()
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def _measure(model: nn.Module, forward: Callable[[], dict]) -> tuple[float, float]:
    """Median seconds of forward and backward, and MiB kept for the backward pass."""
    seconds, sizes = [], []
    for _ in range(REPEATS):
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with kept_for_backward() as kept:
            loss, _ = model.parse_losses(forward())
        loss.backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        sizes.append(kept[0] / 2**20)
    return median(seconds), sizes[-1]


def measuring_device() -> torch.device:
    """Where a check takes its steps: on a GPU as a training would, else on the CPU."""
    return gpu_of_this_process() or torch.device('cpu')


def report_step(model: nn.Module, cfg: Config, report: ConfigReport) -> None:
    """Run one image through the plain student and through the method; every loss is on, whatever its schedule."""
    batch = one_image(cfg, model)
    inputs, samples = batch['inputs'], batch['data_samples']
    model.train()
    distiller = model.distiller
    kept_schedules, distiller.schedules = distiller.schedules, {}
    try:
        plain = _measure(model, lambda: model.architecture(inputs, copied_samples(samples), mode='loss'))
        unused_plain = set(_without_gradient(model.architecture))
        whole = _measure(model, lambda: model(inputs, copied_samples(samples), mode='loss'))
        unused = _without_gradient(model)
        _report_losses(model, lambda: model(inputs, copied_samples(samples), mode='loss'), report)
        for name in distiller.untrained_connectors():
            report.problems.append(
                f'The connector {name!r} gets no gradient: it would never learn. The losses keep the teacher out of '
                "the graph, so that a connector with weights belongs on the student's side (preds_S)."
            )
    finally:
        distiller.schedules = kept_schedules
        model.zero_grad(set_to_none=True)
    rows = [(f'{a:.3g}', f'{b:.3g}', f'{b / a:.2f}') for a, b in zip(plain, whole, strict=True)]
    names = ('seconds, forward and backward', 'MiB kept for backward')
    table = [(name, *row) for name, row in zip(names, rows, strict=True)]
    title = f'One image of {tuple(inputs.shape[-2:])} px, on {inputs.device.type}'
    report.tables.append((title, ('', 'plain', 'distilled', 'ratio'), table))
    for name in unused:
        if name not in unused_plain:
            report.problems.append(f'The parameter {name} gets no gradient: it would never learn.')
    if unused_plain:
        report.warnings.append(f'{len(unused_plain)} parameters of the student itself get no gradient: {unused_plain}.')


def _without_gradient(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def _total(value: Any) -> Tensor:
    return value.mean() if isinstance(value, Tensor) else sum(part.mean() for part in value)


def _report_losses(model: nn.Module, step: Callable[[], dict[str, Any]], report: ConfigReport) -> None:
    rows, sums, own = _losses_of(model, step())
    grown = getattr(model, 'self_teacher', None)
    title = 'Losses of this image'
    if grown is not None and any(norm == 0 for _, norm in sums.values()):
        # one that adds to the student's features by gains from 0 begins as the student: nothing to learn yet
        title += ' (the self-teacher begins as the student)'
        with _stirred(grown):
            later = _losses_of(model, step())[1]
        sums = {name: (value, norm or later[name][1]) for name, (value, norm) in sums.items()}
    report.problems += [f'{name} is {value} on the first image.' for name, value, _ in rows if not isfinite(value)]
    shown = [(name, f'{value:.4g}', f'{norm:.4g}') for name, value, norm in rows]
    report.tables.append((title, ('loss', 'value', 'gradient norm in the student'), shown))
    for name, (value, norm) in sums.items():
        _judge(name, value, norm, own, report, young=grown is not None)


def _losses_of(
    model: nn.Module, losses: dict[str, Any]
) -> tuple[list[tuple[str, float, float]], dict[str, tuple[float, float]], float]:
    """Value and gradient norm of each loss, those of each distillation loss over its levels, the student's own sum."""
    trained = [p for p in model.architecture.parameters() if p.requires_grad]
    values = {name: _total(value) for name, value in losses.items() if 'loss' in name}
    rows = [(name, value.item(), _gradient_norm(value, trained)) for name, value in values.items()]
    sums = {f'distill.{name}': (0.0, 0.0) for name in model.distiller.mappings}
    for name, value, norm in rows:
        # a level without objects may well be 0; the whole loss may not
        whole = max((loss for loss in sums if name.startswith(loss)), key=len, default=None)
        if whole is not None:
            sums[whole] = (sums[whole][0] + value, sums[whole][1] + norm)
    return rows, sums, sum(value for name, value, _ in rows if name.startswith('student.'))


@contextmanager
def _stirred(module: nn.Module) -> Iterator[None]:
    """A network as after some training, for the question of what can be learned from it; put back behind."""
    kept = [p.detach().clone() for p in module.parameters()]
    with torch.no_grad(), own_randomness():
        for p in module.parameters():
            p += STIR * torch.randn_like(p)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, before in zip(module.parameters(), kept, strict=True):
                p.copy_(before)


def _judge(name: str, value: float, norm: float, own: float, report: ConfigReport, *, young: bool) -> None:
    """Add what is wrong with a loss; two young heads agree, so that a small value says nothing of a self-teacher."""
    if norm == 0:
        report.problems.append(f'{name} gives the student no gradient (value {value:.4g}): nothing would be distilled.')
    elif abs(value) > LARGE * own:
        report.warnings.append(f"{name} is {value:.4g}, the student's own losses {own:.4g}: it rules the training.")
    elif abs(value) < SMALL * own and not young:
        report.warnings.append(f"{name} is {value:.4g}, the student's own losses {own:.4g}: it has next to no weight.")


def _gradient_norm(value: Tensor, parameters: list[nn.Parameter]) -> float:
    if not value.requires_grad:
        return 0.0
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    norms = [g.norm() for g in found if g is not None]
    return torch.stack(norms).norm().item() if norms else 0.0

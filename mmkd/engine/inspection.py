"""What the losses of a distillation compare on one image, read without a training step and without a trace.

No loss of the detector runs: nothing is reduced over processes, so that one process alone may look.

Shapes: `N` images (here 1), `C` channels, `H, W` cells of a level.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.engine.random_state import preserved_random_state
from mmkd.models.algorithms.dry_student import Listening
from mmkd.models.algorithms.tapped_forward import TappedForward
from mmkd.models.distillers.wiring import all_sources


@dataclass(frozen=True)
class Compared:
    """One level of one loss.

    Args:
        level: its name, such as `p3`, or `p3_from_p4` where levels teach each other.
        student: (C, H, W), behind the connectors.
        teacher: (C, H, W), the channels may differ.
        mask: (H, W) in [0, 1], or None.
    """

    level: str
    student: Tensor
    teacher: Tensor
    mask: Tensor | None = None


@dataclass
class Inspection:
    """What one image shows.

    Args:
        losses: levels of each loss that compares feature maps, finest first.
        records: features as the networks gave them, by side and recorder (`student neck`), then by level.
        gates: weights of attention modules among the connectors, (H, W) in (0, 1), by name and level.
        masks: masks of the losses, (H, W) in [0, 1], by name and level.
        skipped: why a loss is not among `losses`.
    """

    losses: dict[str, list[Compared]] = field(default_factory=dict)
    records: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    gates: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    masks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modes and random state are afterwards what they were."""
    modules = {id(m): m for part in (model, getattr(model, 'architecture', model)) for m in part.modules()}
    modes = [(module, module.training) for module in modules.values()]
    with preserved_random_state(), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def teaching_side(model: nn.Module) -> str:
    """What to call the side that teaches: `teacher`, `self-teacher`, or `teaching level` of the same network."""
    if hasattr(model, '_teacher'):
        return 'teacher'
    return 'self-teacher' if hasattr(model, 'self_teacher') else 'teaching level'


def inspect_losses(model: nn.Module, inputs: Tensor, data_samples: list) -> Inspection:
    """Run both sides on one image and read what each loss compares, whatever its schedule.

    Args:
        model: an algorithm with a `DetectionDistiller`.
        inputs: (1, 3, H, W) from the student's data preprocessor.
        data_samples: one sample with `batch_input_shape`, `img_shape` and `gt_instances`, boxes in px of `inputs`.

    Returns:
        Tensors on the model's device, without gradient.
    """
    distiller = model.distiller
    found = Inspection()
    with undisturbed(model), ExitStack() as stack:
        stack.callback(distiller.release)
        _run_both(model, inputs, data_samples)
        with _listening_to_gates(distiller, found):
            cache: dict = {}
            for loss, sources in distiller.mappings.items():
                _read_loss(distiller, loss, sources, dict(data_samples=data_samples), found, cache)
        _read_records(model, found)
        _read_masks(distiller, data_samples, found)
    return found


def _map_layers(distiller: nn.Module, from_student: bool) -> list[str]:
    """Layers that give feature maps; RoI heads give none, and would need proposals."""
    recorders = distiller.recorders(from_student).recorders
    return [r.source for name, r in recorders.items() if distiller.taps.get((from_student, name)) is not None]


def _run_both(model: nn.Module, inputs: Tensor, data_samples: list) -> None:
    """Let both sides run as far as their last recorded feature map."""
    distiller, student = model.distiller, model.architecture
    joint = [model.source] if hasattr(model, 'self_teacher') else []
    heard = None
    with ExitStack() as stack:
        stack.enter_context(distiller.student_recorders)
        if joint:
            heard = stack.enter_context(Listening(student.get_submodule(joint[0])))
        forget = partial(distiller.release, True)
        _run(student, [*_map_layers(distiller, True), *joint], inputs, data_samples, forget)
    if hasattr(model, '_teacher'):
        with distiller.teacher_recorders:
            model._teacher.run(model._renormalise(inputs, data_samples), data_samples)
            if model._teacher.options:
                distiller.reader.convert(False, model._teacher.options.restore)
    elif heard is not None:
        grown = model.self_teacher.model
        grown.backbone.give(heard.output)
        with distiller.teacher_recorders:
            _run(grown, _map_layers(distiller, False), inputs, data_samples, partial(distiller.release, False))
        grown.backbone.give(None)


def _run(network: nn.Module, layers: list[str], inputs: Tensor, data_samples: list, forget: Callable) -> None:
    if layers:
        forward = TappedForward(network, layers)
        try:
            forward.probe(inputs, data_samples, forget=forget)
        finally:
            forward.close()


def _read_loss(distiller: nn.Module, loss: str, sources: dict, reserved: dict, found: Inspection, cache: dict) -> None:
    sides = {key: source for key, source in sources.items() if key in ('preds_S', 'preds_T', 'mask')}
    for source in (part for s in sides.values() for part in (s, s.other) if part is not None and not part.reserved):
        if distiller.taps.get((source.from_student, source.recorder)) is None:
            layer = distiller.recorders(source.from_student).get_recorder(source.recorder).source
            found.skipped[loss] = f'{layer} gives no feature map'
            return
    if {'preds_S', 'preds_T'} - set(sides):
        found.skipped[loss] = 'it does not compare two sides'
        return
    values = {key: _levels(value) for key, value in distiller.reader.arguments(sides, reserved, loss, cache).items()}
    count = min(len(value) for value in values.values())
    names = distiller.level_names.get(loss, ())
    names = names if len(names) == count else tuple(str(index) for index in range(count))
    levels = [
        Compared(name, student, teacher, None if mask is None else mask[0])
        for name, student, teacher, mask in zip(
            names, values['preds_S'], values['preds_T'], values.get('mask', [None] * count), strict=False
        )
    ]
    found.losses[loss] = sorted(levels, key=lambda level: -level.student[0].numel())


def _levels(value: Any) -> list[Tensor]:
    """First map of every level, (C, H, W): a connector may give a code together with other things."""
    levels = value if isinstance(value, list | tuple) else [value]
    return [_first_map(level) for level in levels]


def _first_map(value: Any) -> Tensor:
    while isinstance(value, list | tuple):
        value = value[0]
    return value.detach()[0].float()


@contextmanager
def _listening_to_gates(distiller: nn.Module, found: Inspection) -> Iterator[None]:
    """Connectors that weigh cells have a method `gate`: feature -> (N, 1, H, W)."""

    def note(name: str, levels: Sequence[str]) -> Any:
        def hook(module: nn.Module, arguments: tuple) -> None:
            gates = found.gates.setdefault(name, {})
            level = levels[len(gates)] if len(gates) < len(levels) else str(len(gates))
            gates[level] = module.gate(arguments[0])[0, 0]

        return hook

    with ExitStack() as stack:
        for connector, whole in distiller.connectors.items():
            for module in whole.modules():
                if hasattr(module, 'gate') and getattr(module, 'enabled', True):
                    name = f'{connector}: {type(module).__name__}'
                    hook = note(name, _levels_through(distiller, connector))
                    stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _levels_through(distiller: nn.Module, connector: str) -> tuple[str, ...]:
    """Names of the levels that pass a connector."""
    for source in all_sources(distiller.mappings):
        tap = distiller.taps.get((source.from_student, source.recorder))
        if source.connector == connector and tap is not None:
            return tap.names if source.levels is None else tap.select(source.levels).names
    return ()


def _read_records(model: nn.Module, found: Inspection) -> None:
    """Features as they are, without the outputs of heads."""
    distiller = model.distiller
    for source in all_sources(distiller.mappings):
        tap = distiller.taps.get((source.from_student, source.recorder))
        if source.reserved or tap is None:
            continue
        layer = distiller.recorders(source.from_student).get_recorder(source.recorder).source
        name = f'{"student" if source.from_student else teaching_side(model)} {layer}'
        if 'head' in layer or name in found.records:
            continue
        levels = zip(tap.names, _levels(distiller.reader.record(replace(source, levels=None), name)), strict=False)
        found.records[name] = dict(sorted(levels, key=lambda entry: -entry[1][0].numel()))


def _read_masks(distiller: nn.Module, data_samples: list, found: Inspection) -> None:
    """Each mask on the grids of the recorded features."""
    grids = {name: level for levels in found.records.values() for name, level in levels.items()}
    for name, mask in distiller.masks.items():
        if grids:
            values = mask(data_samples, [level[None] for level in grids.values()])
            found.masks[name] = {level: value[0, 0] for level, value in zip(grids, values, strict=True)}

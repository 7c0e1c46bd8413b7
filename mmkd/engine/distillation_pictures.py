"""Pictures of one image in a distillation: what the losses compare, where the networks look, what they detect."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmkd.engine.inspection import Compared, Inspection, inspect_losses, teaching_side, undisturbed
from mmkd.engine.subjects import Subject, detect, preprocess
from mmkd.near_names import nearest
from mmkd.visualization.detections import Boxes, detection_figure
from mmkd.visualization.grid import Column, Frame, Scale, grid_figure
from mmkd.visualization.views import ATTENTION, attention, gated_target, view_of

KINDS = ('losses', 'attention', 'detections')


@dataclass(frozen=True)
class PictureOptions:
    """What is drawn.

    Args:
        kinds: some of `KINDS`.
        levels: names of levels such as `p3`; None for all. A pair of levels is shown if its first is named.
        threshold: lowest score of a detection that is drawn, or that marks an object where nothing is annotated.
        classes: names, for the legend.

    Raises:
        ValueError: an unknown kind, or a threshold outside [0, 1].
    """

    kinds: Sequence[str] = KINDS
    levels: Sequence[str] | None = None
    threshold: float = 0.3
    classes: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f'kinds must be some of {KINDS}, got {kind!r}; {nearest(kind, KINDS)}.')
        if not 0 <= self.threshold <= 1:
            raise ValueError(f'threshold must be in [0, 1], got {self.threshold}.')


def draw_subject(
    model: nn.Module, subject: Subject, options: PictureOptions, others: Mapping[str, nn.Module] | None = None
) -> dict[str, Figure]:
    """Draw one image.

    Args:
        model: an algorithm; its modes, random state and records are afterwards what they were.
        subject: the image.
        options: what is drawn.
        others: further detectors for the detections, by name, shown in front.

    Returns:
        Figures by name: each loss's own, `attention`, `detections`.

    Raises:
        ValueError: a wanted level is in no loss and no record.
    """
    figures: dict[str, Figure] = {}
    with undisturbed(model):
        boxes, said = _objects(model, subject, options.threshold)
        if {'losses', 'attention'} & set(options.kinds):
            inputs, samples, frame = preprocess(model, subject, boxes)
            found = inspect_losses(model, inputs, samples)
            refuse_unknown_levels(options.levels, _level_names(found))
            caption = f'{subject.name}; boxes: {said}'
            if 'losses' in options.kinds:
                figures |= _loss_figures(model, found, frame, caption, options.levels)
            if 'attention' in options.kinds and found.records:
                figures |= _attention_figure(found, frame, caption, options.levels)
        if 'detections' in options.kinds:
            figures['detections'] = _detection_figure(model, subject, options, others or {})
    return figures


def _objects(model: nn.Module, subject: Subject, threshold: float) -> tuple[Boxes, str]:
    """Annotated objects, else what the better network detects, and what they are."""
    if subject.truth is not None:
        return subject.truth, 'ground truth'
    side, network = ('teacher', model.teacher) if hasattr(model, '_teacher') else ('student', model.architecture)
    return detect(network, subject).above(threshold), f'detections of the {side} (no annotation)'


def refuse_unknown_levels(levels: Sequence[str] | None, there: Sequence[str]) -> None:
    """A level that is misspelt would be left out without a word.

    Args:
        levels: wanted; None for all.
        there: names of levels, those of pairs included.

    Raises:
        ValueError: names the level and the nearest one.
    """
    known = list(dict.fromkeys(name.split('_')[0] for name in there))
    for level in levels or ():
        if known and level not in known:
            raise ValueError(f'levels: there is no {level!r}, only {", ".join(known)}; {nearest(level, known)}.')


def _level_names(found: Inspection) -> list[str]:
    compared = [one.level for levels in found.losses.values() for one in levels]
    return [*compared, *(level for maps in found.records.values() for level in maps)]


def _wanted(names: Sequence[str], levels: Sequence[str] | None) -> list[str]:
    return [name for name in names if levels is None or name.split('_')[0] in levels]


def _cells(name: str, feature: Tensor) -> str:
    return f'{name}: {feature.shape[-2]}x{feature.shape[-1]}'


def _loss_figures(
    model: nn.Module, found: Inspection, frame: Frame, caption: str, levels: Sequence[str] | None
) -> Iterator[tuple[str, Figure]]:
    side = teaching_side(model)
    for name, compared in found.losses.items():
        outer = model.distiller.distill_losses[name]
        loss = getattr(outer, 'loss', outer)
        chosen = _wanted([one.level for one in compared], levels)
        kept = [one for one in compared if one.level in chosen]
        if not kept:  # this loss has none of the wanted levels
            continue
        title = f'{name} ({type(loss).__name__}): student and {side} as the loss compares them\n{caption}'
        names = [_cells(one.level, one.student) for one in kept]
        yield name, grid_figure(frame, names, _columns(loss, kept, side), title=title)


def _columns(loss: nn.Module, levels: list[Compared], side: str) -> list[Column]:
    view = view_of(loss)
    masks = [None if one.mask is None else _array(one.mask) for one in levels]
    targets = [gated_target(loss, one.teacher, mask) for one, mask in zip(levels, masks, strict=True)]
    students = [view.value(one.student) for one in levels]
    teachers = [view.value(target) for target in targets]
    shared = Scale(view.label)
    columns = [Column('student', students, shared), Column(side, teachers, shared)]
    same = [s.shape == t.shape for s, t in zip(students, teachers, strict=True)]
    gaps = [s - t if fit else None for s, t, fit in zip(students, teachers, same, strict=True)]
    columns.append(Column(f'student - {side}', gaps, Scale('difference', 'RdBu_r', centred=True)))
    if view.compared is not None and view.scale is not None:
        pairs = zip(levels, targets, strict=True)
        values = [view.compared(one.student, t) if one.student.shape[1:] == t.shape[1:] else None for one, t in pairs]
        columns.append(Column(view.title, values, view.scale))
    if any(mask is not None for mask in masks):
        columns.append(Column('mask', masks, Scale('weight', 'gray', (0.0, 1.0))))
    return columns


def _attention_figure(found: Inspection, frame: Frame, caption: str, levels: Sequence[str] | None) -> dict[str, Figure]:
    """Attention of the recorded features, gates and masks, all over the image; none without a wanted level."""
    first = next(iter(found.records.values()))
    chosen = _wanted(list(first), levels)
    if not chosen:
        return {}
    shared = Scale(ATTENTION, 'inferno', overlay=True)
    columns = [
        Column(name, [attention(maps[level]) if level in maps else None for level in chosen], shared)
        for name, maps in found.records.items()
    ]
    for name, maps in found.gates.items():
        columns.append(
            _overlay(f'gate of\n{name}', maps, chosen, Scale('weight', 'inferno', (None, None), overlay=True))
        )
    for name, maps in found.masks.items():
        columns.append(_overlay(f'mask {name!r}', maps, chosen, Scale('weight', 'inferno', (0.0, 1.0), overlay=True)))
    names = [_cells(level, first[level]) for level in chosen]
    also = ', and where the losses do' if found.gates or found.masks else ''
    return {'attention': grid_figure(frame, names, columns, title=f'Where the networks look{also}\n{caption}')}


def _overlay(title: str, maps: Mapping[str, Tensor], levels: Sequence[str], scale: Scale) -> Column:
    return Column(title, [_array(maps[level]) if level in maps else None for level in levels], scale)


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _detection_figure(
    model: nn.Module, subject: Subject, options: PictureOptions, others: Mapping[str, nn.Module]
) -> Figure:
    networks = {**others, 'student': model.architecture}
    if hasattr(model, '_teacher'):
        networks['teacher'] = model.teacher
    columns = {} if subject.truth is None else {'ground truth': [subject.truth]}
    columns |= {name: [detect(network, subject)] for name, network in networks.items()}
    title = f'{subject.name}: detections with a score of at least {options.threshold:g}'
    return detection_figure(
        [subject.picture], columns, classes=options.classes, threshold=options.threshold, title=title
    )


def as_pixels(figure: Figure, dpi: int = 90) -> np.ndarray:
    """The figure as (H, W, 3) RGB, uint8, for `Visualizer.add_image`."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.ascontiguousarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])

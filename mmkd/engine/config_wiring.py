"""The built pair: tapped layers, connectors, normalisation, classes and how much of the teacher its checkpoint covers.

Sizes are (H, W) cells of the dry forward's input.
"""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from torch import nn

from mmkd.engine.config_report import ConfigReport
from mmkd.engine.detector_classes import num_classes, recorded_class_outputs
from mmkd.engine.preflight_data import dataset_classes, datasets
from mmkd.models.algorithms.checkpoint_state import compare_states, is_harmless, plain_state
from mmkd.models.distillers.wiring import Source, Tap


def report_wiring(model: nn.Module, report: ConfigReport) -> None:
    """Tables of the tapped layers and of the losses with the connectors between both sides."""
    distiller = model.distiller
    rows, size = [], distiller.input_size
    for (from_student, name), tap in distiller.taps.items():
        source = distiller.recorders(from_student).get_recorder(name).source
        rows.append(('student' if from_student else 'teacher', name, str(source), *_tap_text(tap, size)))
    header = ('side', 'recorder', 'layer', 'levels', 'channels', 'strides', f'sizes at {size[0]}x{size[1]}')
    report.tables.append(('Tapped layers', header, rows))
    losses = []
    for name, sources in distiller.mappings.items():
        for key, source in sources.items():
            weight = getattr(distiller.distill_losses[name], 'loss_weight', '')
            losses.append((name, str(weight), key, _source_text(source), _connector_text(distiller, source)))
    report.tables.append(('Losses', ('loss', 'weight', 'argument', 'from', 'through'), losses))


def _tap_text(tap: Tap | None, size: tuple[int, int]) -> tuple[str, str, str, str]:
    if tap is None:
        return '', 'no feature map', '', ''
    sizes = [f'{size[0] // s}x{size[1] // s}' for s in tap.strides]
    join = ' '.join
    return join(tap.names), join(map(str, tap.channels)), join(map(str, tap.strides)), join(sizes)


def _source_text(source: Source) -> str:
    if source.mask is not None:
        return f'mask {source.mask}'
    if source.reserved:
        return str(source.recorder)
    side = 'student' if source.from_student else 'teacher'
    levels = '' if source.levels is None else f' levels {", ".join(map(str, source.levels))}'
    return f'{side} {source.recorder}{levels}'


def _connector_text(distiller: Any, source: Source) -> str:
    if source.connector is None:
        return ''
    module = distiller.connectors[source.connector]
    count = sum(p.numel() for p in module.parameters())
    inner = {type(m).__name__: None for m in module.modules() if type(m).__module__.startswith(('mmkd', 'mmrazor'))}
    other = f', with {_source_text(source.other)}' if source.other is not None else ''
    return f'{source.connector}: {" > ".join(inner) or type(module).__name__}, {count} parameters{other}'


def _constants(model: nn.Module) -> dict[str, Any]:
    preprocessor = model.data_preprocessor
    return dict(
        mean=_numbers(getattr(preprocessor, 'mean', None)),
        std=_numbers(getattr(preprocessor, 'std', None)),
        order='RGB' if getattr(preprocessor, '_channel_conversion', False) else 'BGR',
        divisor=getattr(preprocessor, 'pad_size_divisor', 1),
    )


def _numbers(value: Any) -> str:
    return 'none' if value is None else ' '.join(f'{float(v):.4g}' for v in value.flatten())


def report_sides(model: nn.Module, cfg: Config, report: ConfigReport) -> None:
    """Table of what differs between student and teacher in input and classes, with warnings."""
    student, teacher = _constants(model.architecture), _constants(model.teacher)
    rows = [(name, student[name], teacher[name]) for name in student]
    classes = next((dataset_classes(d) for name, d in datasets(cfg) if name == 'train_dataloader'), ())
    counts = num_classes(model.architecture), num_classes(model.teacher)
    rows.append(('classes', *counts))
    rows.append(('type', type(model.architecture).__name__, type(model.teacher).__name__))
    rows.append(('parameters', *(f'{_count(m) / 1e6:.2f} M' for m in (model.architecture, model.teacher))))
    title = f'Both networks (data set: {len(classes)} classes)'
    report.tables.append((title, ('', 'student', 'teacher'), [tuple(map(str, row)) for row in rows]))
    report.warnings += _input_warnings(student, teacher)
    report.problems += _class_problems(model, classes, counts, report)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _input_warnings(student: dict, teacher: dict) -> Iterator[str]:
    if student['divisor'] % teacher['divisor']:
        yield (
            f'The teacher was made for inputs padded to {teacher["divisor"]} px, the student pads to '
            f'{student["divisor"]}: levels may differ in size.'
        )
    names = [name for name in ('mean', 'std', 'order') if student[name] != teacher[name]]
    if names:
        yield f'Student and teacher differ in {" and ".join(names)}: the teacher gets its own normalisation.'


def _class_problems(model: nn.Module, classes: tuple, counts: tuple, report: ConfigReport) -> Iterator[str]:
    if not classes:
        return
    source, texts = model._teacher.source, []
    if source.numbers_otherwise(classes):
        texts.append(f"The teacher's configuration numbers the classes otherwise ({', '.join(source.classes)})")
    if counts[1] not in (None, len(classes)):
        texts.append(f'The teacher predicts {counts[1]} classes, the data set has {len(classes)}')
    heads = recorded_class_outputs(model)
    if heads:
        yield from (f'{text}, and its class outputs are recorded ({", ".join(heads)}).' for text in texts)
    else:
        report.warnings += [f'{text}: no class outputs are distilled.' for text in texts]


def report_coverage(model: nn.Module, checkpoint: Any, report: ConfigReport) -> None:
    """How much of the teacher the checkpoint fills."""
    state, network = plain_state(checkpoint), model.teacher
    found = compare_states(network, state)
    own = network.state_dict()
    bad = {key.split(' ')[0] for key in found['shape']} | set(found['missing'])
    filled = sum(v.numel() for k, v in own.items() if k not in bad) / max(1, sum(v.numel() for v in own.values()))
    row = (f'{100 * filled:.1f} %', *(str(len(found[kind])) for kind in ('missing', 'unexpected', 'shape')))
    header = ('values filled', 'missing keys', 'unexpected keys', 'other shape')
    report.tables.append((f'Teacher checkpoint {model._teacher.checkpoint}', header, [row]))
    if filled < 0.5:
        report.problems.append(f'The checkpoint fills only {100 * filled:.1f} % of the teacher.')
    elif bad or found['unexpected']:
        report.warnings.append(f'The checkpoint fills {100 * filled:.1f} % of the teacher (teacher_strict=False).')


def report_start(model: nn.Module, checkpoint: Any, name: str, report: ConfigReport) -> None:
    """How much of the student a `load_from` checkpoint fills: MMEngine loads what fits and says little."""
    state = plain_state(checkpoint, name=name)
    found = compare_states(model.architecture, state)
    names = [key for key in model.architecture.state_dict() if not is_harmless(key)]
    bad = {key.split(' ')[0] for key in found['shape']} | set(found['missing'])
    fits = sum(key not in bad for key in names)
    if any(found.values()):
        first = next(keys[0] for keys in found.values() if keys)
        report.warnings.append(f'load_from {name} fills {fits} of {len(names)} tensors of the student ({first}, ...).')

"""Which record goes where: description of records, levels matched by stride, channels filled in.

Shapes: `N` images, `C` channels, `H, W` cells of one level; a pyramid is a tuple of (N, C, H, W) maps, one a level.
Strides are px of the padded network input per cell.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from mmkd.models.connectors.pyramid import HOST_NAMES
from mmkd.near_names import nearest

RESERVED = ('data_samples', 'rois', 'labels')
FILLED = ('in_channels', 'out_channels', 'in_strides', 'out_strides')


@dataclass(frozen=True)
class Tap:
    """What a record looks like: one entry a level.

    Args:
        channels: `C` of each level.
        strides: px per cell of each level.
        pyramid: whether the record is a tuple of levels, or a single map.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    pyramid: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each level: `p3` for stride 8, `s12` for a stride that is no power of two, `p4_1` for a second p4."""
        names = [
            f'p{int(math.log2(stride))}' if stride & (stride - 1) == 0 else f's{stride}' for stride in self.strides
        ]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(f'{name}_{n}' if n else name for name, n in zip(names, before, strict=True))

    def select(self, levels: tuple[int, ...]) -> 'Tap':
        """The same record restricted to some of its levels."""
        return Tap(tuple(self.channels[i] for i in levels), tuple(self.strides[i] for i in levels), self.pyramid)

    def filled(self, attribute: str) -> int | tuple[int, ...]:
        """Channels or strides as a connector wants them: a number for a single map, else a tuple."""
        values = getattr(self, attribute)
        return values if self.pyramid else values[0]


def describe(record: Any, input_size: tuple[int, int]) -> Tap | None:
    """Description of a record of a network run on an input of (H, W) px; None if it is no feature map."""
    pyramid = isinstance(record, list | tuple)
    maps = record if pyramid else [record]
    if not maps or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        return None
    strides = tuple(max(1, round(input_size[0] / m.shape[2])) for m in maps)
    return Tap(tuple(m.shape[1] for m in maps), strides, pyramid)


@dataclass(frozen=True)
class Source:
    """Where one argument of a loss comes from; an entry of `loss_forward_mappings`.

    Args:
        recorder: name of a recorder, or one of `data_samples`, `rois`, `labels`.
        from_student: whether the recorder is the student's.
        record_idx: which record, if the layer runs several times in a forward; `'all'` makes a pyramid of them.
        data_idx: which element, if a record is a tuple.
        connector: name of the connector that the record passes.
        connector_idx: which element of what the connector gives.
        other: the record of the other side as it is, for a connector that sees both.
        strides: keep only the levels of these strides, in px.
        mask: name of the mask that makes this argument from data samples (alone, with none of the others).
    """

    recorder: str | None = None
    from_student: bool = True
    record_idx: int | str = 0
    data_idx: int | None = None
    connector: str | None = None
    connector_idx: int | None = None
    other: 'Source | None' = None
    strides: tuple[int, ...] | None = None
    mask: str | None = None
    levels: tuple[int, ...] | None = field(default=None, compare=True)

    @classmethod
    def parse(cls, entry: Mapping, where: str) -> 'Source':
        """Read an entry of the configuration.

        Raises:
            TypeError: the entry is not a dictionary, or a value has the wrong type.
            ValueError: unknown key, a recorder or side is missing, or keys that do not go together.
        """
        if not isinstance(entry, Mapping):
            raise TypeError(f'{where} must be a dict, got {entry!r}.')
        known = {f.name for f in fields(cls)} - {'levels'}
        for key in entry:
            if key not in known:
                raise ValueError(f'{where} has the unknown key {key!r}; {nearest(key, known)}.')
        values = dict(entry)
        if 'mask' not in values and 'recorder' not in values:
            raise ValueError(f'{where} needs a recorder, got {dict(entry)}.')
        if values.get('recorder') not in (None, *RESERVED) and not isinstance(values.get('from_student'), bool):
            raise TypeError(f'{where} needs from_student=True or False, got {values.get("from_student")!r}.')
        if 'mask' in values and len(values) > 1:
            raise ValueError(f'{where} is made by a mask: mask= stands alone, got {dict(entry)}.')
        if values.get('other') is not None:
            values['other'] = other = cls.parse(values['other'], f'{where}.other')
            if values.get('connector') is None:
                raise ValueError(f'{where} has other=, but no connector that could see both sides.')
            if any(part is not None for part in (other.mask, other.other, other.connector)):
                raise ValueError(f'{where}.other comes as it was recorded: no connector, other or mask of its own.')
        if values.get('strides') is not None:
            values['strides'] = tuple(values['strides'])
        return cls(**values)

    @property
    def reserved(self) -> bool:
        """Whether the value comes from the algorithm and not from a recorder."""
        return self.mask is not None or self.recorder in RESERVED


def all_sources(mappings: Mapping[str, Mapping[str, Source]]) -> list[Source]:
    """All sources of some losses, those of the other side included."""
    return [part for loss in mappings.values() for source in loss.values() for part in (source, source.other) if part]


def reads_teacher(source: Source) -> bool:
    """Whether a value depends on the teacher."""
    own = source.recorder is not None and not source.reserved and not source.from_student
    return own or (source.other is not None and reads_teacher(source.other))


def select_strides(tap: Tap, strides: tuple[int, ...] | None, where: str) -> tuple[int, ...]:
    """Levels of a record with the wanted strides, in their order (all levels without a wish).

    Raises:
        ValueError: a wanted stride is not there.
    """
    if strides is None:
        return tuple(range(len(tap.strides)))
    for stride in strides:
        if stride not in tap.strides:
            raise ValueError(f'{where} asks for stride {stride}, but its record has the strides {tap.strides}.')
    return tuple(i for stride in strides for i, own in enumerate(tap.strides) if own == stride)


def match_levels(student: Tap, teacher: Tap, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Levels of both pyramids that have the same stride, in the student's order; all of two with the same strides.

    Raises:
        ValueError: no stride is common, or one that several levels of a side have.
    """
    if student.strides == teacher.strides:
        return (tuple(range(len(student.strides))),) * 2
    common = [stride for stride in student.strides if stride in teacher.strides]
    sides = f'the student has {student.strides}, the teacher {teacher.strides}'
    if not common:
        raise ValueError(
            f'{where}: no levels match by stride; {sides}. '
            'Record other layers, or bring them together with a connector that sees both sides (other=...).'
        )
    for stride in common:
        if student.strides.count(stride) + teacher.strides.count(stride) > 2:
            raise ValueError(
                f'{where}: several levels have the stride {stride}, so that it says no pairs; {sides}. Record the '
                'levels that belong together, or take others by strides=.'
            )
    return tuple(student.strides.index(s) for s in common), tuple(teacher.strides.index(s) for s in common)


def fill_connector(cfg: Mapping, cls: type, own: Tap | None, other: Tap | None) -> dict:
    """The connector's configuration with its channels and strides read from the two models.

    `in_*` is the record that the connector transforms, `out_*` the record that its loss compares it with. Only
    arguments that the constructor has, and that the configuration leaves out or None, are filled; those of MMRazor's
    own connectors too, under their names.
    """
    filled = dict(cfg)
    parameters = inspect.signature(cls.__init__).parameters
    for argument in parameters:
        name = HOST_NAMES.get(argument, argument)
        tap = own if name.startswith('in_') else other
        if name in FILLED and filled.get(argument) is None and tap is not None:
            filled[argument] = tap.filled('channels' if name.endswith('channels') else 'strides')
    return filled

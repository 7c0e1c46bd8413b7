"""KITTI objects of many frames as flat numpy arrays, and the rules they obey; imports numpy only.

Letters: `M` objects of all frames together. Boxes are 0-based pixels of the original image, `x1 y1 x2 y2`.

The rules, the same for files and arrays:

- every number is finite; `x2 >= x1` and `y2 >= y1`;
- coordinates may lie outside the image, but not beyond `MAX_COORDINATE`;
- ground truth: occlusion is an integer in -1..3, truncation is in 0..1 or -1 (-1 = not given, inside every limit);
- detections: the score is any finite number, higher is more confident; nothing else is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TYPES = ('Car', 'Van', 'Truck', 'Pedestrian', 'Person_sitting', 'Cyclist', 'Tram', 'Misc', 'DontCare')
MAX_COORDINATE = 1e6

CODES = {name.lower(): code for code, name in enumerate(TYPES)}


class KittiFormatError(ValueError):
    """KITTI data breaks a rule; the message starts with `file:line:` or, for arrays, `frame:object:`."""


@dataclass(frozen=True)
class KittiObjects:
    """Objects of several frames, in frame order and inside a frame in file order.

    Args:
        names: Frame names, such as `'000123'`; a frame may have no object.
        frame: (M,) index into `names`, ascending.
        type: (M,) index into `TYPES`.
        truncation: (M,) 0..1, or -1.
        occlusion: (M,) -1..3.
        boxes: (M, 4) `x1 y1 x2 y2` in px.
        score: (M,) higher is more confident; NaN for ground truth.
    """

    names: tuple[str, ...]
    frame: np.ndarray
    type: np.ndarray
    truncation: np.ndarray
    occlusion: np.ndarray
    boxes: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, rows: np.ndarray) -> KittiObjects:
        """Objects chosen by a boolean mask or ascending indices; the frames stay."""
        columns = (self.frame, self.type, self.truncation, self.occlusion, self.boxes, self.score)
        return KittiObjects(self.names, *(column[rows] for column in columns))


def type_code(name: str) -> int:
    """Index of a type name in `TYPES`, whatever its case.

    Raises:
        ValueError: For a name that KITTI does not know.
    """
    code = CODES.get(name.lower())
    if code is None:
        raise ValueError(f'unknown KITTI type {name!r}; the types are {", ".join(TYPES)}')
    return code


def unique_types(names: Iterable[str]) -> list[str]:
    """Type names in KITTI's spelling, in their order.

    Raises:
        ValueError: For a name that KITTI does not know, or one that stands twice.
    """
    found = [TYPES[type_code(name)] for name in names]
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise ValueError(f'the type {twice[0]!r} is named twice')
    return found


class Origin:
    """Where each row came from, so that a bad one is refused by file and line.

    Args:
        paths: What a message calls each file.
        starts: Index of each file's first row, and the number of all rows at the end.
        rows: The rows' words, for messages that quote them.
    """

    def __init__(self, paths: Sequence[str], starts: np.ndarray, rows: Sequence[Sequence[bytes]] | None = None) -> None:
        self.paths, self.starts, self.rows = paths, starts, rows

    def file_of(self, indices: np.ndarray) -> np.ndarray:
        """Index of the file of each row."""
        return np.searchsorted(self.starts, indices, side='right') - 1

    def refuse(
        self, bad: np.ndarray, reason: str | Callable[[Sequence[bytes]], str], indices: np.ndarray | None = None
    ) -> None:
        """Raises `KittiFormatError` for the first row that is `bad`; `indices` are the rows that `bad` speaks of."""
        if not bad.any():
            return
        index = int(np.flatnonzero(bad)[0])
        index = index if indices is None else int(indices[index])
        file = int(self.file_of(np.array(index)))
        line = index - int(self.starts[file]) + 1
        text = reason if isinstance(reason, str) else reason(self.rows[index])
        raise KittiFormatError(f'{self.paths[file]}:{line}: {text}')


def check_rules(objects: KittiObjects, origin: Origin, indices: np.ndarray, *, scored: bool) -> None:
    """Refuses objects that break a rule of this module; `indices` are the objects' rows in `origin`."""
    numbers = [objects.boxes, objects.truncation, objects.occlusion] + ([objects.score] if scored else [])
    finite = np.isfinite(np.column_stack(numbers)).all(axis=1)
    origin.refuse(~finite, 'a value is NaN or infinite', indices)
    x1, y1, x2, y2 = objects.boxes.T
    origin.refuse((x2 < x1) | (y2 < y1), 'the box is reversed: x2 < x1 or y2 < y1', indices)
    far = np.abs(objects.boxes).max(axis=1, initial=0) > MAX_COORDINATE
    origin.refuse(far, f'a box coordinate is beyond {MAX_COORDINATE:g} px', indices)
    if scored:
        return
    known = np.isin(objects.occlusion, (-1, 0, 1, 2, 3))
    origin.refuse(~known, 'the occlusion is none of -1, 0, 1, 2, 3', indices)
    inside = ((objects.truncation >= 0) & (objects.truncation <= 1)) | (objects.truncation == -1)
    origin.refuse(~inside, 'the truncation is neither in 0..1 nor -1', indices)


def from_frames(frames: Sequence[Mapping], names: Sequence[str] | None = None, *, scored: bool) -> KittiObjects:
    """Objects from one mapping a frame.

    Args:
        frames: Mappings with `name` (M type names) and `bbox` (M, 4); ground truth also `truncated` and `occluded`
            (M,), detections `score` (M,). Other keys are not read.
        names: Frame names; if None, the indices as six digits.
        scored: Whether these are detections.

    Raises:
        ValueError: For missing keys, differing lengths or values that break a rule; says which frame.
    """
    if not frames:
        raise ValueError('no frame was given')
    names = [f'{index:06d}' for index in range(len(frames))] if names is None else list(names)
    parts = [_frame_columns(name, frame, scored=scored) for name, frame in zip(names, frames, strict=True)]
    counts = [len(part[0]) for part in parts]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    objects = KittiObjects(tuple(names), np.repeat(np.arange(len(names)), counts), *columns)
    check_rules(objects, Origin(names, np.cumsum([0, *counts])), np.arange(len(objects)), scored=scored)
    return objects


def _frame_columns(name: str, frame: Mapping, *, scored: bool) -> tuple[np.ndarray, ...]:
    """Type codes, truncation, occlusion, boxes and score of one frame's mapping."""
    needed = ('name', 'bbox', 'score') if scored else ('name', 'bbox', 'truncated', 'occluded')
    missing = [key for key in needed if key not in frame]
    if missing:
        raise ValueError(f'frame {name}: the keys {missing} are missing')
    types = np.array([type_code(str(word)) for word in frame['name']], dtype=np.int64)
    boxes = np.asarray(frame['bbox'], dtype=np.float64).reshape(-1, 4)
    unknown = np.full(len(types), -1.0)
    truncation, occlusion = (unknown, unknown) if scored else (_flat(frame['truncated']), _flat(frame['occluded']))
    score = _flat(frame['score']) if scored else np.full(len(types), np.nan)
    columns = (types, truncation, occlusion, boxes, score)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ValueError(f'frame {name}: name, bbox and the other keys differ in length: {sorted(lengths)}')
    return columns


def _flat(values: Iterable) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1)

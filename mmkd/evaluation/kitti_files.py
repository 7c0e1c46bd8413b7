"""KITTI label, result and split files; imports numpy only.

Letters: `M` objects of all frames together.

Reading is strict, so that no frame shrinks silently. Accepted: blank lines, Windows line ends, a UTF-8 mark at the
start of a file, any case of type names, an empty file. Refused with file and line (`KittiFormatError`): another number
of fields than 15 (labels) or 16 (results), unknown type names, fields that are no finite decimal number, and whatever
breaks a rule of `kitti_objects`.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from mmkd.evaluation.kitti_objects import CODES, TYPES, KittiFormatError, KittiObjects, Origin, check_rules

FIELDS = ('type', 'truncation', 'occlusion', 'alpha', 'x1', 'y1', 'x2', 'y2')
FIELDS += ('h', 'w', 'l', 'x', 'y', 'z', 'ry', 'score')

_BYTE_CODES = {name.encode(): code for name, code in CODES.items()}
_UTF8_MARK = b'\xef\xbb\xbf'


def read_labels(folder: str | Path, names: Sequence[str]) -> KittiObjects:
    """Ground truth of the named frames, from `folder/<name>.txt`.

    Raises:
        FileNotFoundError: If a frame has no file.
        KittiFormatError: If a file breaks a rule of this module.
    """
    return _read_folder(folder, names, scored=False)


def read_results(folder: str | Path, names: Sequence[str]) -> KittiObjects:
    """Detections of the named frames, from `folder/<name>.txt`; raises as `read_labels`."""
    return _read_folder(folder, names, scored=True)


def _read_folder(folder: str | Path, names: Sequence[str], *, scored: bool) -> KittiObjects:
    paths = [f'{folder}/{name}.txt' for name in names]
    return parse(names, paths, [_read(path) for path in paths], scored=scored)


def _read(path: str | Path) -> bytes:
    with open(path, 'rb', buffering=0) as file:
        return file.read()


def read_split(path: str | Path) -> list[str]:
    """Frame names of an `ImageSets` file, one a line; blank lines are skipped.

    Raises:
        KittiFormatError: For a frame named twice or a line that is no file name.
        ValueError: For a file that names no frame.
    """
    names: dict[str, int] = {}
    text = _read(path).removeprefix(_UTF8_MARK).decode('utf-8', 'replace')
    for number, line in enumerate(text.splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        if len(name.split()) > 1 or '/' in name:
            raise KittiFormatError(f'{path}:{number}: expected one frame name, found {name!r}')
        if name in names:
            raise KittiFormatError(f'{path}:{number}: frame {name!r} was already named in line {names[name]}')
        names[name] = number
    if not names:
        raise ValueError(f'{path} names no frame')
    return list(names)


def parse(names: Sequence[str], paths: Sequence[str], blobs: Sequence[bytes], *, scored: bool) -> KittiObjects:
    """Objects from the content of label files, or of result files if `scored`.

    Args:
        names: Frame names.
        paths: What an error message calls each file.
        blobs: Content of each file.
        scored: Whether lines have 16 fields, the last one the score.

    Raises:
        KittiFormatError: If a line breaks a rule of this module.
    """
    files = [blob.removeprefix(_UTF8_MARK).split(b'\n') for blob in blobs]
    rows = [line.split() for lines in files for line in lines]
    origin = Origin(paths, np.cumsum([0, *map(len, files)]), rows)
    length = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    fields = len(FIELDS) if scored else len(FIELDS) - 1
    origin.refuse((length != fields) & (length != 0), lambda row: f'expected {fields} fields, found {len(row)}')
    kept = np.flatnonzero(length)
    types = _types([row[0] for row in rows if row], origin, kept)
    values = _numbers([row[1:] for row in rows if row], origin, kept).reshape(-1, fields - 1)
    objects = KittiObjects(
        names=tuple(names),
        frame=origin.file_of(kept),
        type=types,
        truncation=values[:, 0],
        occlusion=values[:, 1],
        boxes=values[:, 3:7],
        score=values[:, 14] if scored else np.full(len(values), np.nan),
    )
    check_rules(objects, origin, kept, scored=scored)
    return objects


def _types(words: list[bytes], origin: Origin, kept: np.ndarray) -> np.ndarray:
    """Type codes of the rows' first words."""
    codes = {word: _BYTE_CODES.get(word.lower(), -1) for word in set(words)}
    types = np.fromiter((codes[word] for word in words), dtype=np.int64, count=len(words))
    origin.refuse(types < 0, lambda row: f'unknown type {_show(row[0])}; the types are {", ".join(TYPES)}', kept)
    return types


def _numbers(tails: list[list[bytes]], origin: Origin, kept: np.ndarray) -> np.ndarray:
    """All other fields of all rows, one after another, as finite floats."""
    tokens = list(chain.from_iterable(tails))
    try:
        values = np.fromiter(map(float, tokens), dtype=np.float64, count=len(tokens))
        regular = bool(np.isfinite(values).all()) and b'_' not in b''.join(tokens)  # Python reads 1_0 as 10
    except ValueError:
        regular = False
    if not regular:
        bad = np.array([_bad_field(tail) is not None for tail in tails])
        origin.refuse(bad, _describe_bad_field, kept)
    return values


def _bad_field(tail: Sequence[bytes]) -> int | None:
    """Index of the first field that is not a finite decimal number."""
    for index, token in enumerate(tail):
        try:
            if b'_' in token or not np.isfinite(float(token)):
                return index
        except ValueError:
            return index
    return None


def _describe_bad_field(row: Sequence[bytes]) -> str:
    index = _bad_field(row[1:]) + 1
    return f'field {index + 1} ({FIELDS[index]}) is not a finite number: {_show(row[index])}'


def _show(token: bytes) -> str:
    return repr(token[:40].decode('utf-8', 'replace'))


def result_line(kind: str, box: Sequence[float], score: float) -> str:
    """One line of a submission file: 16 fields, the 3D ones marked as absent, numbers that read back exactly."""
    x1, y1, x2, y2 = (repr(float(value)) for value in box)
    return f'{kind} -1 -1 -10 {x1} {y1} {x2} {y2} -1 -1 -1 -1000 -1000 -1000 -10 {float(score)!r}\n'

"""Folders of KITTI files in, table and json of average precisions out; imports numpy only."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmkd.evaluation.kitti_ap import CLASSES, LEVELS, POINTS, kitti_eval, mean_ap
from mmkd.evaluation.kitti_files import parse, read_labels, read_split


def evaluate_folders(
    labels: str | Path,
    results: str | Path,
    *,
    split: str | Path | None = None,
    classes: Sequence[str] = CLASSES,
    min_overlaps: Mapping[str, float] | None = None,
) -> dict[str, dict[str, list]]:
    """`kitti_eval` of a folder of result files against a folder of label files.

    All frames of the split count: a frame without a result file is a frame without detections.

    Args:
        labels: Folder with `<frame>.txt`, 15 fields a line.
        results: Folder with `<frame>.txt`, 16 fields a line.
        split: File that names the frames, one a line; if None, all frames with a label file.
        classes: Type names to evaluate.
        min_overlaps: As in `kitti_eval`.

    Raises:
        FileNotFoundError: If a folder does not exist or a frame of the split has no label file.
        ValueError: If no result file belongs to the split, a file is malformed, or, without a split, a result has no
            label file.

    Warns:
        UserWarning: For frames without a result file and for result files outside the split.
    """
    labelled, found = _frame_names(labels), _frame_names(results)
    names = sorted(labelled) if split is None else read_split(split)
    if not names:
        raise ValueError(f'{labels} holds no label file (<frame>.txt)')
    unlabelled = [name for name in names if name not in labelled]
    if unlabelled:
        raise FileNotFoundError(f'{labels} has no label file for {_some(unlabelled)} of the split')
    unlabelled = sorted(found - labelled) if split is None else []
    if unlabelled:
        raise ValueError(f'{results} has results for {_some(unlabelled)} that have no label file')
    _check_results(results, names, found)
    truths = read_labels(labels, names)
    paths = [f'{results}/{name}.txt' for name in names]
    blobs = [Path(path).read_bytes() if name in found else b'' for name, path in zip(names, paths, strict=True)]
    detections = parse(names, paths, blobs, scored=True)
    return kitti_eval(truths, detections, classes=classes, min_overlaps=min_overlaps)


def _frame_names(folder: str | Path) -> set[str]:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f'{folder} is not a folder')
    return {entry.stem for entry in path.iterdir() if entry.suffix == '.txt'}


def _check_results(results: str | Path, names: Sequence[str], found: set[str]) -> None:
    """Refuses results that cannot belong to the split, warns about a partial overlap."""
    if not found:
        raise ValueError(f'{results} holds no result file (<frame>.txt)')
    missing = [name for name in names if name not in found]
    if len(missing) == len(names):
        raise ValueError(f'{results} has no result file for any of the {len(names)} frames of the split')
    if missing:
        warnings.warn(
            f'{results} has no file for {_some(missing)}: they count as frames without detections',
            UserWarning,
            stacklevel=3,
        )
    outside = sorted(found.difference(names))
    if outside:
        warnings.warn(
            f'{results} has files for {_some(outside)} outside the split: not read', UserWarning, stacklevel=3
        )


def _some(names: Sequence[str]) -> str:
    more = ', ...' if len(names) > 3 else ''
    return f'{len(names)} frame{"s" if len(names) > 1 else ""} ({", ".join(names[:3])}{more})'


def format_table(result: Mapping[str, Mapping[str, list]]) -> str:
    """Text table of a `kitti_eval` result: AP in percent and the number of ground truth boxes behind each."""
    head = f'{"2D AP (%)":12s}' + ''.join(
        f'{points + " " + level:>14s}' for points in ('R40', 'R11') for level in LEVELS
    )
    lines = [head + f'{"boxes (e/m/h)":>22s}']
    for name, scores in {**result, 'mean': mean_ap(result)}.items():
        cells = ''.join(f'{value:14.4f}' for value in (*scores['R40'], *scores['R11']))
        lines.append(f'{name:12s}{cells}{"/".join(map(str, scores.get("num_gt", []))):>22s}'.rstrip())
    few = [name for name, scores in result.items() if any(0 < count < POINTS for count in scores['num_gt'])]
    if few:
        lines.append(f'fewer than 41 boxes cap the AP below 100: {", ".join(few)}')
    return '\n'.join(lines)


def write_json(result: Mapping[str, Mapping[str, list]], path: str | Path) -> None:
    """Writes a `kitti_eval` result, `{"Car": {"R40": [easy, moderate, hard], "R11": [...], "num_gt": [...]}, ...}`."""
    Path(path).write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')

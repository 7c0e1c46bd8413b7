"""Average precision of 2D boxes as KITTI's official evaluation computes it; imports numpy only.

Geiger et al. 2012, "Are we ready for Autonomous Driving? The KITTI Vision Benchmark Suite",
https://www.cvlibs.net/datasets/kitti/eval_object.php. The official code's rules, quirks included.

Differs from the official code: all frames count, also those without a result file; a class that the official code
leaves out of its output gets 0 and a warning; 0/0 in a precision is 0; boxes and numbers must obey `kitti_objects`.

Letters: `M` objects, `K` score thresholds (at most 41).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmkd.evaluation.kitti_matching import covered_by_any, match, overlapping_pairs
from mmkd.evaluation.kitti_objects import KittiObjects, from_frames, type_code, unique_types

CLASSES = ('Car', 'Pedestrian', 'Cyclist')
MIN_OVERLAPS = {'Car': 0.7, 'Pedestrian': 0.5, 'Cyclist': 0.5}
NEIGHBOURS = {'Car': 'Van', 'Pedestrian': 'Person_sitting'}
LEVELS = ('easy', 'moderate', 'hard')
MIN_HEIGHT = (40, 25, 25)  # px
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)
POINTS = 41  # of the precision curve

Frames = KittiObjects | Sequence[Mapping]


def kitti_eval(
    ground_truths: Frames,
    detections: Frames,
    *,
    classes: Sequence[str] = CLASSES,
    min_overlaps: Mapping[str, float] | None = None,
) -> dict[str, dict[str, list]]:
    """2D average precision of each class at easy, moderate and hard, in percent.

    Args:
        ground_truths: `KittiObjects`, or one mapping a frame with `name`, `bbox`, `truncated`, `occluded`.
        detections: The same frames in the same order; mappings have `name`, `bbox`, `score`.
        classes: Type names to evaluate, in any case; the result has KITTI's spelling.
        min_overlaps: IoU that a hit must exceed, for classes where it is not the official 0.7 / 0.5 / 0.5.

    Returns:
        `{'Car': {'R40': [easy, moderate, hard], 'R11': [...], 'num_gt': [...]}, ...}`; `num_gt` is the number of ground
        truth boxes that count: with fewer than 41 even a perfect detector stays below R40 = 100.

    Raises:
        ValueError: If the frames differ, a class has no overlap limit, or an object breaks a rule of `kitti_objects`.

    Warns:
        UserWarning: For a class without ground truth or without detections: its 0 is not a measurement.
    """
    truths = ground_truths if isinstance(ground_truths, KittiObjects) else from_frames(ground_truths, scored=False)
    founds = detections if isinstance(detections, KittiObjects) else from_frames(detections, scored=True)
    if truths.names != founds.names:
        raise ValueError(
            f'ground truth and detections must have the same frames in the same order, got {len(truths.names)} and '
            f'{len(founds.names)} frames'
        )
    limits = overlap_limits(classes, min_overlaps or {})
    return {name: _evaluate_class(name, limit, truths, founds) for name, limit in limits.items()}


def mean_ap(result: Mapping[str, Mapping[str, list]]) -> dict[str, list[float]]:
    """Mean of `kitti_eval`'s classes at each level, over the classes that have ground truth at that level.

    Returns:
        `{'R40': [easy, moderate, hard], 'R11': [...]}`, 0 where no class has ground truth.
    """
    counted = np.array([scores['num_gt'] for scores in result.values()]).reshape(-1, len(LEVELS)) > 0
    mean = {}
    for points in ('R40', 'R11'):
        values = np.array([scores[points] for scores in result.values()]).reshape(-1, len(LEVELS))
        mean[points] = (np.where(counted, values, 0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1)).tolist()
    return mean


def score_thresholds(scores: Sequence[float], num_gt: int) -> np.ndarray:
    """At most 41 scores at which the recall of the hits passes 0, 1/40, 2/40, ...

    A score is skipped if the next one comes nearer to the wanted recall. The wanted recall is a running sum in float64:
    k/40 in its place would give other thresholds, because ties are frequent.

    Args:
        scores: Scores of the hits.
        num_gt: Number of ground truth boxes that count.

    Returns:
        (K,) thresholds, descending.
    """
    ordered = sorted(scores, reverse=True)
    kept, recall, last = [], 0.0, len(ordered) - 1
    for index, score in enumerate(ordered):
        left = (index + 1) / num_gt
        right = (index + 2) / num_gt
        if index < last and (right - recall) < (recall - left):
            continue
        kept.append(score)
        recall += 1 / (POINTS - 1.0)
    return np.array(kept, dtype=np.float64)


def average_precision(hits: np.ndarray, false_positives: np.ndarray) -> tuple[float, float]:
    """R40 and R11 in percent, from the counts at each threshold, both (K,)."""
    curve = np.zeros(POINTS)
    total = hits + false_positives
    precision = np.divide(hits, total, out=np.zeros(len(hits)), where=total > 0)
    curve[: len(hits)] = np.maximum.accumulate(precision[::-1])[::-1]
    return float(curve[1:].sum() / (POINTS - 1) * 100), float(curve[::4].sum() / 11 * 100)


def overlap_limits(classes: Sequence[str], min_overlaps: Mapping[str, float]) -> dict[str, float]:
    """Overlap limit of each class to evaluate, by KITTI's spelling of its name.

    Args:
        classes: Types to evaluate.
        min_overlaps: Of classes without an official one, or in its place.

    Raises:
        ValueError: For an unknown type, one without a limit, or a limit outside [0, 1).
    """
    classes = unique_types(classes)
    min_overlaps = dict(zip(unique_types(min_overlaps), min_overlaps.values(), strict=True))
    unknown = [name for name in min_overlaps if name not in classes]
    if unknown:
        raise ValueError(f'min_overlaps names {unknown}, which are not among the classes {classes}')
    limits = {}
    for name in classes:
        limit = min_overlaps.get(name, MIN_OVERLAPS.get(name))
        if limit is None:
            raise ValueError(f'{name!r} has no official overlap: give it in min_overlaps')
        if not 0 <= limit < 1:
            raise ValueError(f'the overlap of {name} must be in [0, 1), got {limit}')
        limits[name] = float(limit)
    return limits


@dataclass(frozen=True)
class _Scene:
    """What all levels of one class share: boxes that can matter and their overlaps."""

    truths: KittiObjects  # of the class or its neighbour
    founds: KittiObjects  # of the class, or of any type if they can count as small
    same_truth: np.ndarray  # whether of the class itself
    same_found: np.ndarray
    excused: np.ndarray  # detections inside a DontCare region
    truth: np.ndarray  # pairs that overlap enough: ground truth, detection, IoU
    found: np.ndarray
    overlap: np.ndarray


def _evaluate_class(name: str, limit: float, truths: KittiObjects, founds: KittiObjects) -> dict[str, list]:
    scene = _make_scene(name, limit, truths, founds)
    own = scene.founds.boxes[scene.same_found]
    reported = bool((own[:, 0] >= 0).any())  # the official code prints no line otherwise
    if not scene.same_truth.any():
        warnings.warn(f'{name}: no ground truth in these frames, AP 0 means nothing', UserWarning, stacklevel=3)
    elif not reported:
        reason = 'all detections have x1 < 0' if len(own) else 'no detections'
        warnings.warn(f'{name}: {reason}, AP set to 0 (officially: no line)', UserWarning, stacklevel=3)
    levels = [_evaluate_level(scene, level, reported=reported) for level in range(len(LEVELS))]
    r40, r11, num_gt = (list(values) for values in zip(*levels, strict=True))
    return {'R40': r40, 'R11': r11, 'num_gt': num_gt}


def _make_scene(name: str, limit: float, truths: KittiObjects, founds: KittiObjects) -> _Scene:
    own, neighbour = type_code(name), type_code(NEIGHBOURS.get(name, name))
    regions = truths.take(truths.type == type_code('DontCare'))
    truths = truths.take((truths.type == own) | (truths.type == neighbour))
    # A small detection can take a ground truth whatever its type, as in the official code.
    founds = founds.take((founds.type == own) | (_whole_height(founds) < max(MIN_HEIGHT)))
    pairs = overlapping_pairs(truths.frame, truths.boxes, founds.frame, founds.boxes, limit)
    excused = covered_by_any(regions.frame, regions.boxes, founds.frame, founds.boxes, limit)
    return _Scene(truths, founds, truths.type == own, founds.type == own, excused, *pairs)


def _whole_height(objects: KittiObjects) -> np.ndarray:
    """Height in px cut to an integer, as the official code compares detections (but not ground truth)."""
    return np.abs(objects.boxes[:, 3] - objects.boxes[:, 1]).astype(np.int64)


def _evaluate_level(scene: _Scene, level: int, *, reported: bool) -> tuple[float, float, int]:
    """R40, R11 and the number of valid ground truth boxes."""
    truths, founds = scene.truths, scene.founds
    truth_valid = (
        scene.same_truth
        & (truths.boxes[:, 3] - truths.boxes[:, 1] > MIN_HEIGHT[level])
        & (truths.occlusion <= MAX_OCCLUSION[level])
        & (truths.truncation <= MAX_TRUNCATION[level])
    )
    num_gt = int(truth_valid.sum())
    small = _whole_height(founds) < MIN_HEIGHT[level]
    found_valid = scene.same_found & ~small
    if not reported:
        return 0.0, 0.0, num_gt
    usable = (found_valid | small)[scene.found]
    truth, found, overlap = scene.truth[usable], scene.found[usable], scene.overlap[usable]
    frame, score, valid = truths.frame[truth], founds.score[found], found_valid[found]
    hit = truth_valid[truth] & valid

    # First pass: the highest score wins, valid or small; the scores of the hits give the thresholds.
    order = np.lexsort((found, -score, truth))
    made = match(truth[order], found[order], frame[order], score[order], np.array([-np.inf]))[:, 0]
    thresholds = score_thresholds(score[order][made & hit[order]].tolist(), num_gt)

    # Second pass, at each threshold: the largest overlap wins among the valid ones, else the first small one.
    order = np.lexsort((found, np.where(valid, -overlap, 0.0), ~valid, truth))
    made = match(truth[order], found[order], frame[order], score[order], thresholds)
    hits = made[hit[order]].sum(axis=0)
    blamed = found_valid & ~scene.excused
    ascending = np.sort(founds.score[blamed])
    existing = len(ascending) - np.searchsorted(ascending, thresholds, side='left')
    false_positives = existing - made[blamed[found[order]]].sum(axis=0)
    return *average_precision(hits, false_positives), num_gt

"""Overlaps and greedy matching of KITTI boxes, vectorised over frames and thresholds; imports numpy only.

Letters: `P` pairs of a ground truth box and a detection of the same frame, `K` score thresholds.

The official evaluation walks through each frame's ground truth in file order and gives each box the best detection
that is still free. What is best never depends on the threshold. So the pairs of a ground truth are sorted once, best
first, and "take the best free one" becomes "take the first free one", done for many frames and all thresholds at once.
"""

from collections.abc import Iterator

import numpy as np

MAX_PAIRS = 1 << 20


def intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Common area of boxes (P, 4) and (P, 4) in px^2, 0 where a side of it is not positive."""
    width = np.minimum(first[:, 2], second[:, 2]) - np.maximum(first[:, 0], second[:, 0])
    height = np.minimum(first[:, 3], second[:, 3]) - np.maximum(first[:, 1], second[:, 1])
    return np.where((width > 0) & (height > 0), width * height, 0.0)


def area(boxes: np.ndarray) -> np.ndarray:
    """Area of boxes (P, 4) in px^2, without the +1 of older metrics."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (P, 4) and (P, 4)."""
    common = intersection(first, second)
    union = area(first) + area(second) - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def covered(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Part of the second boxes (P, 4) that the first ones (P, 4) cover."""
    common = intersection(first, second)
    return np.divide(common, area(second), out=np.zeros_like(common), where=common > 0)


def frame_pairs(first_frame: np.ndarray, second_frame: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs of equal frames in blocks of bounded memory, sorted by first, then second index.

    Args:
        first_frame: Frame of each first object, ascending.
        second_frame: Frame of each second object, ascending.
    """
    start = np.searchsorted(second_frame, first_frame, side='left')
    count = np.searchsorted(second_frame, first_frame, side='right') - start
    total = np.cumsum(count)
    low = 0
    while low < len(count):
        done = total[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(total, done + MAX_PAIRS, side='right')))
        first = np.repeat(np.arange(low, high), count[low:high])
        position = np.arange(len(first)) - (total[first] - count[first] - done)
        yield first, start[first] + position
        low = high


def overlapping_pairs(
    truth_frame: np.ndarray, truth_boxes: np.ndarray, found_frame: np.ndarray, found_boxes: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose IoU is above `limit`: ground truth index, detection index, IoU; sorted by both indices."""
    truths, founds, ious = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for truth, found in frame_pairs(truth_frame, found_frame):
        overlap = iou(truth_boxes[truth], found_boxes[found])
        kept = overlap > limit
        truths.append(truth[kept])
        founds.append(found[kept])
        ious.append(overlap[kept])
    return np.concatenate(truths), np.concatenate(founds), np.concatenate(ious)


def covered_by_any(
    region_frame: np.ndarray, regions: np.ndarray, found_frame: np.ndarray, found_boxes: np.ndarray, limit: float
) -> np.ndarray:
    """Whether one single region covers more than `limit` of each detection."""
    result = np.zeros(len(found_boxes), dtype=bool)
    for region, found in frame_pairs(region_frame, found_frame):
        result[found[covered(regions[region], found_boxes[found]) > limit]] = True
    return result


def match(
    truth: np.ndarray, found: np.ndarray, frame: np.ndarray, score: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Greedy matching: ground truths in ascending order, each takes its first free pair.

    Args:
        truth: (P,) ground truth of each pair, ascending; the pairs of one ground truth stand best first.
        found: (P,) detection of each pair.
        frame: (P,) frame of each pair.
        score: (P,) score of each pair's detection.
        thresholds: (K,) at each one only detections with score >= threshold exist.

    Returns:
        (P, K) boolean: which pairs are made.
    """
    made = score[:, None] >= thresholds
    if not len(truth):
        return made
    truth, found = (np.unique(index, return_inverse=True)[1] for index in (truth, found))
    truth_taken = np.zeros((truth.max() + 1, len(thresholds)), dtype=bool)
    found_taken = np.zeros((found.max() + 1, len(thresholds)), dtype=bool)
    for step in _steps(truth, found, frame):
        free = made[step] & ~truth_taken[truth[step]] & ~found_taken[found[step]]
        truth_taken[truth[step]] |= free
        found_taken[found[step]] |= free
        made[step] = free
    return made


def _steps(truth: np.ndarray, found: np.ndarray, frame: np.ndarray) -> list[np.ndarray]:
    """Pairs grouped so that a group names no object twice and the groups, in order, keep the order of the matching.

    Ground truths that share no detection with another one are all independent: turn 0. The others take turns inside
    their frame: turn 1, 2, ... In each turn the pairs go by their rank in their ground truth.
    """
    pairs = np.arange(len(truth))
    first = np.searchsorted(truth, np.arange(truth[-1] + 1))
    rank = pairs - first[truth]
    shared_pair = np.bincount(found)[found] > 1
    shared = np.bincount(truth, weights=shared_pair) > 0
    before = np.cumsum(shared) - shared
    truth_frame = frame[first]
    frame_first = np.searchsorted(truth_frame, truth_frame)
    turn = np.where(shared, 1 + before - before[frame_first], 0)
    order = np.lexsort((rank, turn[truth]))
    key = np.stack([turn[truth], rank])[:, order]
    return np.split(order, np.flatnonzero((np.diff(key) != 0).any(axis=0)) + 1)

"""Anchor shapes fitted to a data set's boxes: k-means with 1 - IoU as the distance.

Redmon and Farhadi 2017, "YOLO9000: Better, Faster, Stronger", section 2, https://arxiv.org/abs/1612.08242.
Differs from the paper: the centre of a cluster is its median, which large boxes pull less than the mean.

`python -m mmkd.datasets.anchors --labels DIR --split FILE` prints the anchors of KITTI's labels.

Letters: `M` boxes, `A` anchors; shapes are (width, height) in px of the original image.
"""

import argparse

import numpy as np

from mmkd.evaluation.kitti_ap import CLASSES, MIN_HEIGHT
from mmkd.evaluation.kitti_files import read_labels, read_split
from mmkd.evaluation.kitti_objects import type_code


def shape_iou(shapes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """IoU (M, A) of shapes (M, 2) and anchors (A, 2) that share their centre."""
    common = np.minimum(shapes[:, None], anchors).prod(axis=2)
    return common / (shapes.prod(axis=1)[:, None] + anchors.prod(axis=1) - common)


def fit_anchors(shapes: np.ndarray, count: int, *, seed: int = 0, rounds: int = 300) -> np.ndarray:
    """Anchor shapes (A, 2), sorted by area.

    Args:
        shapes: (M, 2) positive widths and heights, `M >= count`.
        count: `A`.
        seed: Of the first choice of centres.
        rounds: At most; it stops when no box changes its anchor.

    Raises:
        ValueError: If there are fewer different shapes than anchors, or a side is not positive.
    """
    shapes = np.asarray(shapes, dtype=np.float64)
    different = np.unique(shapes, axis=0)
    if len(different) < count or (shapes <= 0).any():
        raise ValueError(f'{count} anchors need as many different shapes with positive sides, got {len(different)}')
    anchors = np.random.default_rng(seed).permutation(different)[:count]
    nearest = None
    for _ in range(rounds):
        previous, nearest = nearest, shape_iou(shapes, anchors).argmax(axis=1)
        if previous is not None and (nearest == previous).all():
            break
        used = np.unique(nearest)
        anchors[used] = [np.median(shapes[nearest == index], axis=0) for index in used]
    return anchors[np.argsort(anchors.prod(axis=1))]


def kitti_shapes(labels: str, split: str) -> np.ndarray:
    """(M, 2) shapes of the boxes of the evaluated classes that are at least as high as the lowest that counts."""
    objects = read_labels(labels, read_split(split))
    shapes = objects.boxes[:, 2:] - objects.boxes[:, :2]
    chosen = np.isin(objects.type, [type_code(name) for name in CLASSES]) & (shapes[:, 1] > min(MIN_HEIGHT))
    return shapes[chosen & (shapes > 0).all(axis=1)]


def main() -> None:
    """Prints anchors and how well they fit."""
    parser = argparse.ArgumentParser(description='YOLO anchors of KITTI labels, in px of the original image')
    parser.add_argument('--labels', required=True, help='folder of label files')
    parser.add_argument('--split', required=True, help='file that names the frames')
    parser.add_argument('--count', type=int, default=9)
    args = parser.parse_args()
    shapes = kitti_shapes(args.labels, args.split)
    anchors = fit_anchors(shapes, args.count)
    best = shape_iou(shapes, anchors).max(axis=1)
    print([tuple(anchor) for anchor in np.rint(anchors).astype(int).tolist()])
    print(f'{len(shapes)} boxes, mean best IoU {best.mean():.3f}, at least 0.5 for {100 * (best >= 0.5).mean():.1f} %')


if __name__ == '__main__':
    main()

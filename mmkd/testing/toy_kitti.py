"""The toy scenes in KITTI's own layout, for tests of what reads it: a few frames with a DontCare region each.

Boxes are `x1 y1 x2 y2` in px of the image, 0-based, as in KITTI.
"""

from pathlib import Path

import cv2
import numpy as np

from mmkd.testing.toy_data import TOY_CLASSES, draw_scene

KITTI_CLASSES = ('Car', 'Pedestrian', 'Cyclist')
_NO_3D = '-1 -1 -1 -1000 -1000 -1000 -10'


def make_toy_kitti(
    root: str | Path,
    *,
    train: int = 2,
    val: int = 1,
    size: tuple[int, int] = (96, 64),
    classes: tuple[str, ...] = KITTI_CLASSES,
    seed: int = 0,
) -> Path:
    """Write `training/image_2`, `training/label_2` and `ImageSets/{train,val}.txt`.

    Args:
        root: Folder to write.
        train: Frames of the split `train`.
        val: Frames of the split `val`, which follow them.
        size: (width, height) of every image, px.
        classes: KITTI types, which take turns at the shapes.
        seed: Of all that is drawn.

    Returns:
        `root`.

    Raises:
        ValueError: For fewer than one frame in a split or no class.
    """
    if min(train, val) < 1 or not classes:
        raise ValueError(f'need at least 1 frame in each split and 1 class, got {train}, {val}, {classes}')
    root, rng = Path(root), np.random.default_rng(seed)
    images, labels, splits = root / 'training' / 'image_2', root / 'training' / 'label_2', root / 'ImageSets'
    for folder in (images, labels, splits):
        folder.mkdir(parents=True, exist_ok=True)
    names = [f'{index:06d}' for index in range(train + val)]
    for name in names:
        picture, objects = draw_scene(rng, size, min(len(classes), len(TOY_CLASSES)))
        cv2.imwrite(str(images / f'{name}.png'), picture)
        rows = [_row(classes[thing['label']], thing['bbox'], size) for thing in objects]
        rows.append(f'DontCare -1 -1 -10 0.00 0.00 {size[0] / 8:.2f} {size[1] / 8:.2f} {_NO_3D}')
        (labels / f'{name}.txt').write_text('\n'.join(rows) + '\n')
    (splits / 'train.txt').write_text('\n'.join(names[:train]) + '\n')
    (splits / 'val.txt').write_text('\n'.join(names[train:]) + '\n')
    return root


def _row(kind: str, bbox: list[float], size: tuple[int, int]) -> str:
    x, y, w, h = bbox
    cut = x <= 0 or y <= 0 or x + w >= size[0] or y + h >= size[1]
    return f'{kind} {0.3 if cut else 0:.2f} 0 -10 {x:.2f} {y:.2f} {x + w:.2f} {y + h:.2f} {_NO_3D}'

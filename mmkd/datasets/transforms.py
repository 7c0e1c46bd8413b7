"""Transforms of images with ignored regions.

Letters: `M` boxes of one image, in px of the image as it is when the transform runs.
"""

import numpy as np
from mmcv.transforms import BaseTransform

from mmkd.registry import TRANSFORMS


@TRANSFORMS.register_module()
class EraseIgnoredRegions(BaseTransform):
    """Fills ignored boxes with one grey value, except where a box that counts covers them.

    For detectors whose assigner has no notion of ignored regions (YOLOX, YOLOv3): what they cannot see, they are not
    punished for. Not from a paper; this project's choice. It belongs right after `LoadAnnotations`.

    Args:
        fill: Grey value, 0..255.
    """

    def __init__(self, *, fill: float = 114) -> None:
        if not 0 <= fill <= 255:
            raise ValueError(f'fill must be in 0..255, got {fill}')
        self.fill = fill

    def transform(self, results: dict) -> dict:
        """Changes a copy of `results['img']`; needs `gt_bboxes` and `gt_ignore_flags`, both of `M`."""
        ignored = np.asarray(results['gt_ignore_flags'], dtype=bool)
        if not ignored.any():
            return results
        boxes = results['gt_bboxes']
        boxes = boxes.numpy() if hasattr(boxes, 'numpy') else np.asarray(boxes)
        erased = np.zeros(results['img'].shape[:2], dtype=bool)
        for value, chosen in ((True, boxes[ignored]), (False, boxes[~ignored])):
            for x1, y1, x2, y2 in np.maximum(np.rint(chosen), 0).astype(int):
                erased[y1:y2, x1:x2] = value
        image = results['img'].copy()
        image[erased] = self.fill
        results['img'] = image
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(fill={self.fill})'

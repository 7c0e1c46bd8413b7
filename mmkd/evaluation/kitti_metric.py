"""KITTI's 2D average precision as a metric of MMEngine.

Letters: `M` predicted boxes of one image, in px of the original image.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from mmkd.evaluation.kitti_ap import CLASSES, LEVELS, kitti_eval, mean_ap
from mmkd.evaluation.kitti_files import read_labels, result_line
from mmkd.evaluation.kitti_objects import TYPES, KittiObjects, from_frames, type_code
from mmkd.evaluation.kitti_report import format_table
from mmkd.registry import METRICS


@METRICS.register_module()
class KittiMetric(BaseMetric):
    """2D AP at easy, moderate and hard, R40 and R11, of the frames that were seen, as `kitti_eval`.

    Reports `Car_R40_moderate` ... and `mean_R40_moderate` ... under the prefix `kitti`, in percent. The ground truth is
    read from the label files, so that what a detector is trained to ignore does not touch the score. Boxes are clipped
    to the image first, and files are written with all digits: the tool that evaluates them finds the same numbers.

    Args:
        label_dir: Folder of the label files; without it the one that `KittiDataset` names in its metainfo.
        classes: Types to evaluate; without it the data set's classes for which KITTI has an overlap.
        min_overlaps: As in `kitti_eval`.
        format_only: Write the submission files and compute nothing: for the testing part.
        outfile_prefix: Folder for one `<frame>.txt` a frame, made if absent; needed for `format_only`.
        collect_device: As in MMEngine.
        prefix: As in MMEngine.
    """

    default_prefix = 'kitti'

    def __init__(
        self,
        label_dir: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        min_overlaps: Mapping[str, float] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if format_only and outfile_prefix is None:
            raise ValueError('format_only writes files: outfile_prefix must name a folder')
        self.label_dir, self.classes, self.min_overlaps = label_dir, classes, min_overlaps
        self.format_only, self.outfile_prefix = format_only, outfile_prefix

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Notes the clipped predictions of a batch.

        Args:
            data_batch: Not used.
            data_samples: With `img_path`, `ori_shape`, `pred_instances` (`bboxes` (M, 4), `scores`, `labels` (M,)).
        """
        for sample in data_samples:
            height, width = sample['ori_shape'][:2]
            predicted = sample['pred_instances']
            boxes = _to_numpy(predicted['bboxes']).astype(np.float64).reshape(-1, 4)
            self.results.append(
                {
                    'frame': Path(sample['img_path']).stem,
                    'bbox': np.clip(boxes, 0, [width, height, width, height]),
                    'score': _to_numpy(predicted['scores']).astype(np.float64),
                    'name': [self._type_names()[label] for label in _to_numpy(predicted['labels'])],
                }
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """AP of all frames; empty if `format_only`.

        Raises:
            ValueError: If no frame or one frame twice was seen, a prediction is NaN, or no label folder is known.
        """
        results = sorted(results, key=lambda result: result['frame'])
        names = [result['frame'] for result in results]
        if not names:
            raise ValueError('KittiMetric saw no frame')
        twice = [name for name, following in pairwise(names) if name == following]
        if twice:
            raise ValueError(f'frame {twice[0]} was seen twice')
        if self.outfile_prefix is not None:
            self._write(results)
        if self.format_only:
            return {}
        truths = read_labels(self._labels(), names)
        scores = self._evaluate(truths, from_frames(results, names, scored=True))
        return {
            f'{name}_{points}_{level}': round(values[points][index], 4)
            for name, values in {**scores, 'mean': mean_ap(scores)}.items()
            for points in ('R40', 'R11')
            for index, level in enumerate(LEVELS)
        }

    def _evaluate(self, truths: KittiObjects, detections: KittiObjects) -> dict[str, dict[str, list]]:
        """`kitti_eval`, its warnings and its table in the log."""
        classes = self.classes or [name for name in self._type_names() if name in CLASSES]
        logger = MMLogger.get_current_instance()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            scores = kitti_eval(truths, detections, classes=classes, min_overlaps=self.min_overlaps)
        for warning in caught:
            logger.warning(str(warning.message))
        logger.info('KITTI 2D detection, %d frames\n%s', len(truths.names), format_table(scores))
        return scores

    def _type_names(self) -> list[str]:
        """KITTI's spelling of the data set's classes."""
        return [TYPES[type_code(name)] for name in self.dataset_meta['classes']]

    def _labels(self) -> str:
        folder = self.label_dir or self.dataset_meta.get('label_dir')
        if not folder:
            raise ValueError(
                'no label files are known: give KittiMetric label_dir, use KittiDataset with labels, or format_only'
            )
        return folder

    def _write(self, results: Sequence[dict]) -> None:
        """One file a frame in the form of KITTI's server; a frame without detections gets an empty file."""
        os.makedirs(self.outfile_prefix, exist_ok=True)
        for result in results:
            columns = zip(result['name'], result['bbox'], result['score'], strict=True)
            lines = [result_line(name, box, score) for name, box, score in columns]
            Path(self.outfile_prefix, f'{result["frame"]}.txt').write_text(''.join(lines), encoding='ascii')


def _to_numpy(values: object) -> np.ndarray:
    """A tensor of any device, or anything that numpy takes, as an array."""
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else np.asarray(values)

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

from mmkd.evaluation.kitti_ap import CLASSES, LEVELS, kitti_eval, mean_ap, overlap_limits
from mmkd.evaluation.kitti_files import read_labels, result_line
from mmkd.evaluation.kitti_objects import TYPES, KittiObjects, from_frames, type_code
from mmkd.evaluation.kitti_report import format_table
from mmkd.near_names import absent
from mmkd.registry import METRICS


@METRICS.register_module()
class KittiMetric(BaseMetric):
    """2D AP at easy, moderate and hard, R40 and R11, of the frames that were seen, as `kitti_eval`.

    Reports `Car_R40_moderate` ... and `mean_R40_moderate` ... under the prefix `kitti`, in percent. The ground truth is
    read from the label files, so that what a detector is trained to ignore does not touch the score. Boxes are clipped
    to the image first, and files are written with all digits: the tool that evaluates them finds the same numbers.

    Args:
        label_dir: Folder of the label files; without it the one that `KittiDataset` names in its metainfo.
        classes: Types to evaluate; without it the data set's classes for which KITTI or `min_overlaps` has an overlap.
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
        self.without_objects: set[str] = set()  # the last scores that are 0 since there was nothing to find

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Notes the clipped predictions of a batch.

        Args:
            data_batch: Not used.
            data_samples: With `img_path`, `ori_shape`, `pred_instances` (`bboxes` (M, 4), `scores`, `labels` (M,)).

        Raises:
            ValueError: At the first batch, for classes or a label folder with which nothing could be computed.
        """
        if not self.results:
            self._check()
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
        self.without_objects = _without_objects(scores)
        return {
            f'{name}_{points}_{level}': round(values[points][index], 4)
            for name, values in {**scores, 'mean': mean_ap(scores)}.items()
            for points in ('R40', 'R11')
            for index, level in enumerate(LEVELS)
        }

    def _evaluate(self, truths: KittiObjects, detections: KittiObjects) -> dict[str, dict[str, list]]:
        """`kitti_eval`, its warnings and its table in the log."""
        logger = MMLogger.get_current_instance()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            scores = kitti_eval(truths, detections, classes=self._evaluated(), min_overlaps=self.min_overlaps)
        for warning in caught:
            logger.warning(str(warning.message))
        logger.info('KITTI 2D detection, %d frames\n%s', len(truths.names), format_table(scores))
        return scores

    def _check(self) -> None:
        """What would otherwise be said behind the last image."""
        if isinstance(self.dataset_meta, list):
            raise ValueError(
                f'KittiMetric scores the frames of one folder; {len(self.dataset_meta)} data sets with different '
                'metainfo are joined: score each by itself'
            )
        if self.format_only:
            return
        overlap_limits(self._evaluated(), self.min_overlaps or {})
        folder = Path(self._labels())
        if not folder.is_dir():
            raise ValueError(f'no folder of label files {folder}: {absent(folder)}')

    def _evaluated(self) -> list[str]:
        """The types to evaluate."""
        if self.classes:
            return list(self.classes)
        own = {TYPES[type_code(name)] for name in self.min_overlaps or {}}
        found = [name for name in self._type_names() if name in CLASSES or name in own]
        if not found:
            own = ', '.join(self._type_names())
            raise ValueError(
                f'KITTI has an overlap for {", ".join(CLASSES)}; the data set has {own}: give KittiMetric '
                'min_overlaps, such as min_overlaps=dict(Van=0.7)'
            )
        return found

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


def _without_objects(scores: Mapping[str, Mapping[str, list]]) -> set[str]:
    """Names of the scores behind which no object counts."""
    counts = {name: values['num_gt'] for name, values in scores.items()}
    counts['mean'] = [sum(found) for found in zip(*counts.values(), strict=True)]
    return {
        f'{name}_{points}_{level}'
        for name, found in counts.items()
        for points in ('R40', 'R11')
        for level, count in zip(LEVELS, found, strict=True)
        if not count
    }


def _to_numpy(values: object) -> np.ndarray:
    """A tensor of any device, or anything that numpy takes, as an array."""
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else np.asarray(values)

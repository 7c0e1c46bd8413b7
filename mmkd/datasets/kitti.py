"""KITTI's 2D object data in its own layout, as a data set of MMDetection.

Letters: `M` objects of all frames. Boxes are 0-based px of the original image, `x1 y1 x2 y2`; KITTI scales are
(width, height) = (1242, 375).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from mmdet.datasets import BaseDetDataset

from mmkd.datasets.image_sizes import image_sizes
from mmkd.evaluation.kitti_ap import NEIGHBOURS
from mmkd.evaluation.kitti_files import read_labels, read_split
from mmkd.evaluation.kitti_objects import TYPES, KittiObjects, type_code, unique_types
from mmkd.registry import DATASETS

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
# Folders of images and labels below the data root.
KITTI_FOLDERS = {'img': 'training/image_2', 'label': 'training/label_2'}
# A colour for each of TYPES, RGB; a choice of classes keeps those of its types.
COLOURS = ((0, 142, 255), (0, 80, 160), (120, 90, 255), (255, 64, 64), (255, 150, 150), (255, 190, 0))
COLOURS += ((0, 200, 120), (200, 60, 200), (128, 128, 128))
_DROPPED = -1


@DATASETS.register_module()
class KittiDataset(BaseDetDataset):
    """KITTI 2D object detection, read from `training/image_2`, `training/label_2` and `ImageSets` without conversion.

    Ignored instances have `ignore_flag` 1: they reach a detector as `ignored_instances`. A detector heeds them only if
    its assigner does (MMDetection: `ignore_iof_thr` of `MaxIoUAssigner`); for others `mmkd.EraseIgnoredRegions` blanks
    them in the picture.

    An instance also says its `kitti_type`.

    Args:
        ann_file: Split file below `data_root`, one frame a line; several are joined; '' = all images of the folder.
        metainfo: `classes` chooses among KITTI's types; Car, Pedestrian and Cyclist without it.
        data_prefix: `img` and `label` folders below `data_root`. Without `label` (the testing part) there are no
            instances; that needs `test_mode`.
        filter_cfg: In training, `filter_empty_gt` leaves out frames without an instance that is not ignored, `min_size`
            those with a shorter side below it in px.
        dont_care: What becomes of DontCare regions: `'ignore'` or `'drop'`.
        neighbours: What becomes of Van for Car and Person_sitting for Pedestrian: `'ignore'`, `'drop'` (background) or
            `'merge'` (an instance of the class). A neighbour that is one of the classes is that class.
        cache_dir: Folder for image sizes, see `mmkd.datasets.image_sizes`.
        kwargs: As `mmdet.BaseDetDataset`: `data_root`, `pipeline`, `indices`, `test_mode`, `lazy_init` ...
    """

    METAINFO = {
        'classes': ('Car', 'Pedestrian', 'Cyclist'),
        'palette': [COLOURS[TYPES.index(name)] for name in ('Car', 'Pedestrian', 'Cyclist')],
    }

    def __init__(
        self,
        ann_file: str | Sequence[str] = '',
        *,
        metainfo: dict | None = None,
        data_prefix: dict | None = None,
        dont_care: Literal['ignore', 'drop'] = 'ignore',
        neighbours: Literal['ignore', 'drop', 'merge'] = 'ignore',
        cache_dir: str | None = None,
        **kwargs: object,
    ) -> None:
        if dont_care not in ('ignore', 'drop'):
            raise ValueError(f"dont_care must be 'ignore' or 'drop', got {dont_care!r}")
        if neighbours not in ('ignore', 'drop', 'merge'):
            raise ValueError(f"neighbours must be 'ignore', 'drop' or 'merge', got {neighbours!r}")
        self.dont_care, self.neighbours, self.cache_dir = dont_care, neighbours, cache_dir
        prefix = dict(KITTI_FOLDERS if data_prefix is None else data_prefix)
        if 'img' not in prefix or set(prefix) - {'img', 'label'}:
            raise ValueError(f"data_prefix must have the key 'img' and may have 'label', got {sorted(prefix)}")
        self._own_palette = 'palette' in (metainfo or {})
        super().__init__(ann_file=ann_file, metainfo=metainfo, data_prefix=prefix, **kwargs)

    def _join_prefix(self) -> None:
        """Joins `data_root` with the folders and split files; notes the label folder and the colours of the classes."""
        root = Path(self.data_root or '')
        splits = [self.ann_file] if isinstance(self.ann_file, str) else list(self.ann_file)
        self.ann_file = [str(root / split) for split in splits if split]
        self.data_prefix = {key: str(root / folder) if folder else '' for key, folder in self.data_prefix.items()}
        self._metainfo['label_dir'] = self.data_prefix.get('label', '')
        if not self._own_palette:
            self._metainfo['palette'] = [COLOURS[type_code(name)] for name in self._metainfo['classes']]

    def load_data_list(self) -> list[dict]:
        """One dictionary a frame: `img_path`, `img_id`, `height`, `width`, `instances`.

        Raises:
            FileNotFoundError: For a split, image or label file that is missing.
            ValueError: For frames named twice, malformed files, unknown classes, or training without labels.
        """
        if self.backend_args not in (None, {'backend': 'local'}):
            raise ValueError(f'KittiDataset reads local files only, got backend_args={self.backend_args}')
        images = _images(self.data_prefix['img'])
        names = self._frames(images)
        missing = [name for name in names if name not in images]
        folder = self.data_prefix['img']
        if missing:
            raise FileNotFoundError(f'{folder} has no image for {len(missing)} frames, first {missing[0]!r}')
        sizes = image_sizes(folder, [images[name] for name in names], cache_dir=self.cache_dir)
        instances = self._instances(names)
        return [
            {
                'img_path': os.path.join(folder, images[name]),
                'img_id': int(name) if name.isdigit() else name,
                'width': width,
                'height': height,
                'instances': found,
            }
            for name, (width, height), found in zip(names, sizes, instances, strict=True)
        ]

    def _frames(self, images: dict[str, str]) -> list[str]:
        """Frames of all splits in their order, or all of the folder."""
        if not self.ann_file:
            self._refuse_unpaired_labels(images)
            return sorted(images)
        names = [name for split in self.ann_file for name in read_split(split)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f'frame {twice!r} is in more than one of the joined splits {self.ann_file}')
        return names

    def _refuse_unpaired_labels(self, images: dict[str, str]) -> None:
        folder = self.data_prefix.get('label')
        if not folder:
            return
        alone = sorted(path.stem for path in Path(folder).glob('*.txt') if path.stem not in images)
        if alone:
            raise FileNotFoundError(f'{len(alone)} label files in {folder} have no image, first {alone[0]}.txt')

    def _instances(self, names: Sequence[str]) -> list[list[dict]]:
        """Instances of each frame."""
        folder = self.data_prefix.get('label')
        if not folder:
            if not self.test_mode:
                raise ValueError("training needs labels: data_prefix has no 'label'")
            return [[] for _ in names]
        return self._make_instances(read_labels(folder, names))

    def _make_instances(self, objects: KittiObjects) -> list[list[dict]]:
        label_of, ignore_of = self._roles()
        labels, ignored = label_of[objects.type], ignore_of[objects.type]
        solid = (objects.boxes[:, 2] > objects.boxes[:, 0]) & (objects.boxes[:, 3] > objects.boxes[:, 1])
        rows = np.flatnonzero((labels != _DROPPED) & solid)
        instances: list[list[dict]] = [[] for _ in objects.names]
        columns = (objects.frame[rows], objects.boxes[rows], labels[rows], ignored[rows], objects.type[rows])
        for frame, box, label, flag, code in zip(*(column.tolist() for column in columns), strict=True):
            instance = {'bbox': box, 'bbox_label': label, 'ignore_flag': flag, 'kitti_type': TYPES[code]}
            instances[frame].append(instance)
        return instances

    def _roles(self) -> tuple[np.ndarray, np.ndarray]:
        """Label and ignore flag of each KITTI type; a DontCare region, which has no class, is given label 0."""
        labels = np.full(len(TYPES), _DROPPED)
        ignored = np.zeros(len(TYPES), dtype=np.int64)
        classes = unique_types(self._metainfo['classes'])
        for label, name in enumerate(classes):
            labels[type_code(name)] = label
        for label, name in enumerate(classes):
            neighbour = NEIGHBOURS.get(name)
            if neighbour and neighbour not in classes and self.neighbours != 'drop':
                labels[type_code(neighbour)] = label
                ignored[type_code(neighbour)] = self.neighbours == 'ignore'
        if self.dont_care == 'ignore' and 'DontCare' not in classes:
            labels[type_code('DontCare')], ignored[type_code('DontCare')] = 0, 1
        return labels, ignored

    def filter_data(self) -> list[dict]:
        """Frames that `filter_cfg` keeps, an error if there is none; all of them in test mode."""
        if self.test_mode or not self.filter_cfg:
            return self.data_list
        unknown = set(self.filter_cfg) - {'filter_empty_gt', 'min_size'}
        if unknown:
            raise ValueError(f"filter_cfg knows 'filter_empty_gt' and 'min_size', got {sorted(unknown)}")
        shortest = self.filter_cfg.get('min_size', 0)
        kept = [info for info in self.data_list if min(info['width'], info['height']) >= shortest]
        if self.filter_cfg.get('filter_empty_gt', False):
            kept = [info for info in kept if any(not instance['ignore_flag'] for instance in info['instances'])]
        if self.data_list and not kept:
            raise ValueError(f'filter_cfg={self.filter_cfg} leaves none of {len(self.data_list)} frames')
        return kept

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the instances of one frame that are not ignored."""
        instances = self.get_data_info(idx)['instances']
        return [instance['bbox_label'] for instance in instances if not instance['ignore_flag']]


def _images(folder: str) -> dict[str, str]:
    """File name of each frame's image in a folder."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'{folder} is not a folder; data_root is to be the folder that holds it')
    images: dict[str, str] = {}
    for file in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if stem in images:
            raise ValueError(f'{folder} has two images of frame {stem}: {images[stem]} and {file}')
        images[stem] = file
    return images

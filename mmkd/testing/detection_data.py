"""Data sets of an experiment: where they lie, which classes they have, how a detector is scored on them."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmkd.engine.coco_rules import annotation_faults, layout_faults, missing_images
from mmkd.evaluation.kitti_files import read_labels, read_split
from mmkd.evaluation.kitti_objects import type_code
from mmkd.near_names import absent

_COCO_ANNOTATIONS = '{split}.json', 'instances_{split}.json', 'instances_{split}2017.json'
# COCO's object sizes: end of the metric's key -> name, and areas in px^2 of the image as it is stored
_COCO_SIZES = {'s': ('AP_small', 0, 32**2), 'm': ('AP_medium', 32**2, 96**2), 'l': ('AP_large', 96**2, float('inf'))}
SIZE_METRICS = {f'coco/bbox_mAP_{key}' for key in _COCO_SIZES}
MIN_SIDE = 2  # px of the shorter side of an image to train on
_COCO_IMAGES = 'images', '{split}', '{split}2017', 'images/{split}', 'images/{split}2017', '.'


@dataclass(frozen=True)
class DetectionData:
    """What an experiment needs to know of a data set; dicts are MMEngine configs without a pipeline.

    Args:
        name: Short name, for tables.
        classes: Names in the order of the labels.
        train: Data set to train on.
        val: Data set to score on.
        evaluator: Metric of `val`.
        metrics: Key the metric reports under -> name in tables; the first is the main one.
        counts: Number of images that are trained on (those without an object are not) and that are scored.
        percent: Factor that makes a score a percentage.
    """

    name: str
    classes: tuple[str, ...]
    train: dict
    val: dict
    evaluator: dict
    metrics: dict[str, str] = field(default_factory=dict)
    counts: tuple[int, int] = (0, 0)
    percent: float = 100.0


def detection_data(
    path: str | Path, layout: str = 'coco', splits: tuple[str, str] = ('train', 'val'), *, by_size: bool = False
) -> DetectionData:
    """Find a data set on disk.

    Args:
        path: Its folder.
        layout: `coco` (`annotations/{train,val}.json` or COCO's own names) or `kitti` (`training/`, `ImageSets/`).
        splits: Names of what is trained on and what is scored on; no other split is read.
        by_size: Report AP by object size too, for the sizes that the scored split has (COCO only).

    Returns:
        The description; nothing is written.

    Raises:
        ValueError: For another layout, the same split twice, `by_size` with KITTI, or annotations with faults.
        FileNotFoundError: Where a file is missing; the message lists what was looked for.
    """
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(f'no data folder {root}: {absent(root)}')
    if len(set(splits)) != 2:
        raise ValueError(f'splits must name two different splits, got {splits}')
    if layout not in ('coco', 'kitti'):
        raise ValueError(f"format must be 'coco' or 'kitti', got {layout!r}")
    if layout == 'kitti':
        if by_size:
            raise ValueError('by_size is for COCO data; KITTI has difficulties instead')
        return kitti_data(root, splits)
    data = coco_data(root, splits)
    return replace(data, metrics=data.metrics | size_metrics(Path(data.val['ann_file']))) if by_size else data


def size_metrics(annotations: Path) -> dict[str, str]:
    """The metrics by object size that a COCO annotation file has objects for.

    Bounds are COCO's: small up to 32^2 px, large from 96^2 px, by the annotations' `area` in px^2 of the images as they
    are stored, whatever size they are resized into.

    Args:
        annotations: File of the split that is scored.

    Returns:
        Key of `CocoMetric` -> name.
    """
    things = json.loads(annotations.read_text())['annotations']
    areas = [thing['area'] for thing in things if not thing.get('iscrowd') and not thing.get('ignore')]
    return {
        f'coco/bbox_mAP_{key}': name
        for key, (name, low, high) in _COCO_SIZES.items()
        if any(low <= area <= high for area in areas)
    }


def kitti_data(root: Path, splits: tuple[str, str]) -> DetectionData:
    """Data set in KITTI's own layout, scored by KITTI's R40 at moderate difficulty.

    Args:
        root: Folder with `training/` and `ImageSets/`.
        splits: Stems of two files in `ImageSets`.

    Returns:
        Its description.

    Raises:
        FileNotFoundError: Where a split file is missing.
    """
    files = [root / 'ImageSets' / f'{split}.txt' for split in splits]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f'no {file}: --splits names two of the files beside it')
    classes = ('Car', 'Pedestrian', 'Cyclist')
    sets = [
        dict(type='mmkd.KittiDataset', data_root=str(root), ann_file=str(file), metainfo=dict(classes=classes))
        for file in files
    ]
    return DetectionData(
        name=root.name,
        classes=classes,
        train=dict(sets[0], filter_cfg=dict(filter_empty_gt=True)),
        val=dict(sets[1], test_mode=True),
        evaluator=dict(type='mmkd.KittiMetric'),
        metrics={'kitti/mean_R40_moderate': 'AP R40', 'kitti/Car_R40_moderate': 'AP R40 Car'},
        counts=(trained_images(sets[0]), len(read_split(files[1]))),
        percent=1.0,
    )


def coco_data(root: Path, splits: tuple[str, str]) -> DetectionData:
    """Data set in COCO form; the validation split scores, a test split is never read.

    Args:
        root: Folder with `annotations/` and the images.
        splits: Names of the two splits.

    Returns:
        Its description.

    Raises:
        FileNotFoundError: Where annotations or images are missing.
        ValueError: Where train and val name different classes, or in another order, or a file has faults; the message
            names them.
    """
    found = {role: _coco_split(root, split, role) for role, split in zip(('train', 'val'), splits, strict=True)}
    classes = {role: parts[2] for role, parts in found.items()}
    if classes['train'] != classes['val']:
        raise ValueError(f'{root}: train has classes {classes["train"]}, val has {classes["val"]}')
    sets = {
        role: dict(
            type='CocoDataset',
            ann_file=str(annotation),
            data_prefix=dict(img=str(images) + '/'),
            metainfo=dict(classes=classes['train']),
        )
        for role, (annotation, images, _, _) in found.items()
    }
    return DetectionData(
        name=root.name,
        classes=classes['train'],
        train=dict(sets['train'], filter_cfg=dict(filter_empty_gt=True, min_size=MIN_SIDE)),
        val=dict(sets['val'], test_mode=True),
        evaluator=dict(type='CocoMetric', ann_file=sets['val']['ann_file'], metric='bbox', format_only=False),
        metrics={'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50'},
        counts=(trained_images(sets['train']), found['val'][3]),
    )


def trained_images(dataset: dict) -> int:
    """Images of a training set that are trained on: MMDetection leaves out those without an object.

    Args:
        dataset: Config of `CocoDataset` or `KittiDataset` as this module writes it.

    Returns:
        Their number.
    """
    file = Path(dataset['ann_file'])
    if file.suffix != '.json':
        objects = read_labels(Path(dataset['data_root']) / 'training' / 'label_2', read_split(file))
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        counted = np.isin(objects.type, [type_code(name) for name in dataset['metainfo']['classes']])
        return len(np.unique(objects.frame[counted & (sides > 0).all(axis=1)]))
    content = json.loads(file.read_text())
    categories = {category['id'] for category in content['categories']}
    filled = {box['image_id'] for box in content['annotations'] if box['category_id'] in categories}
    return sum(
        image['id'] in filled and min(image['width'], image['height']) >= MIN_SIDE for image in content['images']
    )


def _coco_split(root: Path, split: str, role: str) -> tuple[Path, Path, tuple[str, ...], int]:
    names = [root / 'annotations' / name.format(split=split) for name in _COCO_ANNOTATIONS]
    annotation = next((name for name in names if name.is_file()), None)
    if annotation is None:
        raise FileNotFoundError(f'no {split} annotations: looked for ' + ', '.join(str(name) for name in names))
    content = _right_content(annotation, scored=role == 'val')
    first = content['images'][0]['file_name']
    folders = [root / name.format(split=split) for name in _COCO_IMAGES]
    images = next((folder for folder in folders if (folder / first).is_file()), None)
    if images is None:
        raise FileNotFoundError(f'no {first}: looked in ' + ', '.join(str(folder) for folder in folders))
    missing = missing_images(images, [image['file_name'] for image in content['images']])
    if missing:
        raise FileNotFoundError(f'{len(missing)} images of {annotation} are not in {images}, first {missing[0]}')
    # CocoDataset numbers labels in the order of the file, whatever the ids
    classes = tuple(category['name'] for category in content['categories'])
    return annotation, images, classes, len(content['images'])


def _right_content(annotation: Path, *, scored: bool) -> dict:
    """Content of a COCO file that can be trained on, or scored by.

    Raises:
        ValueError: For no JSON or faults of the annotations; the message names the file.
    """
    try:
        content = json.loads(annotation.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{annotation} is no JSON file ({error})') from error
    faults = layout_faults(content) or annotation_faults(content, scored=scored)
    if faults:
        raise ValueError('\n'.join(f'{annotation}: {fault}' for fault in faults))
    return content

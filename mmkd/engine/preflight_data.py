"""Mistakes in the data of a configuration: folders, annotation files, class names, paths that leave the folder."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import CocoDataset
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from mmkd.datasets.kitti import KITTI_FOLDERS, KittiDataset
from mmkd.engine.coco_rules import annotation_faults, layout_faults, missing_images
from mmkd.engine.explain import explain
from mmkd.evaluation.kitti_files import read_split
from mmkd.models.algorithms.model_config import class_names, detected_classes
from mmkd.near_names import absent, absent_file, nearest

MAX_NESTING = 2000
TRAINING = ('train_dataloader', 'val_dataloader')

# Loader and file -> names by label.
Numbered = dict[tuple[str, Path], tuple[str, ...]]


def datasets(cfg: Config, names: Sequence[str] = TRAINING) -> Iterator[tuple[str, ConfigDict]]:
    """Every data set that is read in training and validation, inside of its wrappers, with its loader's name."""
    for name in names:
        loader = cfg.get(name)
        pending = [loader.dataset] if loader else []
        while pending:
            dataset = pending.pop()
            if 'dataset' in dataset or 'datasets' in dataset:
                pending += [dataset.dataset] if 'dataset' in dataset else list(dataset.datasets)
            else:
                yield name, dataset


def _dataset_type(dataset: ConfigDict) -> type | None:
    with DATASETS.switch_scope_and_registry(None) as registry:  # `get` alone does not know the default scope
        return registry.get(dataset.type) if isinstance(dataset.type, str) else dataset.type


def dataset_classes(dataset: ConfigDict) -> tuple[str, ...]:
    """Class names of a data set's configuration: its metainfo, or those of its type."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        return detected_classes(getattr(_dataset_type(dataset), 'METAINFO', {}))
    return class_names(classes)


def check_data(cfg: Config) -> Iterator[str]:
    """Data folders and files that are not there or not what they should be, and class names not in annotations."""
    counts = Counter(name for name, _ in datasets(cfg))
    numbered: Numbered = {}
    for name, dataset in datasets(cfg):
        if is_elsewhere(dataset, dataset.get('data_root')):
            continue
        root = Path(dataset.get('data_root') or '')
        if dataset.get('data_root') and not root.is_dir():
            yield f'{name}: the data folder {root}: {absent(root)}. Set data_root.'
            continue
        files = dataset.get('ann_file') or ()
        paths = [root / file for file in ([files] if isinstance(files, str) else files) if '://' not in file]
        missing = [path for path in paths if not path.is_file()]
        for path in missing:
            yield f'{name}: the annotation file {absent_file(path)}.'
        if missing:
            continue
        if _is_kitti(dataset):
            yield from check_kitti(name, dataset, root, paths)
        if _reads_coco(dataset):
            rules = _annotation_rules(cfg, name, dataset, alone=counts[name] == 1)
            for path in paths:
                yield from _check_coco(name, dataset, path, rules, numbered)
    yield from _check_numbers(numbered | _numbered_in_tests(cfg, numbered))
    yield from _check_evaluator(cfg)


def is_elsewhere(entry: Mapping[str, Any], path: str | None) -> bool:
    """Whether a file is not read from this machine's disk, so that nothing can be said about it here.

    Args:
        entry: what reads it, perhaps with `backend_args`: a data set, a metric, a step of a pipeline.
        path: its name.
    """
    backend = (entry.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or '://' in str(path)


def _is_kitti(dataset: ConfigDict) -> bool:
    try:
        return issubclass(_dataset_type(dataset) or object, KittiDataset)
    except (KeyError, ImportError):  # an unknown type is said elsewhere
        return False


def _reads_coco(dataset: ConfigDict) -> bool:
    """Whether a data set reads its files as `CocoDataset` does; what others make of theirs is their own matter."""
    try:
        kind = _dataset_type(dataset) or object
    except (KeyError, ImportError):
        return False
    own = [getattr(kind, name, None) for name in ('load_data_list', 'parse_data_info')]
    return own == [CocoDataset.load_data_list, CocoDataset.parse_data_info]


def check_kitti(name: str, dataset: ConfigDict, root: Path, splits: list[Path]) -> Iterator[str]:
    """Split files of KITTI's layout that are none, or name frames that are not in the folders."""
    prefix = dataset.get('data_prefix') or KITTI_FOLDERS
    images, labels = root / prefix.get('img', ''), prefix.get('label')
    if not images.is_dir():
        yield f'{name}: the image folder {images} does not exist. Set data_root or data_prefix.img.'
        return
    there = {path.stem for path in images.iterdir()}
    for split in splits:
        try:
            frames = read_split(split)  # refuses names with a slash: no frame lies outside the folders
        except ValueError as error:
            yield f'{name}: {error}.'
            continue
        alone = [frame for frame in frames if frame not in there]
        unlabelled = [f for f in frames if labels and not (root / labels / f'{f}.txt').is_file()]
        for what, folder, found in (('image', images, alone), ('label file', root / str(labels), unlabelled)):
            if found:
                yield f'{name}: {split.name} names {len(found)} frames without {what} in {folder}, such as {found[0]}.'


def _metrics(cfg: Config) -> list[Mapping[str, Any]]:
    metrics = cfg.get('val_evaluator') or []
    return list(metrics) if isinstance(metrics, list | tuple) else [metrics]


def _check_evaluator(cfg: Config) -> Iterator[str]:
    for metric in _metrics(cfg):
        path = metric.get('ann_file')
        if path and not is_elsewhere(metric, path) and not Path(path).is_file():
            yield f'val_evaluator: the annotation file {absent_file(path)}.'


def _annotation_rules(cfg: Config, name: str, dataset: ConfigDict, *, alone: bool) -> dict[str, bool]:
    """Arguments of `annotation_faults`: a set of images without objects may well be one of several.

    Args:
        cfg: the configuration.
        name: of the loader.
        dataset: one of its data sets.
        alone: it is the only one.
    """
    if name == 'train_dataloader':
        return dict(needs_boxes=alone or _drops_empty(dataset))
    metrics = [metric for metric in _metrics(cfg) if not metric.get('format_only')]
    scored = any(str(metric.get('type')).endswith('CocoMetric') and metric.get('ann_file') for metric in metrics)
    return dict(needs_boxes=alone and bool(metrics), scored=scored)


def _drops_empty(dataset: ConfigDict) -> bool:
    """Whether images without an object of the classes are left out, so that they are never read."""
    return bool((dataset.get('filter_cfg') or {}).get('filter_empty_gt')) and not dataset.get('test_mode')


def read_json(path: Path) -> Any:
    """Content of a JSON file that may come from anywhere.

    Python's parser descends into nested lists by recursion: a small file of brackets would end the process.

    Raises:
        ValueError: no JSON, or nested deeper than `MAX_NESTING`.
    """
    data = path.read_bytes()
    depth = 0
    for start in range(0, len(data), 1 << 22):
        block = np.frombuffer(data, np.uint8, min(1 << 22, len(data) - start), start)
        step = np.isin(block, (ord('['), ord('{'))).astype(np.int32) - np.isin(block, (ord(']'), ord('}')))
        levels = depth + np.cumsum(step)
        if levels.max(initial=0) > MAX_NESTING:
            raise ValueError(f'nested deeper than {MAX_NESTING} levels')
        depth = int(levels[-1])
    return json.loads(data)


def labels_in(content: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, ...]:
    """Names by label, as `CocoDataset` and `CocoMetric` number them: in the order of the file, not of `classes`."""
    return tuple(category['name'] for category in content['categories'] if category['name'] in classes)


def _numbered_in_tests(cfg: Config, known: Numbered) -> Numbered:
    """Labels of the files of a test set; one that is not there yet, or is wrong otherwise, is no matter of training."""
    paths = {path for _, path in known}
    found = {}
    for name, dataset in datasets(cfg, ['test_dataloader']):
        if not _reads_coco(dataset) or is_elsewhere(dataset, dataset.get('data_root')):
            continue
        path = Path(dataset.get('data_root') or '') / (dataset.get('ann_file') or '')
        if path in paths or not path.is_file():
            continue
        with suppress(ValueError, KeyError):
            content = read_json(path)
            if not layout_faults(content):
                found[name, path] = labels_in(content, dataset_classes(dataset))
    return found


def _check_numbers(numbered: Numbered) -> Iterator[str]:
    """Files that give the same classes other labels: what is learned from one would be scored as another class."""
    (_, first), known = next(iter(numbered.items()), ((None, None), ()))
    for (loader, path), names in numbered.items():
        if names != known and sorted(names) == sorted(known):
            yield (
                f'{loader}: {path} lists its categories in another order than {first}: {", ".join(names)} instead of '
                f'{", ".join(known)}. MMDetection numbers labels by the order in each file, whatever metainfo.classes '
                'says: a label would mean two classes. Write the categories in one order; their ids may stay.'
            )


def classes_numbered_otherwise(cfg: Config) -> Iterator[str]:
    """Training sets whose file lists the classes in another order than `metainfo.classes`; read behind `check_data`."""
    for name, dataset in datasets(cfg):
        files, root = dataset.get('ann_file') or '', dataset.get('data_root') or ''
        if name != 'train_dataloader' or is_elsewhere(dataset, root) or not _reads_coco(dataset):
            continue
        wanted = dataset_classes(dataset)
        names = labels_in(read_json(Path(root) / files), wanted)
        if names != wanted and sorted(names) == sorted(wanted):
            yield (
                f'{files} lists its categories as {", ".join(names)}, metainfo.classes says {", ".join(wanted)}. '
                'MMDetection numbers labels by the file: scores are right, but pictures and the checkpoint name the '
                'classes wrongly. Write metainfo.classes in the order of the file, the evaluation set likewise.'
            )


def _check_coco(
    name: str, dataset: ConfigDict, path: Path, rules: dict[str, bool], numbered: Numbered
) -> Iterator[str]:
    try:
        content = read_json(path)
    except ValueError as error:
        yield f'{name}: {path} is no COCO annotation file ({type(error).__name__}: {error}).'
        return
    faults = layout_faults(content)
    if faults:
        yield from (f'{name}: {path} is no COCO annotation file: {fault}' for fault in faults)
        return
    try:
        wanted = dataset_classes(dataset)
    except KeyError as error:
        yield f'{name}: {explain(error)}'
        return
    numbered[name, path] = labels_in(content, wanted)
    categories = {category['name']: category['id'] for category in content['categories']}
    for one in wanted:
        if one not in categories:
            yield f'{name}: the class {one!r} is not in {path.name}; {nearest(one, categories)}.'
    yield from (f'{name}: {path}: {fault}' for fault in annotation_faults(content, wanted, **rules))
    steps, folder = dataset.get('pipeline') or (), _image_folder(dataset)
    if not any(is_elsewhere(step, str(folder)) for step in steps):  # such as images in a zip or an object store
        files = [image['file_name'] for image in content['images']]
        read = _images_read(dataset, content, {categories.get(one) for one in wanted})
        yield from _check_images(name, path, folder, files, read)


def _image_folder(dataset: ConfigDict) -> Path:
    prefix: Any = dataset.get('data_prefix') or {}
    return Path(dataset.get('data_root') or '') / (prefix.get('img') or prefix.get('img_path') or '')


def _images_read(dataset: ConfigDict, content: dict[str, Any], categories: set) -> list[str]:
    """Names of the images that training or validation opens."""
    images = content['images']
    if _drops_empty(dataset):
        filled = {thing['image_id'] for thing in content.get('annotations') or () if thing['category_id'] in categories}
        images = [image for image in images if image['id'] in filled]
    if dataset.get('indices') is not None:  # a part of the set, perhaps drawn by someone's own rule
        images = images[:1]
    return [image['file_name'] for image in images]


def _check_images(name: str, path: Path, folder: Path, files: list[str], read: list[str]) -> Iterator[str]:
    """The annotation file may come from anywhere: it must not make the loader read outside the image folder."""
    inside = os.path.abspath(folder)
    outside = [f for f in files if not os.path.abspath(os.path.join(inside, f)).startswith(inside + os.sep)]
    if outside and str(folder) != '.':
        yield f'{name}: {path.name} names {len(outside)} images outside the data folder {folder}, such as {outside[0]}.'
        return
    missing = missing_images(folder, read)
    if missing and len(missing) == len(read):
        all_of = f', nor any other of the {len(read)} images' if len(read) > 1 else ''
        yield (
            f'{name}: the image {folder / missing[0]} does not exist{all_of} of {path.name}. Set data_prefix.img to '
            'the folder of the images.'
        )
    elif missing:
        yield f'{name}: {len(missing)} of {len(read)} images of {path.name} are not in {folder}, first {missing[0]}.'

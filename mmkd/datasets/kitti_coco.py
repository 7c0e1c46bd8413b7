"""KITTI's 2D labels as COCO json, for tools that read nothing else.

KITTI's frames are cut out of video: neighbouring frames show the same cars, and a random split leaks them into
validation. So frames come from split files only, never from a random draw.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mmkd.datasets.kitti import KittiDataset
from mmkd.evaluation.kitti_files import read_split

# SHA-256 of the sorted frame names of the standard train (3712) and val (3769) split, first 16 digits.
_STANDARD = {'b6417a1d9b18c8fd', '657ac4bcc1e156e5'}


def kitti_to_coco(
    data_root: str | Path,
    splits: Sequence[str | Path],
    out_dir: str | Path,
    *,
    own_splits: bool = False,
    **options: object,
) -> list[tuple[Path, int]]:
    """Writes one `<split>.json` for each split file; equal input gives equal bytes.

    Ignored regions become `iscrowd` annotations: a neighbouring class of its class, a DontCare region of every class.

    Args:
        data_root: Folder with `training/image_2` and `training/label_2`; file names in the json are relative to it.
        splits: Split files, relative to `data_root` or not; no two may share a frame.
        out_dir: Folder to write to, made if absent.
        own_splits: Accept split files other than the standard ones.
        options: As `KittiDataset`: `metainfo` for other classes, `dont_care`, `neighbours`.

    Returns:
        Each file written and its number of frames.

    Raises:
        FileExistsError: If a file is there already.
        ValueError: If a split is not a standard one, two splits share a frame, or the data is malformed.
    """
    out_dir, data_root = Path(out_dir), Path(data_root)
    paths = [out_dir / f'{Path(split).stem}.json' for split in splits]
    existing = [path for path in paths if path.exists()]
    if existing or len(set(paths)) < len(paths):
        raise FileExistsError(f'{(existing or paths)[0]} would be overwritten: choose another folder or remove it')
    _refuse_leaks([data_root / split for split in splits])
    if not own_splits:
        for split in splits:
            _refuse_own_split(data_root / split)
    documents = [_document(data_root, split, options) for split in splits]
    out_dir.mkdir(parents=True, exist_ok=True)
    for path, document in zip(paths, documents, strict=True):
        part = path.with_name(f'.{path.name}.part')  # whole or not there
        part.write_text(json.dumps(document, separators=(',', ':')) + '\n', encoding='utf-8')
        part.replace(path)
    return [(path, len(document['images'])) for path, document in zip(paths, documents, strict=True)]


def _refuse_own_split(path: Path) -> None:
    names = sorted(read_split(path))
    digest = hashlib.sha256('\n'.join(names).encode()).hexdigest()[:16]
    if digest not in _STANDARD:
        raise ValueError(
            f'{path} ({len(names)} frames) is no file of the standard 3712/3769 split; KITTI frames are cut out of '
            'video, so another split must keep whole videos on one side: say own_splits (--own-splits) if yours does'
        )


def _refuse_leaks(splits: Sequence[Path]) -> None:
    owner: dict[str, Path] = {}
    for split in splits:
        for name in read_split(split):
            if name in owner:
                raise ValueError(f'frame {name} is in {owner[name]} and in {split}: validation would see training data')
            owner[name] = split


def _document(data_root: Path, split: str | Path, options: dict) -> dict:
    dataset = KittiDataset(str(split), data_root=str(data_root), test_mode=True, serialize_data=False, **options)
    classes = dataset.metainfo['classes']
    images, annotations = [], []
    numbers = [info['img_id'] for info in dataset.data_list]
    if len({number for number in numbers if isinstance(number, int)}) < len(numbers):  # names that are no numbers
        numbers = list(range(len(numbers)))
    for image_id, info in zip(numbers, dataset.data_list, strict=True):
        file_name = Path(info['img_path']).relative_to(data_root).as_posix()
        images.append({'id': image_id, 'file_name': file_name, 'width': info['width'], 'height': info['height']})
        for instance in info['instances']:
            everywhere = instance['kitti_type'] == 'DontCare' and instance['ignore_flag']
            for label in range(len(classes)) if everywhere else [instance['bbox_label']]:
                annotations.append(_annotation(len(annotations) + 1, image_id, label, instance))
    return {
        'info': {'description': f'KITTI 2D objects, split {Path(split).stem}, {len(images)} frames'},
        'images': images,
        'annotations': annotations,
        'categories': [{'id': label + 1, 'name': name} for label, name in enumerate(classes)],
    }


def _annotation(number: int, image_id: int, label: int, instance: dict) -> dict:
    x1, y1, x2, y2 = instance['bbox']
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    return {
        'id': number,
        'image_id': image_id,
        'category_id': label + 1,
        'bbox': [x1, y1, width, height],
        'area': round(width * height, 4),
        'iscrowd': instance['ignore_flag'],
    }

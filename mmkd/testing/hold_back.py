"""A part of the training split to choose hyper-parameters on, so that the validation split stays unseen."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from mmkd.testing.detection_data import SIZE_METRICS, DetectionData, size_metrics, trained_images
from mmkd.testing.runs import write_text

# Behind the data set's name, where scores are of held-back images.
HELD_BACK = ' (held-back training images)'


def hold_back(data: DetectionData, share: float, folder: Path) -> DetectionData:
    """Train on a part of the training split and score on the rest of it.

    COCO images are drawn by the digest of their file names, the same at every call; KITTI frames are the last ones of
    the split. KITTI's frames are drives in random order, so that frames of one drive lie on both sides and a score on
    the held-back ones is too high; which frame is of which drive only KITTI's development kit says. It is printed.

    Args:
        data: Data set; its validation split is not read.
        share: Of the training images to score on, in (0, 1).
        folder: Where the two annotation files are written.

    Returns:
        Another description of the same images.

    Raises:
        ValueError: Where either part would be empty.
        FileExistsError: Where `folder` holds other parts, which runs may be reading.
    """
    source = Path(data.train['ann_file'])
    folder.mkdir(parents=True, exist_ok=True)
    names = [folder / f'{part}{source.suffix}' for part in ('train_part', 'held_back')]
    counts = (_split_coco if source.suffix == '.json' else _split_kitti)(source, names, share)
    if min(counts) < 1:
        raise ValueError(f'a share of {share} of {sum(counts)} images leaves an empty part')
    train = dict(data.train, ann_file=str(names[0]))
    held = {key: value for key, value in data.train.items() if key != 'filter_cfg'}
    evaluator = dict(data.evaluator)
    if 'ann_file' in evaluator:
        evaluator['ann_file'] = str(names[1])
    metrics = data.metrics
    if set(metrics) & SIZE_METRICS:  # the sizes of what is scored now
        metrics = {key: name for key, name in metrics.items() if key not in SIZE_METRICS} | size_metrics(names[1])
    return replace(
        data,
        name=f'{data.name}{HELD_BACK}',
        train=train,
        val=dict(held, ann_file=str(names[1]), test_mode=True),
        evaluator=evaluator,
        metrics=metrics,
        counts=(trained_images(train), counts[1]),
    )


def _split_coco(source: Path, names: list[Path], share: float) -> tuple[int, int]:
    content = json.loads(source.read_text())
    order = sorted(content['images'], key=lambda image: hashlib.sha256(image['file_name'].encode()).digest())
    held = {image['id'] for image in order[: round(share * len(order))]}
    for name, inside in zip(names, (False, True), strict=True):
        part = dict(
            content,
            images=[image for image in content['images'] if (image['id'] in held) == inside],
            # pycocotools wants to know crowds, which training does without
            annotations=[
                {**box, 'iscrowd': box.get('iscrowd', 0)}
                for box in content['annotations']
                if (box['image_id'] in held) == inside
            ],
        )
        _write(name, json.dumps(part, indent=1))
    return len(order) - len(held), len(held)


def _split_kitti(source: Path, names: list[Path], share: float) -> tuple[int, int]:
    frames = sorted(source.read_text().split())
    kept = len(frames) - round(share * len(frames))
    print('Held-back KITTI frames share drives with the training frames: their score is too high, for all arms alike.')
    for name, part in zip(names, (frames[:kept], frames[kept:]), strict=True):
        _write(name, ''.join(f'{frame}\n' for frame in part))
    return kept, len(frames) - kept


def _write(path: Path, text: str) -> None:
    if not path.exists():
        write_text(path, text)
    elif path.read_text(encoding='utf-8') != text:
        raise FileExistsError(
            f'{path} holds another part of the data, which runs may be reading: choose another --work-dir, or delete '
            f'{path.parent}'
        )

"""A small detection set that can be learnt in minutes: coloured shapes on varied backgrounds, in COCO form.

Scenes differ in background (gradient, blots, stripes), light, noise and number of shapes; shapes differ in size,
angle, colour and border. The colour is a hint, since two thirds of a class have its own hue, but no proof. Some
shapes are cut by the image border, some partly covered. Thin lines belong to no class and are not labelled.
Everything follows from `seed`: train and val are two independent streams of it.

Two mixtures; what they are drawn from is in `MIXTURES`, but a shape that would cover another, or shows too little, is
left out. Counted in the sets of seed 0: `mixed` has 1 to 10 shapes in 192x160 px, 5 in the mean, half of them (51 %)
small by COCO's bound (area up to 32^2 px of the image as it is stored), none large (from 96^2 px); `small` has 7 to 24
in 320x256 px, 14 in the mean, 78 % small and 4 % large: AP by object size means there what it does on COCO.

Boxes are `(x, y, w, h)` in px of the image, tight around the part of the shape that lies inside the image; `area` is
that of the box.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmkd.near_names import nearest

STAMP = 'toy_data.json'  # of a finished set: its arguments
_BEGUN = 'toy_data.begun'
TOY_CLASSES = ('circle', 'square', 'triangle', 'cross')
_CROSS = np.array([(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1)])
_CROSS = np.vstack([_CROSS, [(-1, -1)]]) / 3.0
_SQUARE = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.85


@dataclass(frozen=True)
class ObjectMixture:
    """How many shapes a scene has, and how large they are.

    Args:
        count: Least and most shapes that are tried in an image; one that would cover another is left out.
        small: Share of small shapes.
        small_radius: Range of half a side of a small shape, px.
        size: (width, height) of an image, px.
        large: Share of large shapes among all; the others are in between.
    """

    count: tuple[int, int]
    small: float
    small_radius: tuple[float, float]
    size: tuple[int, int]
    large: float = 0.0

    def radius(self, rng: np.random.Generator, size: tuple[int, int]) -> float:
        """Half a side of the next shape, px, in an image of `size` (width, height) px."""
        kind = rng.random()
        if kind < self.small:
            return rng.uniform(*self.small_radius)
        shorter = min(size)
        if not self.large:
            return rng.uniform(9, max(shorter / 4, 10))
        bounds = (0.22, 0.32) if kind > 1 - self.large else (0.07, 0.15)
        return rng.uniform(*(share * shorter for share in bounds))


MIXTURES = {
    'mixed': ObjectMixture(count=(3, 10), small=0.25, small_radius=(5, 9), size=(192, 160)),
    'small': ObjectMixture(count=(12, 28), small=0.66, small_radius=(4.5, 11), size=(320, 256), large=0.14),
}


def make_toy_data(
    root: str | Path,
    *,
    train: int = 200,
    val: int = 60,
    size: tuple[int, int] | None = None,
    classes: tuple[str, ...] = TOY_CLASSES,
    seed: int = 0,
    objects: str = 'mixed',
) -> Path:
    """Write the data set; the same arguments always give the same pixels and boxes.

    Args:
        root: Folder to write: `annotations/{train,val}.json` and `images/`.
        train: Number of training images.
        val: Number of validation images.
        size: (width, height) of every image, px; None for that of the mixture.
        classes: Names of the categories. The first four are the four shapes; names after them are listed without
            any object, so that the set can stand in for one with more classes.
        seed: Of all that is drawn.
        objects: `mixed` or `small`: how many shapes an image has, and how large they are.

    Returns:
        `root`. A finished folder that was written with the same arguments is left as it is.

    Raises:
        ValueError: For fewer than one image, an image below 32 px, no class or an unknown mixture.
        FileExistsError: Where `root` holds a set with other arguments, or anything else; nothing is written then.
    """
    mixture, root = _mixture(objects), Path(root)
    size = size or mixture.size
    if min(train, val) < 1 or min(size) < 32 or not classes:
        raise ValueError(f'need at least 1 image, 32 px and 1 class, got {train}, {val}, {size}, {classes}')
    arguments = dict(train=train, val=val, size=list(size), classes=list(classes), seed=seed)
    if objects != 'mixed':  # sets of earlier releases have no such entry
        arguments['objects'] = objects
    refuse_other_folder(root)
    stamp = root / STAMP
    if stamp.exists():
        found = json.loads(stamp.read_text())
        if found != arguments:
            raise FileExistsError(f'{root} holds another toy set ({found}); choose another folder')
        return root
    with _begun(root):
        for stream, (split, count) in enumerate((('train', train), ('val', val))):
            rng = np.random.default_rng([seed, stream])
            shapes = min(len(classes), len(TOY_CLASSES))
            _write_split(root, split, classes, (draw_scene(rng, size, shapes, objects) for _ in range(count)))
        stamp.write_text(json.dumps(arguments))
    return root


def refuse_other_folder(root: Path) -> None:
    """Look whether a toy set may be written into a folder; nothing is written.

    Args:
        root: New, empty, or with a toy set, which may be half written.

    Raises:
        FileExistsError: Where it holds something else.
    """
    ours = any((root / name).exists() for name in (STAMP, _BEGUN))
    if not ours and root.exists() and any(root.iterdir()):
        raise FileExistsError(f'{root} holds files of something else; choose another folder')


def copy_toy_data(drawn: Path, root: Path) -> None:
    """Copy a finished set into a folder that `refuse_other_folder` takes.

    Args:
        drawn: Folder of the set.
        root: Folder to write.
    """
    with _begun(root):
        for name in ('images', 'annotations'):
            shutil.copytree(drawn / name, root / name, dirs_exist_ok=True)
        shutil.copy(drawn / STAMP, root / STAMP)


@contextlib.contextmanager
def _begun(root: Path) -> Iterator[None]:
    """Make the folders; a mark says, after an interruption, that what is in them may be written over."""
    root.mkdir(parents=True, exist_ok=True)
    (root / _BEGUN).touch()
    for name in ('images', 'annotations'):
        (root / name).mkdir(exist_ok=True)
    yield
    (root / _BEGUN).unlink(missing_ok=True)


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], shapes: int = 4, objects: str = 'mixed'
) -> tuple[np.ndarray, list[dict]]:
    """One image and its objects.

    Args:
        rng: Source of everything random.
        size: (width, height), px.
        shapes: How many of the four shapes may appear.
        objects: Name of the mixture.

    Returns:
        Image (H, W, 3), uint8; objects as dicts of `label` (index of the shape) and `bbox` (x, y, w, h), px.

    Raises:
        ValueError: For an unknown mixture.
    """
    mixture = _mixture(objects)
    width, height = size
    image = _background(rng, width, height)
    _clutter(rng, image)
    found: list[dict] = []
    for _ in range(int(rng.integers(mixture.count[0], mixture.count[1] + 1))):
        label = int(rng.integers(shapes))
        mask = _shape_mask(rng, label, width, height, mixture.radius(rng, size))
        bbox = _tight_box(mask)
        if bbox is None or any(_covers(bbox, other['bbox']) for other in found):
            continue
        _paint(rng, image, mask, label)
        found.append(dict(label=label, bbox=bbox))
    light = rng.uniform(0.7, 1.1)
    noise = rng.normal(0, rng.uniform(0, 6), image.shape)
    return np.clip(image * light + noise, 0, 255).astype(np.uint8), found


def _mixture(objects: str) -> ObjectMixture:
    if objects not in MIXTURES:
        raise ValueError(
            f'objects must be one of {sorted(MIXTURES)}, got {objects!r}; {nearest(str(objects), MIXTURES)}.'
        )
    return MIXTURES[objects]


def _write_split(
    root: Path, split: str, classes: tuple[str, ...], scenes: Iterable[tuple[np.ndarray, list[dict]]]
) -> None:
    images, annotations = [], []
    for index, (picture, objects) in enumerate(scenes, 1):
        name = f'{split}_{index:05d}.png'
        cv2.imwrite(str(root / 'images' / name), picture)
        images.append(dict(id=index, file_name=name, width=picture.shape[1], height=picture.shape[0]))
        for thing in objects:
            _, _, w, h = thing['bbox']
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index,
                    category_id=thing['label'] + 1,
                    bbox=thing['bbox'],
                    area=w * h,
                    iscrowd=0,
                )
            )
    categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
    content = dict(info={}, licenses=[], images=images, annotations=annotations, categories=categories)
    (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    corners = (rng.uniform(60, 180, (2, 2, 1)) + rng.uniform(-25, 25, (2, 2, 3))).astype(np.float32)
    image = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    coarse = rng.normal(0, rng.uniform(0, 12), (max(height // 16, 2), max(width // 16, 2), 3)).astype(np.float32)
    image = image + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.3:
        wave = np.sin(np.arange(width) * rng.uniform(0.05, 0.5))[None, :, None]
        image = image + rng.uniform(3, 12) * wave
    return np.ascontiguousarray(image, dtype=np.float32)


def _clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, 5))):
        start, end = (tuple(int(v) for v in rng.integers((0, 0), (width, height))) for _ in range(2))
        cv2.line(image, start, end, rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 3)), cv2.LINE_AA)


def _shape_mask(rng: np.random.Generator, label: int, width: int, height: int, radius: float) -> np.ndarray:
    centre = rng.uniform((0, 0), (width, height))
    mask = np.zeros((height, width), np.uint8)
    if label == 0:
        axes = (round(radius), round(radius * rng.uniform(0.8, 1.0)))
        cv2.ellipse(mask, (round(centre[0]), round(centre[1])), axes, rng.uniform(0, 180), 0, 360, 255, -1)
        return mask
    if label == 1:
        corners = _SQUARE
    elif label == 2:
        angles = np.deg2rad([-90, 30, 150])
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 1.1
    else:
        corners = _CROSS
    turn = rng.uniform(-0.35, 0.35)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = corners * (1.0, rng.uniform(0.75, 1.0)) @ rotation.T * radius + centre
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 255)
    return mask


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, label: int) -> None:
    around = image[mask > 0].mean(axis=0)
    colour = _colour(rng, label)
    while np.abs(colour - around).max() < 70:  # a shape that nobody can see cannot be learnt
        colour = _colour(rng, label)
    strength = 0.9 * cv2.GaussianBlur(mask, (3, 3), 0)[..., None] / 255.0
    image[:] = image * (1 - strength) + colour * strength
    if rng.random() < 0.3:
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, contours, -1, rng.uniform(0, 255, 3).tolist(), 1)


def _colour(rng: np.random.Generator, label: int) -> np.ndarray:
    hue = 45 * label + rng.uniform(-14, 14) if rng.random() < 0.67 else rng.uniform(0, 180)  # OpenCV: 180 is a turn
    pixel = np.uint8([[[hue % 180, rng.uniform(130, 255), rng.uniform(100, 255)]]])
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _tight_box(mask: np.ndarray) -> list[float] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) < 5 or len(columns) < 5:  # almost outside the image
        return None
    return [float(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def _covers(new: list[float], old: list[float], limit: float = 0.35) -> bool:
    """Whether the new box hides more than `limit` of the smaller of the two."""
    overlap_w = min(new[0] + new[2], old[0] + old[2]) - max(new[0], old[0])
    overlap_h = min(new[1] + new[3], old[1] + old[3]) - max(new[1], old[1])
    overlap = max(overlap_w, 0) * max(overlap_h, 0)
    return overlap > limit * min(new[2] * new[3], old[2] * old[3])

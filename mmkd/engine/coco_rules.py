"""Faults of annotation files in COCO form, in sentences: what MMDetection or pycocotools would end on, or pass over.

Left alone is what they handle: crowds, ids from 0 or with gaps, annotations of images that are not listed, images
without any, boxes that are left out because a few have no extent. Boxes are (x, y, w, h) in px of the image.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from mmkd.near_names import nearest

KINDS = ('images', 'annotations', 'categories')
# What is read of every entry, whatever becomes of it afterwards, and why where that is not plain.
NEEDED = dict(
    images=dict(id='', file_name='', width=' (px)', height=' (px)'),
    annotations=dict(id='', image_id='', category_id=''),
    categories=dict(id='', name=''),
)
BOX = ' (x, y, width, height in px)'
AREA = ' (px^2; CocoDataset reads it of every box, pycocotools in scoring; width * height of the box will do)'
CROWD = ' (pycocotools reads it in scoring; 0 for a single object)'
MIN_EXTENT = 1  # px of width and height: CocoDataset leaves out smaller boxes
LARGEST = 2**40  # of what is counted in px; no number is not below it, either
SHOWN = 8

Entries = list[dict[str, Any]]


def layout_faults(content: Any) -> list[str]:
    """What keeps a file from being read at all: parts that are not there, entries without what is read of each.

    Args:
        content: of the JSON file.

    Returns:
        A sentence for each rule that is broken: how often, where first, what came. None for a right file.
    """
    return next((found for check in (_layout, _missing_keys, _values) if (found := list(check(content)))), [])


def annotation_faults(
    content: dict[str, Any], classes: Iterable[str] | None = None, *, needs_boxes: bool = True, scored: bool = False
) -> list[str]:
    """What is wrong with the annotations of a detection data set.

    Args:
        content: of a file without `layout_faults`.
        classes: names that the data set reads; None for all categories.
        needs_boxes: a file without any box of these classes is a fault, too.
        scored: pycocotools compares detections with this file.

    Returns:
        Sentences as those of `layout_faults`.
    """
    images, categories = content['images'], content['categories']
    things: Entries = content.get('annotations') or []
    names = {category['name'] for category in categories} if classes is None else set(classes)
    found = [*_repeated(content), *_repeated_names(categories, names), *_strangers(content)]
    if not things:
        return found + [_no_annotations(content)] * needs_boxes
    sizes = {image['id']: (image['width'], image['height']) for image in images}
    wanted = {category['id'] for category in categories if category['name'] in names}
    # those that are parsed at all, by their index in the file
    parsed = {i: t for i, t in enumerate(things) if t['image_id'] in sizes and not t.get('ignore')}
    if parsed:
        found += _boxes(parsed, sizes, wanted, needs_boxes=needs_boxes and bool(wanted) and not found)
        found += _missing(parsed, 'annotations', 'iscrowd', CROWD) if scored else ()
    return found


def _no_annotations(content: dict[str, Any]) -> str:
    if 'annotations' in content:
        return "'annotations' is empty: there is no box to learn from or to score by."
    return f"it has no 'annotations', no box to learn from or to score by; {nearest('annotations', content)}."


def _layout(content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f'it must hold a dictionary of {", ".join(KINDS)}, got a {type(content).__name__}.'
        return
    for kind in KINDS:
        entries = content.get(kind)
        if kind not in content:
            if kind != 'annotations':  # a set of images alone may do without
                yield f'it has no {kind!r}; {nearest(kind, content)}.'
        elif not isinstance(entries, list):
            yield f'{kind!r} must be a list, got a {type(entries).__name__}.'
        else:
            if not entries and kind != 'annotations':
                yield f'it lists no {kind}.'
            yield from _of_types(entries, (dict,), kind, 'must be dictionaries')


def _missing_keys(content: dict[str, Any]) -> Iterator[str]:
    for kind, keys in NEEDED.items():
        for key, why in keys.items():
            yield from _missing(content.get(kind) or [], kind, key, why)


def _column(entries: Iterable[dict], key: str) -> list:
    """A value of every entry; without a loop in Python, which the 860 000 of COCO would feel."""
    return list(map(itemgetter(key), entries))


def _missing(entries: Entries | dict[int, dict], kind: str, key: str, why: str) -> Iterator[str]:
    by_index = entries if isinstance(entries, dict) else None
    try:
        _column(entries if by_index is None else by_index.values(), key)
    except KeyError:
        bad = [(i, entry) for i, entry in (by_index or dict(enumerate(entries))).items() if key not in entry]
        index, entry = bad[0]
        near = nearest(key, [str(name) for name in entry])
        yield f'{kind} need {key!r}{why}; {len(bad)} of {len(entries)} have none, first {kind}[{index}] ({near}).'


def _values(content: dict[str, Any]) -> Iterator[str]:
    """Ids that can be none, names that are no text, sizes that are no numbers."""
    kinds = {kind: content.get(kind) or [] for kind in KINDS}
    for kind, key in (*((k, 'id') for k in KINDS), ('annotations', 'image_id'), ('annotations', 'category_id')):
        yield from _of_types(_column(kinds[kind], key), (int, str, float), f'{kind}.{key}', 'must be a number or text')
    for kind, key in (('images', 'file_name'), ('categories', 'name')):
        yield from _of_types(_column(kinds[kind], key), (str,), f'{kind}.{key}', 'must be text')
    for key in ('width', 'height'):
        values = _column(kinds['images'], key)
        bad = [i for i, value in enumerate(values) if not (_is_number(value) and value > 0)]
        yield from _said(bad, values, f'images.{key}', 'must be a number of px above 0')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _of_types(values: Sequence, types: tuple[type, ...], what: str, rule: str) -> Iterator[str]:
    if not set(map(type, values)) <= set(types):
        yield from _said([i for i, value in enumerate(values) if type(value) not in types], values, what, rule)


def _said(bad: Sequence[int], values: Sequence, what: str, rule: str) -> Iterator[str]:
    """The sentence of a rule that some entries break."""
    if bad:
        kind, _, key = what.partition('.')
        place = f'{kind}[{bad[0]}]{key and "." + key}'
        yield f'{what} {rule}; {len(bad)} of {len(values)} break this, first {place}: {_short(values[bad[0]])}.'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def _repeated(content: dict[str, Any]) -> Iterator[str]:
    """Ids that several entries share: pycocotools keeps the last of them."""
    for kind in KINDS:
        ids = _column(content.get(kind) or (), 'id')
        if len(set(ids)) == len(ids):
            continue
        seen: dict[Any, int] = {}
        bad = [i for i, one in enumerate(ids) if seen.setdefault(one, i) != i]
        first = seen[ids[bad[0]]]
        yield (
            f'{kind}.id must be unique; {len(ids)} {kind} have {len(seen)} ids, {kind}[{first}] and {kind}[{bad[0]}] '
            f'both {_short(ids[first])}: only one of them would be read. Were files joined without renumbering?'
        )


def _repeated_names(categories: Entries, names: set[str]) -> Iterator[str]:
    """MMDetection makes a label of each category that has the name of a class: they would be more than classes."""
    found: dict[str, list] = {}
    for category in categories:
        found.setdefault(category['name'], []).append(category['id'])
    for name, ids in found.items():
        if len(ids) > 1 and name in names:
            yield (
                f'categories.name must be unique; {len(ids)} categories are called {name!r} (ids {_list(ids)}): every '
                'one of them would be a label of its own. Rename or remove what is not the class.'
            )


def _list(values: Sequence) -> str:
    return ', '.join(repr(one) for one in values[:SHOWN]) + (', ...' if len(values) > SHOWN else '')


def _kind(value: Any) -> str:
    return 'text' if isinstance(value, str) else 'a number'


def _strangers(content: dict[str, Any]) -> Iterator[str]:
    """Annotations of categories and images that are not in the file."""
    things: Entries = content.get('annotations') or []
    for key, kind in (('category_id', 'categories'), ('image_id', 'images')):
        known = {entry['id']: None for entry in content[kind]}
        values = _column(things, key)
        if known.keys() >= set(values):
            continue
        bad = [i for i, value in enumerate(values) if value not in known]
        words = {str(one): one for one in known}
        other = next((values[i] for i in bad if str(values[i]) in words), None)
        # images may well have been taken out of a file without their annotations
        if key == 'image_id' and other is None and len(bad) < len(values):
            continue
        first = values[bad[0]] if other is None else other
        index = values.index(first)
        yield (
            f'annotations.{key} must be an id of {kind!r} ({_list(list(known))}); {len(bad)} of {len(values)} are '
            f'none, first annotations[{index}].{key}: {_short(first)}'
            + (f', which is {_kind(other)}, the id there {_kind(words[str(other)])}.' if other is not None else '.')
        )


def _boxes(parsed: dict[int, dict], sizes: Mapping[Any, tuple], wanted: set, *, needs_boxes: bool) -> Iterator[str]:
    """Boxes and areas of the annotations that are read: a few without extent are left out, but not all may be.

    Args:
        parsed: annotations by their index in the file.
        sizes: (width, height) px of every image.
        wanted: ids of the categories that are classes.
        needs_boxes: none of these categories is a fault.
    """
    wrong = [*_missing(parsed, 'annotations', 'bbox', BOX), *_missing(parsed, 'annotations', 'area', AREA)]
    if not wrong:
        wrong += _not_numbers(parsed, 'bbox', 4, 'must be four numbers: x, y, width, height in px')
        wrong += _not_numbers(parsed, 'area', 0, 'must be a number of px^2')
    own = [index for index, thing in parsed.items() if thing['category_id'] in wanted]
    if not wrong and not own and needs_boxes:
        wrong.append(f'none of its {len(parsed)} annotations of listed images is of the classes of the data set.')
    yield from wrong
    if wrong or not own:
        return
    things = [parsed[index] for index in own]
    box = np.fromiter(chain.from_iterable(_column(things, 'bbox')), float).reshape(-1, 4)
    area = np.fromiter(_column(things, 'area'), float)
    frame = np.fromiter(chain.from_iterable(map(sizes.__getitem__, _column(things, 'image_id'))), float).reshape(-1, 2)
    inside = np.minimum(box[:, :2] + box[:, 2:], frame) - np.maximum(box[:, :2], 0)
    used = (box[:, 2:] >= MIN_EXTENT).all(1) & (inside > 0).all(1) & (area > 0)
    if not used.any():
        share = ' Are they shares of the image? COCO counts px.' if (np.abs(box) <= 1).all() and box.any() else ''
        yield (
            f'none of its {len(own)} boxes can be used: width and height must be at least {MIN_EXTENT} px, the area '
            f'above 0, and a part inside the image; first annotations[{own[0]}]: bbox {things[0]["bbox"]}, area '
            f'{things[0]["area"]}.{share}'
        )


def _not_numbers(parsed: dict[int, dict], key: str, count: int, rule: str) -> Iterator[str]:
    """Values that are not `count` finite numbers each (0: one number by itself)."""
    values = _column(parsed.values(), key)
    if not count or (set(map(type, values)) == {list} and set(map(len, values)) == {count}):
        numbers = list(chain.from_iterable(values)) if count else values
        if set(map(type, numbers)) <= {int, float} and _all_counted(numbers):
            return
    for index, value in zip(parsed, values, strict=True):
        parts = value if count else [value]
        if not isinstance(parts, list) or len(parts) != (count or 1) or not all(map(_is_number, parts)):
            yield f'annotations.{key} {rule}; the first that is not: annotations[{index}]: {_short(value)}.'
            return


def _all_counted(numbers: list[float]) -> bool:
    try:
        return bool((np.abs(np.array(numbers, float)) < LARGEST).all())
    except OverflowError:  # a whole number beyond any float
        return False


def missing_images(folder: Path, files: Sequence[str]) -> list[str]:
    """Images that are not in their folder, which is listed once: names are compared, no file is opened.

    Args:
        folder: that of the data set.
        files: paths in it.

    Returns:
        Those of `files` that are not there.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for file in files:
        inner, name = os.path.split(file)
        if inner not in listed:
            try:
                listed[inner] = set(os.listdir(folder / inner))
            except OSError:
                listed[inner] = set()
        if name not in listed[inner]:
            missing.append(file)
    if missing and (folder / missing[0]).is_file():  # a file system that knows a name in several spellings
        return [file for file in missing if not (folder / file).is_file()]
    return missing

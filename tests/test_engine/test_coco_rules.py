"""Faults of users' own COCO files: each is one sentence before training, and what MMDetection handles is none."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmkd.engine import coco_rules
from mmkd.engine.coco_rules import annotation_faults, layout_faults, missing_images
from mmkd.engine.preflight_data import check_data
from mmkd.testing.detection_data import detection_data
from mmkd.testing.toy_data import make_toy_data


def right(images: int = 8) -> dict:
    """Two boxes of each of two classes an image; ids with gaps."""
    return dict(
        images=[dict(id=3 * i, file_name=f'{i}.jpg', width=60, height=40) for i in range(images)],
        categories=[dict(id=0, name='car'), dict(id=7, name='van')],
        annotations=[
            dict(id=i, image_id=3 * (i // 2), category_id=7 * (i % 2), bbox=[5, 5, 20.5, 9], area=184.5, iscrowd=0)
            for i in range(2 * images)
        ],
    )


def faults(change: Callable[[dict], object], **rules: bool) -> list[str]:
    content = right()
    change(content)
    content = json.loads(json.dumps(content))
    return layout_faults(content) or annotation_faults(content, ('car', 'van'), scored=True, **rules)


def every(kind: str, **values: object) -> Callable[[dict], object]:
    return lambda content: [entry.update(copy.deepcopy(values)) for entry in content[kind]]


def without(kind: str, key: str, first: int = 0) -> Callable[[dict], object]:
    return lambda content: [entry.pop(key) for entry in content[kind][first:]]


def ids_from_one(content: dict) -> None:
    """Categories are numbered from 0, annotations from 1."""
    content['categories'][1]['id'] = 1
    for thing in content['annotations']:
        thing['category_id'] = thing['category_id'] // 7 + 1


FAULTS = {
    'no annotations': (lambda c: c.pop('annotations'), ("it has no 'annotations'", 'there are: categories, images')),
    'misspelt annotations': (lambda c: c.update(annotation=c.pop('annotations')), ('nearest: annotation',)),
    'empty annotations': (lambda c: c['annotations'].clear(), ("'annotations' is empty",)),
    'foreign category': (
        ids_from_one,
        ("annotations.category_id must be an id of 'categories' (0, 1)", '8 of 16', 'annotations[1].category_id: 2'),
    ),
    'category as text': (
        every('annotations', category_id='7'),
        ("annotations[0].category_id: '7', which is text",),
    ),
    'image as text': (
        lambda c: c['annotations'][3].update(image_id='3'),
        ('1 of 16', "annotations[3].image_id: '3', which is text, the id there a number"),
    ),
    'unknown images': (every('annotations', image_id=4711), ('annotations.image_id must be an id', '16 of 16', '4711')),
    'no area': (
        without('annotations', 'area', 1),
        ("annotations need 'area' (px^2; CocoD", '15 of 16', 's[1] (the'),
    ),
    'no bbox': (without('annotations', 'bbox'), ("annotations need 'bbox' (x, y, width, height in px); 16 of 16",)),
    'bbox of another name': (
        lambda c: [thing.update(bndbox=thing.pop('bbox')) for thing in c['annotations']],
        ("annotations need 'bbox'", 'nearest: bndbox'),
    ),
    'no iscrowd to score by': (without('annotations', 'iscrowd'), ("annotations need 'iscrowd' (pycocotools",)),
    'no width': (without('images', 'width', 2), ("images need 'width' (px); 6 of 8 have none, first images[2]",)),
    'height of null': (every('images', height=None), ('images.height must be a number of px above 0; 8 of 8', 'None')),
    'annotation ids': (
        lambda c: c['annotations'][5].update(id=2),
        ('annotations.id must be unique; 16 annotations have 15 ids, annotations[2] and annotations[5] both 2',),
    ),
    'image ids': (
        every('images', id=0),
        ('images.id must be unique; 8 images have 1 ids', 'joined without renumbering?'),
    ),
    'class names': (every('categories', name='car'), ("2 categories are called 'car' (ids 0, 7)",)),
    'no extent': (
        every('annotations', bbox=[5, 5, 0, 9]),
        ('none of its 16 boxes can be used', 'annotations[0]: bbox [5, 5, 0, 9]'),
    ),
    'shares': (every('annotations', bbox=[0.5, 0.5, 0.2, 0.1]), ('Are they shares of the image? COCO counts px.',)),
    'corners too many': (
        lambda c: c['annotations'][9].update(bbox=[1, 2, 3, 4, 5]),
        ('annotations.bbox must be four numbers', 'annotations[9]: [1, 2, 3, 4, 5]'),
    ),
    'no number': (
        lambda c: c['annotations'][9].update(bbox=[1, 2, float('nan'), 4]),
        ('annotations.bbox must be four numbers', 'annotations[9]: [1, 2, nan, 4]'),
    ),
    'number beyond floats': (lambda c: c['annotations'][1].update(area=10**400), ('annotations.area must be a num',)),
    'area as text': (
        every('annotations', area='12'),
        ('annotations.area must be a number of px^2', "annotations[0]: '12'"),
    ),
    'a list': (lambda c: c.update(images=dict(a=1)), ("'images' must be a list, got a dict",)),
    'lists in lists': (
        lambda c: c['annotations'].insert(1, [1]),
        ('must be dictionaries', 'annotations[1]'),
    ),
    'id that is none': (
        lambda c: c['images'][2].update(id=[1]),
        ('images.id must be a number', 'images[2].id'),
    ),
    'no categories': (lambda c: c['categories'].clear(), ('it lists no categories',)),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_one_sentence(name: str) -> None:
    change, parts = FAULTS[name]
    (said,) = faults(change)
    for part in parts:
        assert part in said
    assert '\n' not in said and len(said) < 300


def crowd(content: dict) -> None:
    content['annotations'][0].update(iscrowd=1, segmentation=dict(counts=[0, 1], size=[40, 60]))


HANDLED = {
    'nothing': lambda c: None,
    'crowds': crowd,
    'annotations of images that are not listed': lambda c: c['images'].pop(),
    'images without annotations': lambda c: c['annotations'].__delitem__(slice(4, None)),
    'a few boxes without extent': lambda c: c['annotations'][3].update(bbox=[5, 5, 0, 9]),
    'ids as text': lambda c: [
        *(image.update(id=str(image['id'])) for image in c['images']),
        *(thing.update(image_id=str(thing['image_id'])) for thing in c['annotations']),
    ],
    'ignored ones without box': lambda c: [c['annotations'][2].update(ignore=1), c['annotations'][2].pop('bbox')],
    'a category that is no class': lambda c: [
        c['categories'].append(dict(id=9, name='bus')),
        c['annotations'][2].update(category_id=9),
    ],
}


@pytest.mark.parametrize('name', HANDLED)
def test_what_mmdetection_handles_is_no_fault(name: str, tmp_path: Path) -> None:
    content = right()
    HANDLED[name](content)
    assert faults(HANDLED[name]) == []
    (tmp_path / 'a.json').write_text(json.dumps(content))
    classes = dict(metainfo=dict(classes=('car', 'van')), filter_cfg=dict(filter_empty_gt=True), pipeline=[])
    data = DATASETS.build(
        dict(type='CocoDataset', ann_file=str(tmp_path / 'a.json'), data_prefix=dict(img=''), **classes)
    )
    assert len(data) > 0 and sum(len(data.get_data_info(i)['instances']) for i in range(len(data))) > 0


def test_a_set_of_images_alone_may_be_one_of_several() -> None:
    assert faults(lambda c: c.pop('annotations'), needs_boxes=False) == []
    assert faults(lambda c: [c.update(annotations=[])], needs_boxes=False) == []


# ---- in the preflight -----------------------------------------------------------------------------------------------


def said(folder: Path, content: dict, loader: str = 'train_dataloader', **more: object) -> str:
    (folder / 'a.json').write_text(json.dumps(content))
    evaluator = more.pop('evaluator', dict(type='CocoMetric', ann_file=str(folder / 'a.json')))
    dataset = dict(type='CocoDataset', ann_file='a.json', data_root=str(folder), **more)
    dataset |= dict(metainfo=dict(classes=('car', 'van')), data_prefix=dict(img='images'))
    return '\n'.join(check_data(Config({loader: dict(dataset=dataset), 'val_evaluator': evaluator})))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'images' / 'more').mkdir(parents=True)
    for image in right()['images']:
        (tmp_path / 'images' / image['file_name']).touch()
    return tmp_path


def test_faults_are_found_before_training_with_the_name_of_the_file(folder: Path) -> None:
    content = right()
    assert said(folder, content) == said(folder, content, 'val_dataloader') == ''
    without('annotations', 'iscrowd')(content)
    assert said(folder, content) == '', 'training does without'
    assert said(folder, content, 'val_dataloader', evaluator=dict(type='CocoMetric')) == '', 'the metric makes its own'
    assert f"val_dataloader: {folder}/a.json: annotations need 'iscrowd'" in said(folder, content, 'val_dataloader')
    every('images', id=0)(content)
    assert f'train_dataloader: {folder}/a.json: images.id must be unique' in said(folder, content)


def test_images_alone_are_no_fault_where_nothing_is_scored(folder: Path) -> None:
    content = dict(right(), annotations=[])
    assert 'no box to learn from' in said(folder, content, 'val_dataloader')
    for_a_server = dict(type='CocoMetric', format_only=True, outfile_prefix='x')
    assert said(folder, content, 'val_dataloader', evaluator=for_a_server) == ''


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_a_missing_image_is_found_wherever_it_stands(folder: Path, loader: str) -> None:
    content = right()
    content['images'][6]['file_name'] = 'more/6.jpg'
    assert f'{loader}: 1 of 8 images of a.json are not in {folder}/images, first more/6.jpg.' in said(
        folder, content, loader
    )
    (folder / 'images/more/6.jpg').touch()
    assert said(folder, content, loader) == ''


def test_images_that_are_never_read_need_not_be_there(folder: Path) -> None:
    content = right()
    (folder / 'images/7.jpg').unlink()
    content['annotations'] = content['annotations'][:-2]
    assert said(folder, content, filter_cfg=dict(filter_empty_gt=True)) == ''
    assert 'first 7.jpg' in said(folder, content)
    assert said(folder, content, indices=4) == ''


def test_no_image_at_all_is_a_wrong_folder(folder: Path) -> None:
    content = right()
    for image in content['images']:
        image['file_name'] = f'other/{image["file_name"]}'
    text = said(folder, content)
    assert 'other/0.jpg does not exist, nor any other of the 8 images' in text and 'data_prefix.img' in text


def test_a_folder_is_listed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    whole = coco_rules.os.listdir
    monkeypatch.setattr(coco_rules.os, 'listdir', lambda path: listed.append(path) or whole(path))
    files = [image['file_name'] for image in right()['images']]
    assert missing_images(folder / 'images', [*files, 'more/x.jpg', 'more/y.jpg']) == ['more/x.jpg', 'more/y.jpg']
    assert len(listed) == 2


# ---- in experiments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'parts'),
    [
        (lambda c: c.pop('annotations'), ("it has no 'annotations'",)),
        (without('images', 'width'), ("images need 'width'",)),
        (every('images', id=0), ('images.id must be unique',)),
        (lambda c: c.pop('categories'), ("it has no 'categories'",)),
    ],
)
@pytest.mark.parametrize('split', ['train', 'val'])
def test_an_experiment_names_the_file_and_its_fault(split: str, change: Callable, parts: tuple, tmp_path: Path) -> None:
    root = make_toy_data(tmp_path / 'toy', train=2, val=2, size=(64, 48))
    file = root / 'annotations' / f'{split}.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'{split}.json: ') as error:
        detection_data(root)
    assert all(part in str(error.value) for part in parts)


def test_an_experiment_names_a_broken_file_and_missing_images(tmp_path: Path) -> None:
    root = make_toy_data(tmp_path / 'toy', train=3, val=2, size=(64, 48))
    (root / 'images/train_00003.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 images of .*train\.json are not in .*, first train_00003\.png'):
        detection_data(root)
    (root / 'annotations/train.json').write_text('{"images": [')
    with pytest.raises(ValueError, match=r'train\.json is no JSON file'):
        detection_data(root)

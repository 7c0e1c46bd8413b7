import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS
from mmdet.utils import register_all_modules
from mmengine.registry import init_default_scope

from mmkd.testing.detection_data import detection_data
from mmkd.testing.experiment import _annotations
from mmkd.testing.hold_back import hold_back
from mmkd.testing.toy_data import TOY_CLASSES, make_toy_data
from mmkd.testing.toy_kitti import make_toy_kitti


@pytest.fixture
def toy(tmp_path):
    return make_toy_data(tmp_path / 'toy', train=3, val=2, size=(64, 48))


def test_finds_classes_counts_and_files_of_a_coco_folder(toy):
    data = detection_data(toy)
    assert data.classes == TOY_CLASSES
    assert data.counts == (3, 2)
    assert data.train['ann_file'].endswith('train.json')
    assert data.val['ann_file'] == data.evaluator['ann_file']
    assert data.val['test_mode'] is True


def test_finds_cocos_own_names(toy):
    for split in ('train', 'val'):
        (toy / 'annotations' / f'{split}.json').rename(toy / 'annotations' / f'instances_{split}2017.json')
        (toy / f'{split}2017').mkdir()
        for image in (toy / 'images').glob(f'{split}_*'):
            image.rename(toy / f'{split}2017' / image.name)
    data = detection_data(toy)
    assert data.train['data_prefix']['img'].endswith('train2017/')


def reverse_categories(toy: Path, split: str) -> dict:
    """Turn the list of categories of a split around; the ids stay with their names."""
    file = toy / 'annotations' / f'{split}.json'
    content = json.loads(file.read_text())
    content['categories'].reverse()
    file.write_text(json.dumps(content))
    return content


def test_classes_are_named_as_the_labels_are_numbered(toy):
    content = reverse_categories(toy, 'train')
    reverse_categories(toy, 'val')
    data = detection_data(toy)
    names = {category['id']: category['name'] for category in content['categories']}
    init_default_scope('mmdet')
    register_all_modules()
    dataset = DATASETS.build(dict(data.train, pipeline=[]))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        things = [one for one in content['annotations'] if one['image_id'] == info['img_id']]
        found = [data.classes[instance['bbox_label']] for instance in info['instances']]
        assert found == [names[thing['category_id']] for thing in things]


def test_refuses_splits_that_list_the_classes_in_another_order(toy):
    reverse_categories(toy, 'val')
    with pytest.raises(ValueError, match='train has classes'):
        detection_data(toy)


def test_names_the_files_it_looked_for(toy):
    (toy / 'annotations' / 'val.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'no val annotations.*instances_val2017\.json'):
        detection_data(toy)


def test_names_the_folders_it_looked_for_images_in(toy):
    for image in (toy / 'images').glob('train_*'):
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r'no train_00001\.png: looked in'):
        detection_data(toy)


def test_refuses_splits_with_other_classes(toy):
    file = toy / 'annotations' / 'val.json'
    content = json.loads(file.read_text())
    content['categories'][0]['name'] = 'disc'
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='train has classes'):
        detection_data(toy)


def test_ap_by_size_is_asked_for_the_sizes_that_are_there(toy, tmp_path):
    plain = {'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50'}
    assert detection_data(toy).metrics == plain
    assert detection_data(toy, by_size=True).metrics == plain | {'coco/bbox_mAP_s': 'AP_small'}
    many = make_toy_data(tmp_path / 'many', train=1, val=12, objects='small')
    sizes = {'coco/bbox_mAP_s': 'AP_small', 'coco/bbox_mAP_m': 'AP_medium', 'coco/bbox_mAP_l': 'AP_large'}
    assert detection_data(many, by_size=True).metrics == plain | sizes


def test_size_names_are_those_of_cocos_evaluation(tmp_path):
    """A detector that finds exactly the small objects scores 1 on small and 0 on the others."""
    root = make_toy_data(tmp_path / 'many', train=1, val=12, objects='small')
    register_all_modules(init_default_scope=True)
    data = detection_data(root, by_size=True)
    dataset = DATASETS.build(dict(data.val, pipeline=[]))
    metric = METRICS.build(data.evaluator)
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        small = [box for box in info['instances'] if np.prod(np.subtract(box['bbox'][2:], box['bbox'][:2])) <= 32**2]
        found = dict(
            bboxes=torch.tensor([box['bbox'] for box in small]).reshape(-1, 4),
            labels=torch.tensor([box['bbox_label'] for box in small], dtype=torch.long),
            scores=torch.ones(len(small)),
        )
        shape = (info['height'], info['width'])
        metric.process({}, [dict(pred_instances=found, img_id=info['img_id'], ori_shape=shape)])
    scores = metric.evaluate(len(dataset))
    named = {name: scores[key] for key, name in data.metrics.items()}
    assert named['AP_small'] == pytest.approx(1.0)
    assert named['AP_medium'] == named['AP_large'] == 0


def test_refuses_a_missing_folder_and_an_unknown_format(toy):
    with pytest.raises(FileNotFoundError, match='no data folder'):
        detection_data(toy / 'nowhere')
    with pytest.raises(ValueError, match="must be 'coco' or 'kitti'"):
        detection_data(toy, 'voc')
    with pytest.raises(ValueError, match='KITTI has difficulties'):
        detection_data(toy, 'kitti', by_size=True)


def test_images_without_an_object_are_not_counted_as_trained_on(tmp_path):
    root = make_toy_data(tmp_path / 'toy', train=4, val=2)
    file = root / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    content['annotations'] = [box for box in content['annotations'] if box['image_id'] != 2]
    file.write_text(json.dumps(content))
    data = detection_data(root)
    assert data.counts == (3, 2)
    init_default_scope('mmdet')
    assert len(DATASETS.build(dict(data.train, pipeline=[]))) == 3
    part = hold_back(data, 0.5, tmp_path / 'parts')
    assert part.counts[0] == len(DATASETS.build(dict(part.train, pipeline=[])))


def test_frames_without_an_object_that_counts_are_not_counted_as_trained_on(tmp_path):
    root = make_toy_kitti(tmp_path / 'kitti', train=3)
    label = root / 'training' / 'label_2' / '000001.txt'
    label.write_text(''.join(line.replace('Car ', 'Van ') for line in label.open() if line[:4] in ('Car ', 'Dont')))
    data = detection_data(root, 'kitti')
    init_default_scope('mmdet')
    assert data.counts == (2, 1)
    assert len(DATASETS.build(dict(data.train, pipeline=[], cache_dir=str(tmp_path)))) == 2


def test_an_experiment_knows_its_annotations_with_kitti_the_labels_of_its_frames(tmp_path):
    """A split file names frames only: other labels would be another experiment of the same name."""
    data = detection_data(make_toy_kitti(tmp_path / 'kitti'), 'kitti')
    split, *labels = _annotations(data.train)
    assert split == Path(data.train['ann_file'])
    assert [label.stem for label in labels] == split.read_text().split() and all(label.is_file() for label in labels)
    coco = detection_data(make_toy_data(tmp_path / 'coco', train=2, val=2))
    assert _annotations(coco.train) == [Path(coco.train['ann_file'])]

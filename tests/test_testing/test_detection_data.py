import json

import pytest

from mmkd.testing.detection_data import detection_data
from mmkd.testing.toy_data import TOY_CLASSES, make_toy_data


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


def test_classes_follow_the_category_ids(toy):
    for split in ('train', 'val'):
        file = toy / 'annotations' / f'{split}.json'
        content = json.loads(file.read_text())
        content['categories'].reverse()
        file.write_text(json.dumps(content))
    assert detection_data(toy).classes == TOY_CLASSES


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


def test_refuses_a_missing_folder_and_an_unknown_format(toy):
    with pytest.raises(FileNotFoundError, match='no data folder'):
        detection_data(toy / 'nowhere')
    with pytest.raises(ValueError, match="must be 'coco' or 'kitti'"):
        detection_data(toy, 'voc')

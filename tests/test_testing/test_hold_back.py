import json
from pathlib import Path

import pytest

from mmkd.testing.detection_data import detection_data
from mmkd.testing.hold_back import hold_back
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_kitti import make_toy_kitti


def files(annotation):
    return {image['file_name'] for image in json.loads(Path(annotation).read_text())['images']}


def test_the_parts_make_up_the_training_split_and_the_validation_split_is_not_read(tmp_path):
    data = detection_data(make_toy_data(tmp_path / 'toy', train=12, val=4))
    whole, val = files(data.train['ann_file']), files(data.val['ann_file'])
    Path(data.val['ann_file']).unlink()
    part = hold_back(data, 0.25, tmp_path / 'parts')
    trained, scored = files(part.train['ann_file']), files(part.val['ann_file'])
    assert (len(trained), len(scored)) == part.counts == (9, 3)
    assert trained | scored == whole and not trained & scored and not scored & val
    assert part.evaluator['ann_file'] == part.val['ann_file']
    boxes = json.loads(Path(part.val['ann_file']).read_text())
    assert {box['image_id'] for box in boxes['annotations']} <= {image['id'] for image in boxes['images']}


def test_the_same_images_are_held_back_each_time(tmp_path):
    data = detection_data(make_toy_data(tmp_path / 'toy', train=12, val=4))
    one, two = (hold_back(data, 0.5, tmp_path / name) for name in 'ab')
    assert files(one.val['ann_file']) == files(two.val['ann_file'])


def test_kitti_holds_back_its_last_frames(tmp_path, capsys):
    data = detection_data(make_toy_kitti(tmp_path / 'kitti'), 'kitti')
    frames = Path(data.train['ann_file']).read_text().split()
    part = hold_back(data, 0.5, tmp_path / 'parts')
    assert Path(part.val['ann_file']).read_text().split() == frames[part.counts[0] :]
    assert 'share drives with the training frames' in capsys.readouterr().out


def test_refuses_an_empty_part(tmp_path):
    data = detection_data(make_toy_data(tmp_path / 'toy', train=4, val=2))
    with pytest.raises(ValueError, match='leaves an empty part'):
        hold_back(data, 0.01, tmp_path / 'parts')


@pytest.mark.parametrize('layout', ['coco', 'kitti'])
def test_parts_of_another_call_are_not_replaced(tmp_path, layout):
    root = (make_toy_data if layout == 'coco' else make_toy_kitti)(tmp_path / 'toy', train=8, val=2)
    data = detection_data(root, layout)
    part = hold_back(data, 0.25, tmp_path / 'parts')
    before = Path(part.train['ann_file']).read_bytes()
    with pytest.raises(FileExistsError, match='another part of the data'):
        hold_back(data, 0.5, tmp_path / 'parts')
    assert Path(part.train['ann_file']).read_bytes() == before
    assert hold_back(data, 0.25, tmp_path / 'parts') == part


def test_sizes_are_those_of_the_images_that_are_held_back(tmp_path):
    root = make_toy_data(tmp_path / 'toy', train=6, val=2, objects='small')
    file = root / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    content['annotations'] = [dict(box, area=100) for box in content['annotations']]
    file.write_text(json.dumps(content))
    data = detection_data(root, by_size=True)
    assert 'AP_medium' in data.metrics.values()
    assert list(hold_back(data, 0.5, tmp_path / 'parts').metrics.values()) == ['AP', 'AP50', 'AP_small']


def test_training_annotations_without_crowds_can_be_scored_on(tmp_path):
    data = detection_data(make_toy_data(tmp_path / 'toy', train=4, val=2))
    source = Path(data.train['ann_file'])
    content = json.loads(source.read_text())
    kept = content['annotations'][0]['iscrowd'] = 1
    for box in content['annotations'][1:]:
        del box['iscrowd']  # MMDetection reads such a file, pycocotools' scoring does not
    source.write_text(json.dumps(content))
    part = hold_back(data, 0.5, tmp_path / 'parts')
    boxes = [
        box for ann in (part.train, part.val) for box in json.loads(Path(ann['ann_file']).read_text())['annotations']
    ]
    assert sorted(box['iscrowd'] for box in boxes) == [0] * (len(boxes) - 1) + [kept]

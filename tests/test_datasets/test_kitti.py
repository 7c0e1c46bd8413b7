"""`KittiDataset` on made folders and on 75 real frames."""

import builtins
import gc
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmdet.visualization.palette import get_palette
from mmengine.registry import DATASETS
from PIL import Image, ImageFile

from mmkd.datasets.kitti import KittiDataset
from mmkd.datasets.kitti_coco import kitti_to_coco
from mmkd.evaluation.kitti_objects import TYPES
from mmkd.testing.toy_kitti import make_toy_kitti

REST = '1 2 3 4 5 6 0.1'
LINES = {
    'Car': f'Car 0 0 -1.57 10 20 60 50 {REST}',
    'Van': f'Van 0 0 -1.57 70 20 90 50 {REST}',
    'Person_sitting': f'Person_sitting 0 0 -1.57 1 2 30 40 {REST}',
    'Truck': f'Truck 0 0 -1.57 5 5 30 40 {REST}',
    'DontCare': 'DontCare -1 -1 -10 80 5 99 20 -1 -1 -1 -1000 -1000 -1000 -10',
}


@pytest.fixture
def root(tmp_path):
    """Six frames of 100x60 px; 0 has everything, 1 is empty, 2 only ignored things, 3-5 a car; suffixes vary."""
    content = [list(LINES.values()), [], [LINES['Van'], LINES['DontCare']], *[[LINES['Car']]] * 3]
    for folder in ('training/image_2', 'training/label_2', 'testing/image_2', 'ImageSets'):
        (tmp_path / folder).mkdir(parents=True)
    for index, lines in enumerate(content):
        suffix = ('.png', '.jpg', '.jpeg')[index % 3]
        Image.new('RGB', (100, 60)).save(tmp_path / 'training/image_2' / f'{index:06d}{suffix}')
        (tmp_path / 'training/label_2' / f'{index:06d}.txt').write_text('\n'.join(lines))
    Image.new('RGB', (100, 60)).save(tmp_path / 'testing/image_2/000000.png')
    (tmp_path / 'ImageSets/train.txt').write_text('000000\n000001\n000002\n000003\n')
    (tmp_path / 'ImageSets/val.txt').write_text('000005\n000004\n')
    (tmp_path / 'ImageSets/test.txt').write_text('000000\n')
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMKD_CACHE', str(tmp_path / 'cache'))


def make(root, ann_file='ImageSets/train.txt', **options):
    return KittiDataset(ann_file, data_root=str(root), **options)


def roles(dataset, index=0):
    """(type, label, ignored) of each instance of a frame."""
    instances = dataset.get_data_info(index)['instances']
    return [(item['kitti_type'], item['bbox_label'], item['ignore_flag']) for item in instances]


def test_reads_frames_sizes_and_boxes(root):
    dataset = make(root)
    info = dataset.get_data_info(0)
    assert (info['width'], info['height'], info['img_id']) == (100, 60, 0)
    assert info['img_path'].endswith('training/image_2/000000.png')
    assert info['instances'][0]['bbox'] == [10, 20, 60, 50]
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == [0, 1, 2, 3]
    assert dataset.metainfo['classes'] == ('Car', 'Pedestrian', 'Cyclist')


def test_split_order_is_kept(root):
    dataset = make(root, 'ImageSets/val.txt')
    assert [dataset.get_data_info(i)['img_id'] for i in range(2)] == [5, 4]


def test_neighbours_and_dont_care_are_ignored_by_default(root):
    assert roles(make(root)) == [('Car', 0, 0), ('Van', 0, 1), ('Person_sitting', 1, 1), ('DontCare', 0, 1)]


def test_neighbours_can_be_merged_or_dropped(root):
    merged = roles(make(root, neighbours='merge', dont_care='drop'))
    assert merged == [('Car', 0, 0), ('Van', 0, 0), ('Person_sitting', 1, 0)]
    assert roles(make(root, neighbours='drop', dont_care='drop')) == [('Car', 0, 0)]


def test_chosen_classes_make_neighbours_instances_of_their_own(root):
    dataset = make(root, metainfo={'classes': ('Van', 'Car')})
    assert roles(dataset) == [('Car', 1, 0), ('Van', 0, 0), ('DontCare', 0, 1)]
    only_cyclists = make(root, metainfo={'classes': ('Cyclist',)}, dont_care='drop')
    assert roles(only_cyclists) == []


def test_every_choice_of_classes_can_be_drawn(root):
    """MMDetection's drawing refuses fewer colours than classes; a type has the same one in every choice."""
    whole = make(root, metainfo={'classes': [name for name in TYPES if name != 'DontCare']}).metainfo
    assert len(get_palette(whole['palette'], len(whole['classes']))) == len(set(whole['palette'])) == 8
    colour = dict(zip(whole['classes'], whole['palette'], strict=True))
    for classes in (['Cyclist'], ['Van', 'Car'], ['car', 'pedestrian', 'cyclist', 'tram']):
        found = make(root, metainfo={'classes': classes}).metainfo['palette']
        assert found == [colour[name.capitalize()] for name in classes]
    own = [(1, 2, 3)] * 2
    assert make(root, metainfo={'classes': ('Van', 'Car'), 'palette': own}).metainfo['palette'] == own
    assert make(root).metainfo['palette'] == [colour[name] for name in ('Car', 'Pedestrian', 'Cyclist')]


def test_filter_leaves_out_frames_without_an_instance_to_learn(root):
    dataset = make(root, filter_cfg={'filter_empty_gt': True})
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == [0, 3]
    assert len(make(root, filter_cfg={'filter_empty_gt': True}, test_mode=True)) == 4
    assert len(make(root, filter_cfg={'min_size': 60})) == 4
    with pytest.raises(ValueError, match='leaves none of 4 frames'):
        make(root, filter_cfg={'min_size': 61})
    with pytest.raises(ValueError, match=r"filter_cfg knows .* got \['min_gt'\]"):
        make(root, filter_cfg={'min_gt': 1})


def test_indices_joined_splits_and_wrappers_work_as_in_mmdetection(root):
    assert len(make(root, indices=2)) == 2
    assert make(root, indices=[3]).get_data_info(0)['img_id'] == 3
    assert len(make(root, ['ImageSets/train.txt', 'ImageSets/val.txt'])) == 6
    part = {'type': 'mmkd.KittiDataset', 'data_root': str(root)}
    parts = [{**part, 'ann_file': f'ImageSets/{split}.txt'} for split in ('train', 'val')]
    joined = DATASETS.build({'type': 'ConcatDataset', 'datasets': parts})
    assert len(joined) == 6
    assert joined.metainfo['label_dir'] == str(root / 'training/label_2')
    assert len(DATASETS.build({'type': 'RepeatDataset', 'dataset': parts[0], 'times': 2})) == 8


def test_all_frames_of_the_folder_without_a_split(root):
    assert len(make(root, '')) == 6
    (root / 'training/label_2/000009.txt').write_text('')
    with pytest.raises(FileNotFoundError, match=r'1 label files in .* have no image, first 000009\.txt'):
        make(root, '')


def test_testing_part_has_no_labels_and_needs_test_mode(root):
    options = {'ann_file': 'ImageSets/test.txt', 'data_prefix': {'img': 'testing/image_2'}}
    dataset = make(root, test_mode=True, **options)
    assert dataset.get_data_info(0)['instances'] == []
    assert dataset.metainfo['label_dir'] == ''
    with pytest.raises(ValueError, match='training needs labels'):
        make(root, **options)


def test_pipeline_hands_ignored_instances_to_the_detector(root):
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations', 'with_bbox': True},
        {'type': 'Resize', 'scale': (200, 120), 'keep_ratio': True},
        {'type': 'PackDetInputs'},
    ]
    packed = make(root, pipeline=pipeline)[0]
    assert packed['inputs'].shape == (3, 120, 200)
    assert packed['data_samples'].gt_instances.bboxes.tensor.tolist() == [[20, 40, 120, 100]]
    assert len(packed['data_samples'].ignored_instances) == 3


def test_category_ids_leave_out_what_is_ignored(root):
    assert make(root).get_cat_ids(0) == [0]


@pytest.mark.parametrize(
    ('file', 'text', 'error', 'message'),
    [
        ('training/image_2/000003.png', None, FileNotFoundError, "no image for 1 .* '000003'"),
        ('training/label_2/000003.txt', None, FileNotFoundError, r'000003\.txt'),
        ('training/label_2/000003.txt', 'Car 1', ValueError, r'000003\.txt:1: expected 15 fields, found 2'),
        ('training/image_2/000003.png', 'x', OSError, r'000003\.png is not an image'),
        ('training/image_2/000003.jpg', 'x', ValueError, 'two images of frame 000003'),
        ('ImageSets/train.txt', None, FileNotFoundError, r'train\.txt'),
    ],
)
def test_broken_data_is_an_error_that_names_the_file(root, file, text, error, message):
    if text is None:
        (root / file).unlink()
    else:
        (root / file).write_text(text)
    with pytest.raises(error, match=message):
        make(root)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'neighbours': 'keep'}, "neighbours must be .* got 'keep'"),
        ({'dont_care': 'merge'}, "dont_care must be .* got 'merge'"),
        ({'data_prefix': {'image': 'x'}}, "data_prefix must have the key 'img'"),
        ({'metainfo': {'classes': ('Bus',)}}, "unknown KITTI type 'Bus'"),
        ({'ann_file': ['ImageSets/train.txt', 'ImageSets/train.txt']}, "frame '000000' is in more than one"),
        ({'backend_args': {'backend': 'petrel'}}, 'local files only'),
    ],
)
def test_refuses_unusable_options(root, options, message):
    with pytest.raises(ValueError, match=message):
        make(root, **options)


def test_wrong_data_root_says_which_folder_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'training/image_2 is not a folder; data_root'):
        make(tmp_path)


def test_reads_the_real_frames(data_path):
    dataset = make(data_path('kitti_tiny'), ['ImageSets/train_own50.txt', 'ImageSets/val_own25.txt'])
    instances = [item for index in range(75) for item in dataset.get_data_info(index)['instances']]
    kinds = [item['kitti_type'] for item in instances]
    assert [kinds.count(kind) for kind in ('Car', 'DontCare', 'Van', 'Cyclist')] == [209, 188, 25, 14]
    sizes = (data_path('kitti_labels') / 'image_sizes.csv').read_text().split()[1:76]
    infos = [dataset.get_data_info(index) for index in range(75)]
    assert [f'{i["img_id"]:06d},{i["width"]},{i["height"]}' for i in infos] == sizes


def test_second_index_takes_the_sizes_from_the_cache(root, monkeypatch):
    make(root)
    monkeypatch.setattr(Image, 'open', lambda path: pytest.fail(f'{path} was opened'))
    assert make(root).get_data_info(0)['width'] == 100


def many_frames(root, count):
    """Frames with seven cars each, without a split."""
    for folder in ('training/image_2', 'training/label_2'):
        (root / folder).mkdir(parents=True)
    Image.new('RGB', (1242, 375)).save(root / 'one.png')
    image, label = (root / 'one.png').read_bytes(), '\n'.join([LINES['Car']] * 7)
    for index in range(count):
        (root / f'training/image_2/{index:06d}.png').write_bytes(image)
        (root / f'training/label_2/{index:06d}.txt').write_text(label)
    return root


def work_of_indexing(root, monkeypatch):
    """How often an index of all frames opens a file, decodes an image, lists a folder, and calls a function."""
    done = Counter()

    def counted(what, function):
        def call(*args, **options):
            done[what] += 1
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(builtins, 'open', counted('opened', open))
        patch.setattr(ImageFile.ImageFile, 'load', counted('decoded', ImageFile.ImageFile.load))
        for name in ('listdir', 'scandir'):
            patch.setattr(os, name, counted('listed', getattr(os, name)))
        gc.disable()  # what earlier tests left to be collected calls functions too, at any moment
        sys.setprofile(lambda frame, event, argument: done.update([event]))  # of this thread alone
        try:
            make(root, '')
        finally:
            sys.setprofile(None)
            gc.enable()
    return done


def test_work_of_indexing_grows_with_the_frames_and_no_image_is_decoded(tmp_path, monkeypatch):
    make(many_frames(tmp_path / 'first', 2), '')  # imports what it needs
    few, many = (work_of_indexing(many_frames(tmp_path / str(n), n), monkeypatch) for n in (100, 300))
    assert (few['opened'], many['opened']) == (200, 600), 'the image and the label of each frame'
    assert few['decoded'] == many['decoded'] == 0
    assert few['listed'] == many['listed'] <= 4
    for kind in ('call', 'c_call'):  # of Python functions, and of C functions
        assert few[kind] < 120 * 100, 'about 60 a frame: all labels are parsed at once'
        assert many[kind] < 4 * few[kind], 'three times the frames: linear work is at most three times as much'


def test_numbers_in_the_index_are_plain(root):
    info = make(root, serialize_data=False).data_list[0]
    assert json.loads(json.dumps(info)) == info
    assert not any(isinstance(value, np.generic) for item in info['instances'] for value in item.values())


def test_images_have_different_numbers_in_coco_json_whatever_they_are_called(tmp_path):
    make_toy_kitti(tmp_path, train=3)
    for kind in ('image_2/000001.png', 'label_2/000001.txt'):
        file = tmp_path / 'training' / kind
        file.rename(file.with_stem('a drive'.replace(' ', '_')))
    (tmp_path / 'ImageSets/own.txt').write_text('a_drive\n000000\n')
    ((file, _),) = kitti_to_coco(tmp_path, ['ImageSets/own.txt'], tmp_path / 'out', own_splits=True)
    content = json.loads(file.read_text())
    names = {image['id']: image['file_name'] for image in content['images']}
    assert sorted(names.values()) == ['training/image_2/000000.png', 'training/image_2/a_drive.png']
    assert {box['image_id'] for box in content['annotations']} <= set(names)


def test_a_class_that_is_named_twice_is_refused(root):
    with pytest.raises(ValueError, match="'Car' is named twice"):
        make(root, metainfo={'classes': ('Car', 'car')})


def test_a_conversion_that_the_disk_ended_leaves_no_half_file(tmp_path, monkeypatch):
    make_toy_kitti(tmp_path)
    whole = Path.write_text

    def half(self, text, **options):
        whole(self, text[: len(text) // 2], **options)
        raise OSError('no space left on device')

    monkeypatch.setattr(Path, 'write_text', half)
    with pytest.raises(OSError, match='no space'):
        kitti_to_coco(tmp_path, ['ImageSets/train.txt'], tmp_path / 'out', own_splits=True)
    monkeypatch.setattr(Path, 'write_text', whole)
    assert not (tmp_path / 'out' / 'train.json').exists()
    kitti_to_coco(tmp_path, ['ImageSets/train.txt'], tmp_path / 'out', own_splits=True)

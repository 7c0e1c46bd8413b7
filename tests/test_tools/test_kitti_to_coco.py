"""`tools/kitti_to_coco.py`: COCO json of KITTI's labels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from mmkd.datasets.kitti_coco import kitti_to_coco

SPLITS = ['ImageSets/train_own50.txt', 'ImageSets/val_own25.txt']


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMKD_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def root(data_path):
    return data_path('kitti_tiny')


def test_tool_writes_what_pycocotools_reads(root, tmp_path):
    tool = Path(__file__).parents[2] / 'tools' / 'kitti_to_coco.py'
    command = [sys.executable, tool, '--data-root', root, '--out', tmp_path, '--splits', *SPLITS]
    done = subprocess.run([*command, '--own-splits'], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '(50 frames)' in done.stdout
    coco = COCO(str(tmp_path / 'val_own25.json'))
    assert len(coco.imgs) == 25
    assert (root / coco.imgs[60]['file_name']).is_file()
    assert [category['name'] for category in coco.cats.values()] == ['Car', 'Pedestrian', 'Cyclist']
    again = subprocess.run([*command, '--own-splits'], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert 'would be overwritten' in again.stderr


def test_counts_are_those_of_the_labels_and_regions_are_crowds_of_every_class(root, tmp_path):
    kitti_to_coco(root, SPLITS, tmp_path, own_splits=True)
    annotations = [a for name in ('train_own50', 'val_own25') for a in load(tmp_path / f'{name}.json')['annotations']]
    plain = [a['category_id'] for a in annotations if not a['iscrowd']]
    crowds = [a['category_id'] for a in annotations if a['iscrowd']]
    assert [plain.count(i) for i in (1, 2, 3)] == [209, 36, 14]
    assert [crowds.count(i) for i in (1, 2, 3)] == [188 + 25, 188 + 5, 188]


def load(path):
    return json.loads(path.read_text())


def test_equal_input_gives_equal_bytes(root, tmp_path):
    kitti_to_coco(root, SPLITS, tmp_path / 'a', own_splits=True)
    kitti_to_coco(root, SPLITS, tmp_path / 'b', own_splits=True)
    assert (tmp_path / 'a/train_own50.json').read_bytes() == (tmp_path / 'b/train_own50.json').read_bytes()


def test_options_reach_the_data_set(root, tmp_path):
    options = {'metainfo': {'classes': ('Car',)}, 'neighbours': 'merge', 'dont_care': 'drop'}
    kitti_to_coco(root, SPLITS[:1], tmp_path, own_splits=True, **options)
    document = load(tmp_path / 'train_own50.json')
    assert {a['iscrowd'] for a in document['annotations']} == {0}
    assert [c['name'] for c in document['categories']] == ['Car']


def test_own_splits_and_leaks_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match='no file of the standard 3712/3769 split'):
        kitti_to_coco(root, SPLITS, tmp_path)
    with pytest.raises(ValueError, match=r'frame 000001 is in .*train_own50\.txt and in .*val_official\.txt'):
        kitti_to_coco(root, [SPLITS[0], 'ImageSets/val_official.txt'], tmp_path, own_splits=True)
    assert not list(tmp_path.glob('*.json'))


def test_standard_split_is_recognised(data_path):
    from mmkd.datasets.kitti_coco import _refuse_own_split

    for split in ('train', 'val'):
        _refuse_own_split(data_path('kitti_labels') / 'ImageSets' / f'{split}.txt')

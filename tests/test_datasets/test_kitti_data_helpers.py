"""Image sizes, anchors, erased regions and another data root."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmkd.datasets.anchors import fit_anchors, kitti_shapes, shape_iou
from mmkd.datasets.data_root import move_data_root
from mmkd.datasets.image_sizes import default_cache_dir, image_sizes


def test_sizes_follow_a_changed_file(tmp_path):
    images, cache = tmp_path / 'images', tmp_path / 'cache'
    images.mkdir()
    Image.new('RGB', (30, 20)).save(images / 'a.png')
    Image.new('L', (7, 9)).save(images / 'b.jpg')
    assert image_sizes(images, ['b.jpg', 'a.png'], cache_dir=cache) == [(7, 9), (30, 20)]
    Image.new('RGB', (31, 22)).save(images / 'a.png')
    os.utime(images / 'a.png', ns=(1, 1))
    assert image_sizes(images, ['a.png'], cache_dir=cache) == [(31, 22)]


def test_broken_or_forbidden_cache_is_no_error(tmp_path):
    Image.new('RGB', (30, 20)).save(tmp_path / 'a.png')
    cache = tmp_path / 'cache'
    image_sizes(tmp_path, ['a.png'], cache_dir=cache)
    for file in cache.iterdir():
        file.write_text('[1, {')
    assert image_sizes(tmp_path, ['a.png'], cache_dir=cache) == [(30, 20)]
    assert image_sizes(tmp_path, ['a.png'], cache_dir=tmp_path / 'a.png' / 'no') == [(30, 20)]


def test_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no image x\.png \(2 missing\)'):
        image_sizes(tmp_path, ['y.png', 'x.png'], cache_dir=tmp_path)


def test_cache_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv('MMKD_CACHE', str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv('MMKD_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', '/x')
    assert str(default_cache_dir()) == '/x/mmkd'
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert default_cache_dir().parts[-2:] == ('.cache', 'mmkd')


def test_anchors_of_separated_shapes_are_their_medians():
    shapes = np.array([[10, 10], [11, 10], [12, 10], [100, 50], [101, 50], [102, 50]])
    assert fit_anchors(shapes, 2).tolist() == [[11, 10], [101, 50]]


def test_anchors_are_deterministic_and_sorted_by_area():
    shapes = np.random.default_rng(0).uniform(5, 300, size=(500, 2))
    anchors = fit_anchors(shapes, 9)
    assert (fit_anchors(shapes, 9) == anchors).all()
    assert (np.diff(anchors.prod(axis=1)) >= 0).all()
    with pytest.raises(ValueError, match='9 anchors need as many different shapes'):
        fit_anchors(shapes[:8], 9)


def test_shape_iou_of_nested_shapes_is_the_ratio_of_areas():
    assert shape_iou(np.array([[4.0, 2.0]]), np.array([[2.0, 1.0], [4.0, 2.0]])).tolist() == [[0.25, 1.0]]


def test_shapes_of_kitti_are_those_that_can_count(data_path):
    root = data_path('kitti_tiny')
    shapes = kitti_shapes(str(root / 'training/label_2'), str(root / 'ImageSets/train_own50.txt'))
    assert shapes[:, 1].min() > 25
    assert 50 < len(shapes) < 259


def erase(boxes, flags, **options):
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    results = {'img': image.copy(), 'gt_bboxes': np.array(boxes, float), 'gt_ignore_flags': np.array(flags, bool)}
    transform = TRANSFORMS.build({'type': 'mmkd.EraseIgnoredRegions', **options})
    return image, transform(results)['img']


def test_erases_ignored_boxes_but_not_what_counts():
    before, after = erase([[2, 3, 12, 9], [8, 5, 20, 7]], [True, False], fill=7)
    expected = before.copy()
    expected[3:9, 2:12] = 7
    expected[5:7, 8:20] = before[5:7, 8:20]
    assert (after == expected).all()


def test_erases_only_inside_the_image_and_nothing_without_ignored_boxes():
    before, after = erase([[-5, -5, 99, 1.4]], [True])
    assert (after[:1] == 114).all()
    assert (after[1:] == before[1:]).all()
    before, after = erase([[1, 1, 9, 9]], [False])
    assert (after == before).all()


def test_erasing_refuses_an_impossible_grey():
    with pytest.raises(ValueError, match=r'fill must be in 0..255, got 256'):
        erase([], [], fill=256)


def test_data_root_moves_everywhere():
    loader = {'dataset': {'dataset': {'data_root': 'data/kitti/'}, 'other': 'data/kitti2/x'}}
    cfg = Config({'data_root': 'data/kitti/', 'loader': loader, 'metrics': [{'ann_file': 'data/kitti/a.json'}], 'n': 1})
    assert move_data_root(cfg, '/new') == 2
    assert cfg.loader.dataset.dataset.data_root == '/new/'
    assert cfg.metrics[0].ann_file == '/new/a.json'
    assert cfg.loader.dataset.other == 'data/kitti2/x'
    assert cfg.data_root == '/new'
    with pytest.raises(ValueError, match='no top-level data_root'):
        move_data_root(Config({'model': {}}), 'x')


def test_data_root_option_of_the_tools_reaches_the_data_sets():
    from mmkd.engine.launch import load_config

    cfg = load_config('mmkd::baselines/yolox_tiny_8xb8-100e_kitti.py', {'data_root': '/somewhere'})
    roots = [cfg.train_dataloader.dataset.dataset, cfg.val_dataloader.dataset, cfg.test_dataloader.dataset]
    assert {root.data_root.rstrip('/') for root in roots} == {'/somewhere'}


def test_a_user_without_a_home_has_no_cache_and_no_error(monkeypatch, tmp_path):
    def nobody():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.delenv('MMKD_CACHE', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(Path, 'home', nobody)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    Image.new('RGB', (30, 20)).save(tmp_path / 'a.png')
    assert image_sizes(tmp_path, ['a.png']) == [(30, 20)]

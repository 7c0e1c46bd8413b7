"""A shipped KITTI config trains on a few real frames, is evaluated, and keeps its best checkpoint."""

from pathlib import Path

import pytest

from mmkd.engine.launch import load_config, prepare_training, train
from mmkd.testing.kitti_tiny import on_kitti_tiny, shipped_configs


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMKD_CACHE', str(tmp_path / 'cache'))


def test_yolox_tiny_trains_and_is_evaluated_on_real_frames(data_path, tmp_path):
    data_path('kitti_tiny')
    cfg = load_config('mmkd::baselines/yolox_tiny_8xb8-100e_kitti.py')
    cfg = on_kitti_tiny(cfg, epochs=2, scale=0.25, frames=4)
    cfg.default_hooks.checkpoint.update(save_best='kitti/Car_R40_moderate', rule='greater')
    prepare_training(cfg, config_name='kitti', work_dir=str(tmp_path / 'run'))
    runner = train(cfg)
    assert runner.epoch == 2
    assert runner.message_hub.get_scalar('val/kitti/mean_R11_hard').current() >= 0
    best = [path.name for path in (tmp_path / 'run').glob('best_kitti_Car_R40_moderate_epoch_2.pth')]
    assert len(best) == 1


@pytest.mark.parametrize('path', shipped_configs(), ids=lambda path: path.stem)
def test_every_kitti_config_moves_to_the_real_frames_with_no_download_left(data_path, path: Path):
    root = str(data_path('kitti_tiny'))
    cfg = on_kitti_tiny(load_config(str(path)), epochs=1, scale=0.25)
    text = repr(cfg._cfg_dict)
    assert 'data/coco' not in text
    assert text.count(root) >= 3
    assert 'torchvision://' not in repr(cfg.model.get('architecture', cfg.model))

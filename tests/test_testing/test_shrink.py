from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd.testing.methods import config_root, method_distiller
from mmkd.testing.shrink import SCALE, shrink
from mmkd.testing.toy_detectors import toy_detector

_MMDET = Path(__import__('mmdet').__file__).parent / '.mim' / 'configs'


def _shipped(name):
    return Config.fromfile(_MMDET / name)


@pytest.mark.filterwarnings('ignore')
def test_a_shipped_config_trains_and_scores_without_data_or_downloads(tmp_path):
    cfg = shrink(_shipped('retinanet/retinanet_r18_fpn_1x_coco.py'), tmp_path / 'shared')
    cfg.work_dir = str(tmp_path / 'run')
    Runner.from_cfg(cfg).train()
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


def test_the_config_that_was_given_is_not_changed(tmp_path):
    cfg = _shipped('retinanet/retinanet_r18_fpn_1x_coco.py')
    before = cfg.pretty_text
    shrink(cfg, tmp_path)
    assert cfg.pretty_text == before


def test_classes_stay_those_of_the_config(tmp_path):
    cfg = shrink(_shipped('retinanet/retinanet_r18_fpn_1x_coco.py'), tmp_path)
    names = [entry['name'] for entry in Config.fromfile(cfg.train_dataloader.dataset.ann_file).categories]
    assert len(names) == cfg.model.bbox_head.num_classes == 80
    assert names[:2] == ['person', 'bicycle']


def test_scales_and_wrapped_data_sets_are_reached(tmp_path):
    cfg = shrink(_shipped('yolox/yolox_tiny_8xb8-300e_coco.py'), tmp_path)
    assert 'annotations/instances' not in str(cfg.train_dataloader)
    assert '640' not in str(cfg.train_dataloader.dataset.pipeline)
    assert cfg.model.data_preprocessor.batch_augments[0].random_size_range == (64, 96)
    assert tuple(cfg.train_dataloader.dataset.pipeline[0].img_scale) == SCALE


def test_nothing_is_downloaded_and_depth_alone_changes_in_the_model(tmp_path):
    cfg = _shipped('retinanet/retinanet_r101_fpn_1x_coco.py')
    small = shrink(cfg, tmp_path)
    assert small.model.backbone.init_cfg is None
    assert small.model.backbone.depth == 50
    expected = dict(cfg.model.backbone.to_dict(), init_cfg=None, depth=50)
    assert small.model.backbone.to_dict() == expected
    assert small.model.neck == cfg.model.neck and small.model.bbox_head == cfg.model.bbox_head


@pytest.mark.filterwarnings('ignore')
def test_a_teacher_gets_made_weights_and_the_method_stays_as_shipped(tmp_path):
    cfg = _shipped('retinanet/retinanet_r18_fpn_1x_coco.py')
    teacher = toy_detector('retinanet', num_classes=80, channels=256)
    method = method_distiller('ssim_adapt')
    cfg.model = dict(type='mmkd.TeacherStudentDistill', architecture=cfg.model, teacher=teacher, distiller=method)
    small = shrink(cfg, tmp_path)
    assert small.model.distiller.to_dict() == method
    weights = torch.load(small.model.teacher_ckpt, weights_only=True)['state_dict']
    assert weights['bbox_head.retina_cls.weight'].shape[0] == 9 * 80
    assert shrink(cfg, tmp_path).model.teacher_ckpt == small.model.teacher_ckpt
    assert small.default_hooks.teacher_check.num_images == 0


def test_mixed_precision_and_synchronised_norms_become_what_a_cpu_can_do(tmp_path):
    cfg = _shipped('retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    cfg.model.backbone.norm_cfg = dict(type='SyncBN', requires_grad=True)
    small = shrink(cfg, tmp_path)
    assert small.optim_wrapper.type == 'OptimWrapper' and 'loss_scale' not in small.optim_wrapper
    assert small.model.backbone.norm_cfg.type == 'BN'


def test_the_methods_of_the_house_are_found():
    assert (config_root() / '_base_' / 'methods' / 'ssim.py').is_file()

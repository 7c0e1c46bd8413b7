from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd.testing.methods import config_root, method_distiller
from mmkd.testing.shrink import SCALE, resize_images, shrink
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
    mosaic, affine = cfg.train_dataloader.dataset.pipeline[:2]
    assert tuple(mosaic.img_scale) == SCALE
    assert tuple(affine.border) == (-SCALE[0] // 2, -SCALE[1] // 2)


@pytest.mark.filterwarnings('ignore')
def test_yolox_sees_objects_in_small_images(tmp_path):
    kitti = Config.fromfile(config_root() / 'baselines' / 'yolox_tiny_8xb8-100e_kitti.py')
    batch = next(iter(Runner.build_dataloader(shrink(kitti, tmp_path).train_dataloader, seed=0)))
    assert {tuple(image.shape[1:]) for image in batch['inputs']} == {SCALE[::-1]}
    assert sum(len(sample.gt_instances) for sample in batch['data_samples']) > 0


@pytest.mark.parametrize(
    ('node', 'changed'),
    [
        (dict(type='Resize', scale=(1242, 375)), dict(scale=(621, 188))),
        (dict(type='Resize', scale_factor=0.5), {}),
        (dict(type='RandomResize', scale=[(100, 50), (300, 90)]), dict(scale=[(50, 25), (150, 45)])),
        (dict(type='RandomChoiceResize', scales=[(100, 50), (300, 90)]), dict(scales=[(50, 25), (150, 45)])),
        (dict(type='AnchorGenerator', scales=[8, 16]), {}),
        (dict(type='RandomCrop', crop_size=(64, 32)), dict(crop_size=(32, 16))),
        (dict(type='Pad', size=(64, 32)), dict(size=(32, 16))),
        (dict(type='Pad', size_divisor=32), {}),
        (dict(type='RandomAffine', border=(-320, -160)), dict(border=(-160, -80))),
        (dict(type='RandomAffine', border=(0, 0)), {}),
        (dict(type='RandomAffine'), {}),
        (dict(type='BatchSyncRandomResize', random_size_range=(480, 800)), dict(random_size_range=(240, 400))),
    ],
)
def test_every_image_size_is_changed_and_nothing_else(node, changed):
    expected = node | changed
    resize_images(node, lambda size: tuple(round(side / 2) for side in size))
    assert node == expected


def test_one_size_for_all_is_put_in_the_order_that_each_place_wants():
    pad, resize = dict(type='BatchFixedSizePad', size=(1024, 512)), dict(type='BatchSyncRandomResize')
    resize['random_size_range'] = (480, 800)
    for node in (pad, resize):
        resize_images(node, lambda size: SCALE)
    assert pad['size'] == SCALE[::-1]  # height, width
    assert resize['random_size_range'] == (64, 96)


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

"""Trains KITTI configs on 75 real frames: `python -m mmkd.testing.kitti_tiny`, by default every shipped one.

It shows that a config trains and evaluates on real KITTI files, on a CPU, without downloads. Its numbers say nothing
about a method: backbones start at random, images are small, and the 25 validation frames hold too few objects.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import MMLogger

from mmkd.datasets.data_root import move_data_root
from mmkd.engine.launch import load_config, prepare_training, train
from mmkd.testing.data import shared_data
from mmkd.testing.methods import config_root
from mmkd.testing.shrink import resize_images, visit

STRIDE = 32


def on_kitti_tiny(cfg: Config, *, epochs: int, scale: float, frames: int | None = None, batch_size: int = 2) -> Config:
    """Changes a KITTI config in place so that it trains on `kitti_tiny` (50 / 25 frames) on a CPU.

    Args:
        cfg: A config with `KittiDataset`.
        epochs: Length; it is evaluated after the last one.
        scale: Factor of all image scales.
        frames: Use only so many frames of both parts.
        batch_size: In training.
    """
    move_data_root(cfg, str(shared_data('kitti_tiny')))
    for name, split in (('train', 'train_own50'), ('val', 'val_own25'), ('test', 'val_own25')):
        loader = cfg[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=batch_size if name == 'train' else 1)
        leaf = loader.dataset
        while 'dataset' in leaf:
            leaf = leaf.dataset
        leaf.update(ann_file=f'ImageSets/{split}.txt', indices=frames)
        visit(loader.dataset, lambda node: _rescale(node, scale))
    visit(cfg.model, lambda node: _rescale(node, scale))
    visit(cfg.model, _drop_downloads)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=epochs)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
        dict(
            type='CosineAnnealingLR',
            eta_min_ratio=0.05,
            by_epoch=True,
            begin=0,
            T_max=epochs,
            convert_to_iter_based=True,
        ),
    ]
    cfg.default_hooks.checkpoint.update(interval=epochs, max_keep_ckpts=1)
    cfg.default_hooks.logger.interval = 5
    if cfg.get('custom_hooks'):  # the averaged weights of EMAHook need thousands of steps
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] != 'EMAHook']
        for hook in cfg.custom_hooks:
            if hook['type'] == 'YOLOXModeSwitchHook':
                hook['num_last_epochs'] = max(1, epochs - 1)  # mosaic pays in long schedules: here one epoch of it
    return cfg


def _rescale(node: dict, scale: float) -> None:
    """Image sizes times `scale`, in multiples of the stride."""
    resize_images(node, lambda size: tuple(max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in size))


def _drop_downloads(node: dict) -> None:
    init = node.get('init_cfg')
    if isinstance(init, dict) and init.get('type') == 'Pretrained':
        node['init_cfg'] = None
        if 'frozen_stages' in node:  # random layers are not worth freezing
            node.update(frozen_stages=-1, norm_eval=False)


def shipped_configs() -> list[Path]:
    """Baselines first, so that the teachers of the pairs are trained when they are needed."""
    root = config_root()
    baselines = sorted((root / 'baselines').glob('*_kitti.py'))
    return baselines + sorted(set(root.glob('*/*_kitti.py')) - set(baselines))


def run(path: Path, work_dir: Path, options: dict | None, **how: Any) -> str:
    """Trains one config; returns a row of the table."""
    cfg = on_kitti_tiny(load_config(str(path), options), **how)
    if cfg.model.get('teacher_ckpt'):
        teacher = Path(cfg.model.teacher.split('::')[1]).stem
        cfg.model.teacher_ckpt = str(work_dir / teacher / f'epoch_{how["epochs"]}.pth')
        cfg.default_hooks.teacher_check = ConfigDict(type='mmkd.TeacherCheckHook', num_images=0)
    prepare_training(cfg, config_name=path.name, work_dir=str(work_dir / path.stem))
    start = time.perf_counter()
    runner = train(cfg)
    seconds = time.perf_counter() - start
    losses, _ = runner.message_hub.get_scalar('train/loss').data
    car = runner.message_hub.get_scalar('val/kitti/Car_R40_moderate').current()
    MMLogger._instance_dict.clear()
    return f'{path.stem:52s}{losses[0]:10.2f}{losses[-5:].mean():10.2f}{car:10.2f}{seconds:10.0f}'


def main() -> None:
    """Prints first and last loss, the AP of Car (moderate, R40) and seconds of each config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='*', type=Path, help='KITTI configs; all shipped ones without it')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--scale', type=float, default=0.5, help='factor of the image scales')
    parser.add_argument('--frames', type=int, help='use only so many frames')
    parser.add_argument('--batch-size', type=int, default=2)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/kitti_tiny'))
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    how = dict(epochs=args.epochs, scale=args.scale, frames=args.frames, batch_size=args.batch_size)
    rows = [f'{"config":52s}{"loss":>10s}{"last":>10s}{"Car AP":>10s}{"seconds":>10s}']
    for path in args.configs or shipped_configs():
        rows.append(run(path, args.work_dir, args.cfg_options, **how))
        print('\n'.join(rows), flush=True)


if __name__ == '__main__':
    main()

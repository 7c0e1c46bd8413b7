"""`shrink(cfg)`: any shipped config, small enough for a test. The one place where tests may change a config.

What it changes, and nothing else:
- data: a toy set with the config's own classes instead of the real one, 2 training images and 1 for validation;
- scale: images, crops, paddings and batch-wise resizes of 96x64 px, mosaics of four such images;
- loop: one epoch, batch 2, images loaded in the training process, no learning-rate schedule, no mixed precision;
- weights: nothing is downloaded; a pretrained backbone starts at random, and a teacher gets made weights (random, in a
  file), so that loading and checking them is still run. The check of the teacher's AP is off: random weights have none;
- proposals: at most 64 candidates a level and 32 sampled boxes an image;
- depth: ResNet and ResNeXt of 101 or 152 layers have 50, whose channels are the same;
- device: SyncBN, which needs a GPU, becomes BN.
Everything a method says (recorders, connectors, losses, schedules) stays as shipped.
"""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope

from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_kitti import make_toy_kitti

SCALE = (96, 64)
_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_EVALUATORS = ('val_evaluator', 'test_evaluator')
# Image sizes beside `scale`, `img_scale` and `crop_size`, whose names mean something else elsewhere.
_SIZES = dict(Pad={'size'}, RandomChoiceResize={'scales'})


def shrink(cfg: Config, folder: str | Path) -> Config:
    """A small copy of a config.

    Args:
        cfg: Whole config of a run, as `Config.fromfile` gives it.
        folder: Where toy data and made weights go; may be shared by many configs.

    Returns:
        A config for `Runner.from_cfg`; `work_dir` is left to the caller.
    """
    folder = Path(folder)
    small = Config(copy.deepcopy(cfg._cfg_dict), filename=cfg.filename)
    init_default_scope(small.get('default_scope') or 'mmdet')
    _shrink_data(small, folder)
    _shrink_loop(small)
    if small.get('model') is not None:
        small.model = ConfigDict(_shrink_model(small.model, folder))
        if small.model.get('teacher') is not None:
            off = dict(type='mmkd.TeacherCheckHook', num_images=0)
            small.default_hooks = dict(small.get('default_hooks') or {}, teacher_check=off)
    return small


def _shrink_data(cfg: Config, folder: Path) -> None:
    annotations: dict[str, str] = {}
    for name in _LOADERS:
        loader = cfg.get(name)
        if not loader:
            continue
        split = 'train' if name.startswith('train') else 'val'
        loader.update(num_workers=0, persistent_workers=False, batch_size=2 if split == 'train' else 1)
        loader.pop('prefetch_factor', None)
        visit(loader.dataset, _small_scales)
        for dataset in _leaves(loader.dataset):
            annotations[split] = _toy_dataset(dataset, split, folder)
    for name in _EVALUATORS:
        metrics = cfg.get(name) or []
        for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
            if 'ann_file' in metric:
                metric['ann_file'] = annotations['val']


def _leaves(dataset: ConfigDict) -> list[ConfigDict]:
    """The data sets with files, inside of any wrappers."""
    if 'dataset' in dataset:
        return _leaves(dataset.dataset)
    if 'datasets' in dataset:
        return [leaf for part in dataset.datasets for leaf in _leaves(part)]
    return [dataset]


def _toy_dataset(dataset: ConfigDict, split: str, folder: Path) -> str:
    """Let a data set read toy files; the path of its annotations."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        with DATASETS.switch_scope_and_registry(DefaultScope.get_current_instance().scope_name) as registry:
            classes = registry.get(dataset.type).METAINFO['classes']
    classes = (classes,) if isinstance(classes, str) else tuple(classes)
    kitti = dataset.type == 'mmkd.KittiDataset'
    root = folder / f'toy_{"kitti" if kitti else "coco"}_{len(classes)}_{classes[0]}'
    if kitti:
        make_toy_kitti(root, size=SCALE, classes=classes)
        dataset.update(data_root=str(root), ann_file=f'ImageSets/{split}.txt')
        dataset.update(cache_dir=str(folder), filter_cfg=dict(filter_empty_gt=False))
        dataset.pop('data_prefix', None)
        return str(root / 'ImageSets' / f'{split}.txt')
    make_toy_data(root, train=2, val=1, size=SCALE, classes=classes)
    annotation = str(root / 'annotations' / f'{split}.json')
    dataset.update(data_root='', ann_file=annotation, data_prefix=dict(img=str(root / 'images') + '/'))
    return annotation


def _shrink_loop(cfg: Config) -> None:
    if cfg.get('train_cfg'):
        cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg.param_scheduler = []
    cfg.load_from, cfg.resume = None, False
    wrapper = cfg.get('optim_wrapper')
    if wrapper and wrapper.get('type') == 'AmpOptimWrapper':
        for key in ('loss_scale', 'dtype'):
            wrapper.pop(key, None)
        wrapper['type'] = 'OptimWrapper'


def _shrink_model(model: ConfigDict, folder: Path) -> ConfigDict:
    if model.get('cfg_path'):  # MMRazor's way to name a model
        model = _named(model.cfg_path)
    for key in ('architecture', 'student'):
        if isinstance(model.get(key), dict):
            model[key] = _shrink_model(model[key], folder)
    visit(model, _without_downloads)
    visit(model, _shallower)
    visit(model, _fewer_proposals)
    visit(model, _small_scales)
    if model.get('teacher') is not None:
        teacher = model.teacher
        options = {} if isinstance(teacher, str) or 'config' not in teacher else dict(teacher)
        teacher = options.pop('config', teacher)
        teacher = _named(teacher) if isinstance(teacher, str) else teacher.get('model', teacher)
        model['teacher'] = _shrink_model(teacher, folder)
        model['teacher_ckpt'] = _made_weights(model['teacher'], folder)
        if options:
            model['teacher'] = ConfigDict(options, config=model['teacher'])
    return model


def _named(config: str) -> ConfigDict:
    from mmkd.models.algorithms.model_config import load_model_source  # brings MMRazor, which plain configs do without

    return load_model_source(config).model


def _made_weights(model: ConfigDict, folder: Path) -> str:
    """File with random weights of a model; one for equal configs."""
    name = hashlib.sha256(repr(sorted(model.items(), key=str)).encode()).hexdigest()[:16]
    file = folder / f'made_{name}.pth'
    if not file.exists():
        network = MODELS.build(copy.deepcopy(model))
        network.init_weights()
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state_dict=network.state_dict(), meta={}), file)
    return str(file)


def visit(node: Any, change: Callable[[dict], object]) -> None:
    """Call `change` on every dictionary in nested dictionaries and lists.

    Args:
        node: A configuration, or a part of one.
        change: What may change a dictionary in place; its children come after it.
    """
    if isinstance(node, dict):
        change(node)
        for child in node.values():
            visit(child, change)
    elif isinstance(node, (list, tuple)):
        for child in node:
            visit(child, change)


def resize_images(node: dict, size: Callable[[tuple], tuple]) -> None:
    """Give every image size of a transform or a batch-wise resize another value, in place.

    Args:
        node: One dictionary, without its children.
        size: From a pair of px to the pair that takes its place. Both are (width, height), but for the two ends of
            `random_size_range`, which are ordered afterwards.
    """
    kind = node.get('type')
    named = {'scale', 'img_scale', 'crop_size'} | _SIZES.get(kind, set())
    for key in named & set(node):
        if isinstance(node[key], (list, tuple)):
            pairs = isinstance(node[key][0], (list, tuple))
            node[key] = [size(tuple(pair)) for pair in node[key]] if pairs else size(tuple(node[key]))
    if kind == 'BatchSyncRandomResize':
        node['random_size_range'] = tuple(sorted(size(tuple(node['random_size_range']))))
    if kind == 'BatchFixedSizePad':
        node['size'] = size(tuple(node['size'])[::-1])[::-1]
    if kind == 'RandomAffine' and any(node.get('border', ())):  # half of what it cuts off, below 0, on every side
        node['border'] = tuple(-side // 2 for side in size(tuple(-2 * side for side in node['border'])))


def _small_scales(node: dict) -> None:
    resize_images(node, lambda size: SCALE)


def _without_downloads(node: dict) -> None:
    init = node.get('init_cfg')
    if isinstance(init, dict) and init.get('type') == 'Pretrained':
        node['init_cfg'] = None
    if isinstance(node.get('pretrained'), str):
        node['pretrained'] = None
    if node.get('type') == 'SyncBN':
        node['type'] = 'BN'


def _shallower(node: dict) -> None:
    if node.get('type') in ('ResNet', 'ResNeXt', 'Res2Net') and node.get('depth') in (101, 152):
        node['depth'] = 50


def _fewer_proposals(node: dict) -> None:
    for key, most in (('nms_pre', 64), ('max_per_img', 64), ('num', 32)):
        if isinstance(node.get(key), int):
            node[key] = min(node[key], most)

"""A configuration that MMDetection alone understands: `student_config` leaves what mmkd's own tools need, this nothing.

What has no counterpart in MMDetection (the KITTI data set and its metric) is left out and said.
"""

import copy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from mmkd.engine.student_config import is_distillation, student_config
from mmkd.models.algorithms.model_config import find_config

PACKAGES = ('mmkd', 'mmrazor')
# What goes together: MMEngine's Runner wants all of a group or none.
GROUPS = {
    'training': ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'),
    'validation': ('val_dataloader', 'val_evaluator', 'val_cfg'),
    'testing': ('test_dataloader', 'test_evaluator', 'test_cfg'),
}
OF_THE_RUN = ('work_dir', 'launcher', 'teacher', 'teacher_ckpt', 'distiller', 'data_preprocessor')


def _foreign_names(node: Any) -> list[str]:
    """Every name of mmkd or MMRazor in a value or anything inside it; a title such as `project='mmkd'` is none."""
    if isinstance(node, dict):
        scopes = [node['_scope_']] if node.get('_scope_') in PACKAGES else []
        return scopes + [name for value in node.values() for name in _foreign_names(value)]
    if isinstance(node, list | tuple | set):
        return [name for value in node for name in _foreign_names(value)]
    starts = tuple(package + separator for package in PACKAGES for separator in ('.', '::'))
    return [node] if isinstance(node, str) and node.startswith(starts) else []


def is_foreign(node: Any) -> bool:
    """Whether a value, or anything inside it, needs mmkd or MMRazor."""
    return bool(_foreign_names(node))


def named_model(model: dict[str, Any]) -> dict[str, Any]:
    """The model itself, where MMRazor's way of naming one (`cfg_path='pkg::config'`) is used.

    Raises:
        ValueError: the name is no configuration of an installed package.
    """
    if not model.get('cfg_path') or model.get('type'):
        return model
    if (
        '::' not in model['cfg_path'] or '..' in model['cfg_path']
    ):  # it is run as Python, and may come from a checkpoint
        raise ValueError(f'cfg_path must be pkg::config, got {model["cfg_path"]}.')
    given = {key: value for key, value in model.items() if key not in ('cfg_path', 'pretrained')}
    cfg = Config.fromfile(str(find_config(model['cfg_path'])))
    named = cfg.model.to_dict()
    if cfg.get('data_preprocessor') is not None:
        named['data_preprocessor'] = cfg.data_preprocessor.to_dict()
    return {**given, **named}  # MMEngine takes what is given for defaults


def _without_downloads(node: Any) -> None:
    """Initial weights would be replaced by the checkpoint's: they need not be fetched."""
    if isinstance(node, dict):
        for key in ('init_cfg', 'pretrained'):
            value = node.get(key)
            if isinstance(value, str) or (isinstance(value, dict) and value.get('type') == 'Pretrained'):
                node[key] = None
        for value in node.values():
            _without_downloads(value)
    elif isinstance(node, list | tuple):
        for value in node:
            _without_downloads(value)


def plain_model(cfg: Config) -> dict[str, Any]:
    """The student's network, whichever algorithm is around it.

    Raises:
        ValueError: there is no model, or the student itself is made of parts of mmkd or MMRazor.
    """
    if not cfg.get('model'):
        raise ValueError('The configuration has no model.')
    model = copy.deepcopy(student_config(cfg).model.to_dict())
    while 'architecture' in model:  # an assistant that was itself a student
        model = model['architecture']
    model = named_model(model)
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in model:
        model['data_preprocessor'] = cfg.data_preprocessor.to_dict()
    if model.get('_scope_') in PACKAGES:
        model.pop('_scope_')
    if is_foreign(model):
        raise ValueError('The student itself has parts of mmkd or MMRazor, so it cannot be used without them.')
    _without_downloads(model)
    return model


def one_metainfo(found: Any) -> dict[str, Any]:
    """The description of a data set as MMDetection's own tools read it from a checkpoint.

    Args:
        found: A dict, or the list that joined sets of different descriptions (paths, colours) give.

    Returns:
        The dict; of a list the first where all name the same classes, else nothing.
    """
    sets = list(found) if isinstance(found, list | tuple) else [found or {}]
    classes = {tuple(one.get('classes') or one.get('CLASSES') or ()) for one in sets}
    return dict(sets[0]) if len(classes) == 1 else {}


def dataset_metainfo(cfg: Config) -> dict[str, Any]:
    """Class names and colours of the test set: its own, else those of its type."""
    return _metainfo(inference_dataset(cfg).to_dict())


def _metainfo(dataset: dict[str, Any]) -> dict[str, Any]:
    found = {key.lower(): value for key, value in (dataset.get('metainfo') or {}).items()}
    if 'classes' not in found:
        with DATASETS.switch_scope_and_registry(None) as registry:
            cls = registry.get(dataset['type'])
        found = {**getattr(cls, 'METAINFO', {}), **found}
    return {key: found[key] for key in ('classes', 'palette') if key in found}


def _inference_loader(loader: dict, notes: list[str]) -> dict:
    """A loader from which `init_detector` and `DetInferencer` read test pipeline and class names; it has no images."""
    dataset = loader['dataset']
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    pipeline = [step for step in dataset.get('pipeline') or [] if not is_foreign(step)]
    left = [step['type'] for step in dataset.get('pipeline') or [] if is_foreign(step)]
    if left:
        notes.append(f'the test pipeline goes without {", ".join(left)}')
    empty = dict(type='CocoDataset', metainfo=_metainfo(dataset), data_root='', ann_file='', test_mode=True)
    return dict(copy.deepcopy(loader), dataset=dict(empty, data_prefix=dict(img=''), pipeline=pipeline))


def _drop_groups(plain: dict[str, Any], notes: list[str]) -> None:
    source = plain.get('test_dataloader') or plain.get('val_dataloader')
    if not source:
        raise ValueError(
            'The configuration has neither test_dataloader nor val_dataloader, where MMDetection looks for the test '
            'pipeline. Give one that has, by --config.'
        )
    for name, keys in GROUPS.items():
        types = sorted({kind for key in keys for kind in _foreign_names(plain.get(key))})
        if types:
            notes.append(f'no {name}, which needs {", ".join(types)}')
            for key in keys:
                plain.pop(key, None)
    if not plain.get('test_dataloader'):
        plain['test_dataloader'] = _inference_loader(source, notes) if is_foreign(source) else source


def mmdet_config(cfg: Config) -> tuple[Config, list[str]]:
    """The student's configuration without any name of mmkd or MMRazor.

    Args:
        cfg: of a plain detector, or of its distillation by mmkd or MMRazor.

    Returns:
        The configuration, and what was left out because MMDetection has nothing like it.

    Raises:
        ValueError: no model, no test pipeline, or a student that needs mmkd itself.
    """
    notes: list[str] = []
    model = plain_model(cfg)
    plain = student_config(cfg)._cfg_dict.to_dict()
    if not is_distillation(cfg):
        plain.pop('teacher', None)
    plain = {key: value for key, value in plain.items() if key not in OF_THE_RUN}
    plain['model'] = model
    if plain.get('default_scope') in (None, *PACKAGES):
        plain['default_scope'] = 'mmdet'
    for key in ('custom_hooks', 'default_hooks'):
        hooks = plain.get(key)
        if isinstance(hooks, dict):
            plain[key] = {name: hook for name, hook in hooks.items() if not is_foreign(hook)}
        elif hooks:
            plain[key] = [hook for hook in hooks if not is_foreign(hook)]
    imports = (plain.pop('custom_imports', None) or {}).get('imports') or []
    kept = [name for name in imports if name.split('.')[0] not in PACKAGES]
    if kept:
        plain['custom_imports'] = dict(imports=kept, allow_failed_imports=False)
        notes.append(f'using it needs your own {", ".join(kept)}')
    _drop_groups(plain, notes)
    for key in [key for key, value in plain.items() if is_foreign(value)]:
        plain.pop(key)
    plain.update(load_from=None, resume=False)
    return Config(plain), notes


def inference_dataset(cfg: Config) -> ConfigDict:
    """The data set, inside of any wrappers, from which MMDetection reads the test pipeline."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset

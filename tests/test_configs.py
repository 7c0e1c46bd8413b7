"""Every shipped config: its name, its keys, and one training step of it in small.

New configs are found by themselves. `mmkd.testing.shrink` is the only thing between a config and its test.
"""

import ast
import copy
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import Runner

from mmkd import registry
from mmkd.engine.launch import load_config
from mmkd.engine.preflight import check_classes, check_distiller
from mmkd.models.algorithms.model_config import find_config, load_model_source
from mmkd.models.self_teachers.residual_bifpn import ResidualBiFPNSelfTeacher
from mmkd.testing.shrink import shrink

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
LEAVES = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
BASES = sorted(CONFIGS.glob('_base_/**/*.py'))
METHODS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name not in ('_base_', 'baselines'))
MAX_LINES = 25
LATER = dict(epoch=11, iter=11, max_epochs=12, max_iters=12)  # what rises over the first epochs has risen

# A method's folder may hold its controls and variants: what the first field of a file's name may be.
FIRST_FIELDS = {'ssim': ('ssim', 'ssim-adapt', 'l1', 'l2')}

# What a whole config may define beside the Runner's own arguments.
BESIDE_RUNNER = {'_base_', 'distiller', 'auto_scale_lr', 'tta_model', 'tta_pipeline', 'runner_type', 'custom_imports'}

# Hooks that algorithms ask for by themselves (`runner_hooks`), so that no config needs to name them.
ALGORITHMS = ''.join(path.read_text() for path in (ROOT / 'mmkd' / 'models' / 'algorithms').glob('*.py'))
BROUGHT_BY_ALGORITHMS = set(re.findall(r"type='mmkd\.(\w+Hook)'", ALGORITHMS))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


each_leaf = pytest.mark.parametrize('path', LEAVES, ids=name_of)


@cache
def parsed(path: Path) -> Config:
    """A config as mmkd's tools read it; not to be changed."""
    return load_config(str(path))


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of toy data and made weights for all configs."""
    return tmp_path_factory.mktemp('made')


def test_there_are_configs_to_test():
    assert len(LEAVES) > 10
    assert 'ssim' in METHODS


# ---- files ----------------------------------------------------------------------------------------------------------


@each_leaf
def test_leaf_is_short(path: Path):
    lines = path.read_text(encoding='utf-8').splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 120


def test_basenames_are_unique():
    counts = Counter(path.name for path in LEAVES)
    assert [name for name, count in counts.items() if count > 1] == []


def assigns_base(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_'


def base_names(path: Path) -> list[str]:
    """Stems of the configs that a file inherits directly, methods and data sets left out."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    values = [node.value for node in tree.body if assigns_base(node)]
    bases = ast.literal_eval(values[0]) if values else []
    bases = [bases] if isinstance(bases, str) else bases
    return [Path(base.split('::')[-1]).stem for base in bases if '_base_/' not in base]


def teacher_stem(model: Any) -> str | None:
    teacher = model.get('teacher')
    return Path(teacher.split('::')[-1]).stem if isinstance(teacher, str) else None


def name_problem(stem: str, folder: str, student: str, teacher: str | None) -> str | None:
    """Why `<method>[-variant]_[<teacher>_]<student>_<schedule>_<dataset>` does not describe the file, or None.

    Schedule and data set are the end of the name of the student's own config; student and teacher are the beginnings
    of the names of theirs, with `_` or `-` between algorithm and backbone.
    """
    method, _, rest = stem.partition('_')
    if not any(method == first or method.startswith(f'{first}-') for first in FIRST_FIELDS.get(folder, (folder,))):
        return f'the first field {method!r} is not the method {folder!r}'
    network, schedule, dataset = student.rsplit('_', 2)
    if not rest.endswith(f'_{schedule}_{dataset}'):
        return f'it does not end in _{schedule}_{dataset} as its student {student!r}'
    parts = rest.removesuffix(f'_{schedule}_{dataset}').replace('_', '-').split('-')
    fewest = min(2, len(network.split('_')))  # algorithm and backbone
    splits = [('-'.join(parts[:i]), '-'.join(parts[i:])) for i in range(len(parts) - fewest + 1)]
    splits = [(before, after) for before, after in splits if begins(network, after)]
    if not splits:
        return f'it does not name its student {student!r}'
    if teacher is None:
        return None if splits[0][0] == '' else 'it names a teacher'
    if not any(before and begins(teacher, before) for before, _ in splits):
        return f'it does not name its teacher {teacher!r}'
    return None


def begins(whole: str, beginning: str) -> bool:
    """Whether a name begins with some whole fields."""
    return f'{whole}-'.replace('_', '-').startswith(f'{beginning}-')


@pytest.mark.parametrize('path', [path for path in LEAVES if path.parent.name in METHODS], ids=name_of)
def test_name_says_method_teacher_student_schedule_and_dataset(path: Path):
    bases = base_names(path)
    while bases and (path.parent / f'{bases[0]}.py').is_file():  # a leaf that inherits a leaf
        bases = base_names(path.parent / f'{bases[0]}.py')
    assert re.fullmatch(r'[a-z0-9]+([-_][a-z0-9]+)+', path.stem)
    assert len(bases) == 1, 'one student config, and a method file'
    assert name_problem(path.stem, path.parent.name, bases[0], teacher_stem(parsed(path).model)) is None


@pytest.mark.parametrize(
    ('stem', 'message'),
    [
        ('sim_retinanet_r101_retinanet_r18_fpn_1x_coco', 'not the method'),
        ('ssim_retinanet_r18_fpn_1x_coco', 'not name its teacher'),
        ('ssim_retinanet_r101_retinanet_r18_fpn_2x_coco', 'not end in _1x_coco'),
        ('ssim_retinanet_r101_retinanet_r34_fpn_1x_coco', 'not name its student'),
        ('ssim_retinanet_r50_retinanet_r18_fpn_1x_coco', 'not name its teacher'),
    ],
)
def test_wrong_name_is_noticed(stem: str, message: str):
    assert message in name_problem(stem, 'ssim', 'retinanet_r18_fpn_1x_coco', 'retinanet_r101_fpn_1x_coco')


# ---- keys -----------------------------------------------------------------------------------------------------------


def known_keys() -> set[str]:
    return {name for name in inspect.signature(Runner.__init__).parameters if name != 'self'} | BESIDE_RUNNER


def unknown_keys(text: str) -> list[str]:
    """Top-level names that nobody reads: neither the Runner nor the file itself."""
    tree = ast.parse(text)
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    written = {target.id for target in targets if isinstance(target, ast.Name)}
    return sorted(written - read - known_keys())


@pytest.mark.parametrize('path', [*LEAVES, *BASES], ids=name_of)
def test_file_has_only_known_keys(path: Path):
    assert sorted(set(unknown_keys(path.read_text(encoding='utf-8'))) - inherited_keys(path)) == []


def inherited_keys(path: Path) -> set[str]:
    """Names that MMDetection's own files define, which a file may override for their sake (`data_root`)."""
    keys = {'dataset_type', 'data_root', 'backend_args', 'metainfo'}
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in tree.body:
        if assigns_base(node):
            bases = ast.literal_eval(node.value)
            for base in [bases] if isinstance(bases, str) else bases:
                file = find_config(base) if '::' in base else path.parent / base
                keys |= set(Config.fromfile(str(file)).keys())
    return keys


def test_misspelt_key_is_noticed():
    assert unknown_keys("size = 3\nmodel = dict(size=size)\nlod_from = 'x.pth'\n") == ['lod_from']


@pytest.mark.parametrize('path', [path for path in BASES if path.parent.name == 'methods'], ids=name_of)
def test_method_file_defines_only_the_distiller(path: Path):
    assert set(Config.fromfile(str(path)).keys()) == {'distiller'}


@each_leaf
def test_parses_and_survives_dump_and_reload(path: Path, tmp_path: Path):
    cfg = parsed(path)
    cfg.dump(str(tmp_path / path.name))
    again = Config.fromfile(str(tmp_path / path.name))
    assert again._cfg_dict.to_dict() == cfg._cfg_dict.to_dict()


@each_leaf
def test_wiring_passes_the_cheap_checks(path: Path):
    assert list(check_distiller(parsed(path))) == []
    with scope_of(parsed(path)):
        assert list(check_classes(parsed(path))) == []


LAMBDA = 'distiller.distill_losses.loss_ssim.loss.loss_weight'


def test_weight_is_changed_by_cfg_options_in_the_model_alone():
    path = str(CONFIGS / 'ssim' / 'ssim_retinanet_r101_retinanet_r50_fpn_1x_coco.py')
    changed = load_config(path, {f'model.{LAMBDA}': 2.0})
    assert changed.model.distiller.distill_losses.loss_ssim.loss.loss_weight == 2.0
    assert list(check_distiller(changed)) == []
    assert len(list(check_distiller(load_config(path, {LAMBDA: 2.0})))) == 1


@pytest.mark.parametrize(('place', 'problems'), [('model = dict({})', 0), ('{}', 1)])
def test_leaf_that_inherits_a_leaf_may_change_the_model_alone(place: str, problems: int, tmp_path: Path):
    base = CONFIGS / 'ssim' / 'ssim_retinanet_r101_retinanet_r50_fpn_1x_coco.py'
    weight = 'distiller=dict(distill_losses=dict(loss_ssim=dict(loss=dict(loss_weight=2.0))))'
    (tmp_path / 'leaf.py').write_text(f"_base_ = '{base}'\n" + place.format(weight) + '\n')
    assert len(list(check_distiller(load_config(str(tmp_path / 'leaf.py'))))) == problems


def scope_of(cfg: Config) -> Any:
    from mmengine.registry import DefaultScope

    return DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet'))


@each_leaf
def test_teacher_has_weights(path: Path):
    model = parsed(path).model
    if 'teacher' in model and not model.get('teacher_ckpt'):
        assert load_model_source(model.teacher).weights, f'no published weights for {model.teacher}'


# ---- a training step ------------------------------------------------------------------------------------------------


def first_batch(cfg: Config) -> dict[str, Any]:
    return next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))


def training_step(cfg: Config, batch: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Build model and optimiser as the Runner would, and take one step of a later epoch."""
    torch.manual_seed(1)  # another seed than that of the made teachers: equal networks have nothing to learn
    MessageHub.get_current_instance().update_info_dict(LATER)
    model = ROOT_MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    move_gains(model)
    model.train()
    logs = model.train_step(batch, build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)))
    return model, {name: torch.as_tensor(value).detach() for name, value in logs.items()}


def move_gains(model: torch.nn.Module) -> None:
    """As training will: while the gains of a self-teacher are 0, its features are the student's."""
    for module in model.modules():
        if isinstance(module, ResidualBiFPNSelfTeacher):
            for gain in module.gains:
                torch.nn.init.constant_(gain, 0.1)


def silent_losses(model: torch.nn.Module, logs: dict[str, torch.Tensor]) -> list[str]:
    """Distillation losses that are 0 in the step although their weight in the config is not."""
    by_length = sorted(model.distiller.mappings, key=len, reverse=True)  # `loss_a_b` is not a level of `loss_a`
    said = [f'{name}_' for name, value in logs.items() if value != 0]
    heard = {next((loss for loss in by_length if name.startswith(f'distill.{loss}_')), None) for name in said}
    return [loss for loss in model.distiller.mappings if loss not in heard]


@each_leaf
def test_takes_one_training_step(path: Path, made: Path):
    cfg = parsed(path)
    only_detectors(cfg)
    with scope_of(cfg):
        small = shrink(cfg, made)
        for hook in [*(small.get('default_hooks') or {}).values(), *(small.get('custom_hooks') or [])]:
            if hook is not None and hook['type'] != 'DetVisualizationHook':  # which asks for the Runner's visualizer
                ROOT_HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})
        batch = first_batch(small)
        boxes = [len(sample.gt_instances) for sample in batch['data_samples']]
        model, logs = training_step(small, batch)
    assert any(boxes), 'no object is left in the batch'
    assert all(torch.isfinite(value).all() for value in logs.values()), logs
    if path.parent.name in METHODS:
        assert model.distiller.mappings, f'no distillation loss among {list(logs)}'
        assert silent_losses(model, logs) == [], logs


LOGITS_OF_YOLOX = CONFIGS / 'ikd' / 'ikd_yolox_s_yolox_tiny_8xb8-100e_kitti.py'


@pytest.mark.parametrize('mistake', ['student is its own teacher', 'no boxes'])
def test_a_loss_that_is_zero_beside_others_is_noticed(mistake: str, made: Path):
    teacher = 'model.distiller.loss_forward_mappings.loss_ikd_logit.preds_T.from_student'
    small = shrink(load_config(str(LOGITS_OF_YOLOX), {teacher: mistake != 'no boxes'}), made)
    batch = first_batch(small)
    if mistake == 'no boxes':
        for sample in batch['data_samples']:
            sample.gt_instances = sample.gt_instances[:0]
    assert silent_losses(*training_step(small, batch)) == ['loss_ikd_logit']


def only_detectors(cfg: Config) -> None:
    if cfg.get('default_scope', 'mmdet') != 'mmdet':
        pytest.skip('a classifier: tests/test_models/test_algorithms/test_self_teacher_classifier.py runs its step')


@each_leaf
def test_data_set_and_metric_of_validation_build(path: Path, made: Path):
    cfg = parsed(path)
    only_detectors(cfg)
    with scope_of(cfg):
        small = shrink(cfg, made)
        assert len(ROOT_DATASETS.build(copy.deepcopy(small.val_dataloader.dataset))) > 0
        metrics = small.val_evaluator if isinstance(small.val_evaluator, list) else [small.val_evaluator]
        assert all(ROOT_METRICS.build(copy.deepcopy(metric)) for metric in metrics)


# ---- what the configs cover -----------------------------------------------------------------------------------------


def used_types(node: Any) -> Iterator[str]:
    """Names of scope mmkd in a nested config."""
    if isinstance(node, dict):
        kind = node.get('type')
        if isinstance(kind, str) and kind.startswith('mmkd.'):
            yield kind.removeprefix('mmkd.')
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from used_types(child)


def registered_names() -> set[str]:
    registries = (registry.MODELS, registry.DATASETS, registry.TRANSFORMS, registry.METRICS, registry.HOOKS)
    for one in registries:
        one.import_from_location()
    return {name for one in registries for name in one.module_dict}


def test_every_registered_class_is_used_by_a_config():
    used = {name for path in LEAVES for name in used_types(parsed(path)._cfg_dict.to_dict())}
    assert sorted(registered_names() - used - BROUGHT_BY_ALGORITHMS) == []


def test_every_method_has_readme_and_row():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    rows = [line for line in readme.splitlines() if line.startswith('|')]
    for method in METHODS:
        assert (CONFIGS / method / 'README.md').is_file(), method
        assert any(f'(configs/{method})' in row for row in rows), f'README.md has no row that links configs/{method}'


@pytest.mark.parametrize('path', [path for path in LEAVES if path.parent.name in METHODS], ids=name_of)
def test_method_readme_names_every_config(path: Path):
    text = (path.parent / 'README.md').read_text(encoding='utf-8')
    assert path.name in text or path.stem in text

"""The registries: children of MMEngine's root, found by name without any import, and the names that are promised."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmengine.registry
import pytest
from mmengine.registry import Registry

from mmkd import registry

ROOT = Path(__file__).resolve().parents[1]

# DESIGN section 3.
PROMISED = {
    'MODELS': (
        *('TeacherStudentDistill', 'MultiScaleSelfDistill', 'SelfTeacherDistill', 'DetectionDistiller', 'GaussianMask'),
        *('SSIMLoss', 'NormalizedLpLoss', 'MaskedFeatureLoss', 'DecoupledLogitLoss', 'SoftTargetLoss'),
        *('AttentionMapLoss', 'FSPLoss', 'ExplorationLoss', 'FeatureAlignmentLoss', 'PyramidLoss'),
        *('FeatureResampler', 'SpatialAttention', 'FeatureAlignment', 'IntermediateGuidance', 'PyramidConnector'),
        'BiFPNSelfTeacher',
    ),
    'DATASETS': ('KittiDataset',),
    'METRICS': ('KittiMetric',),
}
PROMISED_FUNCTIONS = (
    'mmkd.functional.ssim.ssim_map',
    'mmkd.functional.gaussian_mask.gaussian_box_mask',
    'mmkd.functional.divergence.decoupled_kl_divergence',
    'mmkd.functional.attention.attention_map',
    'mmkd.functional.relation.fsp_matrix',
    'mmkd.evaluation.kitti_ap.kitti_eval',
)
PROMISED_METHODS = {'ssim', 'mssd', 'ikd', 'mkd', 'frskd'}
PROMISED_TOOLS = {
    *('quickstart.sh', 'run_tests.sh', 'train.py', 'test.py', 'dist_train.sh', 'dist_test.sh', 'slurm_train.sh'),
    *('slurm_test.sh', 'check_config.py', 'export_student.py', 'compare_methods.py', 'benchmark_cost.py'),
    *('visualize_distillation.py', 'new_config.py', 'kitti_to_coco.py', 'eval_kitti.py'),
}

# Promised and not there yet. A name that arrives must leave these sets: the tests below compare for equality.
MISSING_NAMES: set[str] = set()
MISSING_METHODS: set[str] = set()
MISSING_TOOLS: set[str] = set()

KINDS = [name for name, value in vars(registry).items() if isinstance(value, Registry) and not name.startswith('ROOT_')]


@pytest.mark.parametrize('kind', KINDS)
def test_registry_is_a_child_of_mmengines_root(kind: str):
    own = getattr(registry, kind)
    assert own.parent is getattr(mmengine.registry, kind)
    assert own.parent.parent is None
    assert own.scope == 'mmkd'


@pytest.mark.parametrize('kind', KINDS)
def test_locations_can_be_imported_and_register_something(kind: str):
    own = getattr(registry, kind)
    for location in own._locations:
        importlib.import_module(location)
    assert len(own) > 0


@pytest.mark.parametrize('kind', KINDS)
def test_classes_are_defined_in_this_package_and_named_as_registered(kind: str):
    own = getattr(registry, kind)
    own.import_from_location()
    for name, cls in own.module_dict.items():
        assert cls.__module__.startswith('mmkd.'), name
        assert cls.__name__ == name


def test_promised_names_are_registered():
    missing = {name for kind, names in PROMISED.items() for name in names if getattr(registry, kind).get(name) is None}
    assert missing == MISSING_NAMES


@pytest.mark.parametrize('path', PROMISED_FUNCTIONS)
def test_promised_function_is_there(path: str):
    module, name = path.rsplit('.', 1)
    assert callable(getattr(importlib.import_module(module), name))


def test_promised_methods_have_a_folder_and_a_method_file():
    configs = ROOT / 'configs'
    there = {
        m for m in PROMISED_METHODS if (configs / m).is_dir() and (configs / '_base_/methods' / f'{m}.py').is_file()
    }
    assert PROMISED_METHODS - there == MISSING_METHODS


def test_promised_tools_are_there():
    there = {path.name for path in (ROOT / 'tools').iterdir()}
    assert PROMISED_TOOLS - there == MISSING_TOOLS


RESOLVE = """
from mmengine.config import Config  # what any tool of MMEngine imports, and nothing of mmkd
from mmengine.registry import {kinds}
import sys
before = [name for name in sys.modules if name.split('.')[0] == 'mmkd']
for registry, name in ({pairs},):
    if registry.get('mmkd.' + name) is None:
        print('missing', name)
print('imported before:', before)
"""


def test_names_resolve_in_a_fresh_process_without_imports(tmp_path: Path):
    pairs = [(kind, name) for kind, names in PROMISED.items() for name in names if name not in MISSING_NAMES]
    text = RESOLVE.format(kinds=', '.join(PROMISED), pairs=', '.join(f'({kind}, {name!r})' for kind, name in pairs))
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', text], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert 'imported before: []' in done.stdout
    assert 'missing' not in done.stdout


# `torch.compiler.disable` loads torch's compiler with all that it needs: a fork tells first which parts of torch are
# asked for, so that what they load by themselves is known.
LOADED = """
import importlib, os, pkgutil, sys, torch
def load():
    package = importlib.import_module('mmkd.functional')
    names = [name for _, name, _ in pkgutil.walk_packages(package.__path__, 'mmkd.functional.')]
    for name in names:
        importlib.import_module(name)
    return names
out, into = os.pipe()
if os.fork() == 0:
    load()
    os.write(into, ' '.join(name for name in sys.modules if name.startswith('torch.')).encode())
    os._exit(0)
os.close(into)
for name in open(out).read().split():
    importlib.import_module(name)
before = set(sys.modules)
names = load()
beside = set(sys.modules) - before - {'mmkd', 'mmkd.functional', *names}
print(sys.modules['mmkd'].__path__[0], len(names), sep='\\n')
print(sorted(name for name in beside if name.split('.')[0] not in sys.stdlib_module_names))
"""


def loaded_with_functional(root: Path, folder: Path) -> tuple[str, int, str]:
    """Folder of the package in a fresh process, number of its functional modules, and what they load beside torch.

    What torch itself imports is there before them.
    """
    environment = dict(os.environ, PYTHONPATH=str(root))
    done = subprocess.run([sys.executable, '-c', LOADED], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    package, modules, beside = done.stdout.splitlines()
    return package, int(modules), beside


def test_functional_needs_torch_alone(tmp_path: Path):
    files = [path for path in (ROOT / 'mmkd/functional').glob('*.py') if path.name != '__init__.py']
    assert len(files) >= 10
    assert loaded_with_functional(ROOT, tmp_path) == (str(ROOT / 'mmkd'), len(files), '[]')


def test_whatever_else_functional_loads_is_named(tmp_path: Path):
    for name in ('__init__.py', 'near_names.py', 'functional/__init__.py'):
        (tmp_path / 'mmkd' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / 'mmkd' / name, tmp_path / 'mmkd' / name)
    (tmp_path / 'mmkd/functional/zz.py').write_text('import addict\nfrom mmkd.near_names import nearest\n')
    _, _, beside = loaded_with_functional(tmp_path, tmp_path)
    assert "'addict'" in beside
    assert "'mmkd.near_names'" in beside

"""mim's two combinations that work: a wheel with openmim 0.3.9, by name; editable with onedl-mim 0.5.1, by path.

The other two fail inside mim: openmim does not find editable packages, onedl-mim does not find the folder of a wheel
(notes of 2026; both are fixed in mim, not here). Each case trains one epoch of a toy detector in a fresh environment
on top of the one that runs the tests.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from made_packages import PLANTED, copy_checkout
from mmengine.config import Config

from mmkd.testing.shrink import shrink
from mmkd.testing.toy_data import TOY_CLASSES
from mmkd.testing.toy_detectors import toy_student

pytestmark = pytest.mark.slow
MIM_NEEDS = ('click', 'colorama', 'model-index', 'opendatalab', 'ordered-set', 'pandas', 'requests', 'tabulate')
LIMITS = Path(__file__).resolve().parents[1] / 'requirements' / 'constraints.txt'


def run(*command: object, cwd: Path) -> str:
    """Runs a command without the checkout on the import path; returns what it printed, or fails with it."""
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the checkout whose planted config trains a toy detector on toy data."""
    copy = copy_checkout(tmp_path / 'source')
    base = Path(sysconfig.get_paths()['purelib']) / 'mmdet' / '.mim' / 'configs'
    cfg = Config.fromfile(str(base / 'retinanet' / 'retinanet_r18_fpn_1x_coco.py'))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo = dict(classes=TOY_CLASSES)
    cfg = shrink(cfg, tmp_path)
    cfg.model = toy_student()
    cfg.dump(str(copy / PLANTED))
    return copy


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Interpreter of a fresh environment that sees the packages of the running one."""
    run(sys.executable, '-m', 'venv', tmp_path / 'env', cwd=tmp_path)
    python = tmp_path / 'env' / 'bin' / 'python'
    site = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])', cwd=tmp_path).strip())
    (site / 'below.pth').write_text(f'import site; site.addsitedir({sysconfig.get_paths()["purelib"]!r})\n')
    return python


def install_mim(python: Path, name: str, cwd: Path) -> None:
    """Installs one of the two mims and the part of its requirements that training needs; skips without a network."""
    command = [python, '-m', 'pip', 'install', '-q', '--no-deps', '-c', LIMITS, name, *MIM_NEEDS]
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'{name} cannot be installed here: {done.stderr[-300:]}')


def install_mmkd(python: Path, *what: object, cwd: Path) -> None:
    """Installs the copy without touching anything else."""
    run(python, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--ignore-installed', *what, cwd=cwd)


def test_wheel_is_trained_by_openmim_by_name(source: Path, python: Path, tmp_path: Path) -> None:
    install_mim(python, 'openmim==0.3.9', tmp_path)
    install_mmkd(python, source, cwd=tmp_path)
    shutil.rmtree(source)
    command = [python, '-m', 'mim', 'train', 'mmkd', Path(PLANTED).name, '--gpus', '0', '--work-dir', 'out']
    output = run(*command, cwd=tmp_path)
    assert '/site-packages/mmkd/.mim/tools/train.py' in output
    assert (tmp_path / 'out' / 'epoch_1.pth').exists()


def test_editable_install_is_trained_by_onedl_mim_by_path(source: Path, python: Path, tmp_path: Path) -> None:
    install_mim(python, 'onedl-mim==0.5.1', tmp_path)
    install_mmkd(python, '-e', source, cwd=tmp_path)
    command = [python, '-m', 'mim', 'train', 'mmkd', source / PLANTED, '--gpus', '0', '--work-dir', 'out']
    output = run(*command, cwd=tmp_path)
    assert f'{source}/tools/train.py' in output
    assert (tmp_path / 'out' / 'epoch_1.pth').exists()


def test_installed_wheel_trains_from_its_packaged_config(source: Path, python: Path, tmp_path: Path) -> None:
    install_mmkd(python, source, cwd=tmp_path)
    shutil.rmtree(source)
    where = run(python, '-c', 'import mmkd; print(mmkd.__path__[0])', cwd=tmp_path).strip()
    assert 'site-packages' in where
    config = 'mmkd::' + PLANTED.removeprefix('configs/')
    run(python, f'{where}/.mim/tools/train.py', config, '--work-dir', 'out', cwd=tmp_path)
    assert (tmp_path / 'out' / 'epoch_1.pth').exists()

"""What the packages contain, and that an installed one works without the checkout."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from made_packages import PLANTED, ROOT, backend, copy_checkout, files_below, files_in, metadata_of
from packaging.requirements import Requirement

import mmkd

# Of the OpenMMLab stack and what it stands on: `pip install mmkd` must leave all of it as it is.
STACK = ('torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmdetection', 'mmrazor', 'mmpretrain')


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp('source'))


@pytest.fixture(scope='module')
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('wheel')
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '-q',
        '--no-deps',
        '--no-build-isolation',
        '-w',
        str(out),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables under which the installed wheel, not the checkout, is `mmkd`."""
    site = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return os.environ | dict(PYTHONPATH=str(site), PYTHONSAFEPATH='1')


class TestWheel:
    def test_holds_every_module_config_and_tool_and_nothing_else(self, source: Path, wheel: Path) -> None:
        modules = {f'mmkd/{name}' for name in files_below(source / 'mmkd') if not name.startswith('.mim/')}
        mim = {f'mmkd/.mim/{part}/{name}' for part in ('configs', 'tools') for name in files_below(source / part)}
        assert files_in(wheel) == modules | mim | {'mmkd/.mim/model-index.yml'}
        assert f'mmkd/.mim/{PLANTED}' in mim

    def test_is_marked_as_typed(self, wheel: Path) -> None:
        assert 'mmkd/py.typed' in files_in(wheel)

    def test_has_the_version_of_the_package(self, wheel: Path) -> None:
        assert metadata_of(wheel)['Version'] == [mmkd.__version__]

    def test_requires_nothing_of_the_openmmlab_stack(self, wheel: Path) -> None:
        required = [Requirement(line) for line in metadata_of(wheel).get('Requires-Dist', [])]
        always = {item.name.lower() for item in required if not (item.marker and 'extra' in str(item.marker))}
        assert not {name for name in always if name.removeprefix('onedl-') in STACK}
        assert always

    def test_keeps_the_scripts_executable(self, wheel: Path) -> None:
        for info in zipfile.ZipFile(wheel).infolist():
            if info.filename.endswith('.sh') and '/_' not in info.filename:
                assert (info.external_attr >> 16) & 0o111, info.filename

    def test_forgets_a_config_that_was_removed_since_the_last_build(self, source: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(source, tmp_path / 'copy', symlinks=True))
        stale = f'mmkd/.mim/{PLANTED}'
        assert stale in files_in(backend(copy, 'build_wheel', tmp_path / 'first'))
        (copy / PLANTED).unlink()
        assert stale not in files_in(backend(copy, 'build_wheel', tmp_path / 'second'))

    def test_is_the_same_when_built_from_the_source_package(self, source: Path, wheel: Path, tmp_path: Path) -> None:
        archive = backend(source, 'build_sdist', tmp_path)
        with tarfile.open(archive) as tar:
            # without filter= on a Python before 3.11.4, which does not know it
            tar.extractall(tmp_path, **(dict(filter='data') if hasattr(tarfile, 'data_filter') else {}))
        unpacked = tmp_path / archive.name.removesuffix('.tar.gz')
        assert not (unpacked / 'mmkd' / '.mim').exists()
        assert files_in(backend(unpacked, 'build_wheel', tmp_path / 'wheel')) == files_in(wheel)


def test_editable_install_links_the_checkout(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / 'copy'))
    mim = copy / 'mmkd' / '.mim'
    mim.mkdir()
    (mim / 'left_over').touch()
    editable = backend(copy, 'build_editable', tmp_path / 'out')
    assert sorted(path.name for path in mim.iterdir()) == ['configs', 'model-index.yml', 'tools']
    assert all(path.is_symlink() and not os.path.isabs(os.readlink(path)) for path in mim.iterdir())
    assert (mim / 'configs').resolve() == (copy / 'configs').resolve()
    assert not [name for name in files_in(editable) if '.mim' in name]


def test_wheel_after_an_editable_install_holds_copies(source: Path, wheel: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / 'copy'))
    backend(copy, 'build_editable', tmp_path / 'out')
    assert files_in(backend(copy, 'build_wheel', tmp_path / 'wheel')) == files_in(wheel)


def test_installed_wheel_finds_its_configs_outside_the_checkout(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / 'heir.py').write_text("_base_ = 'mmkd::planted/planted_by_a_test.py'\nmodel = dict()\n")
    code = (
        'import mmkd\n'
        'from mmkd.engine.launch import load_config\n'
        "print(mmkd.__file__)\nprint(load_config('heir.py').planted)\n"
    )
    command = [sys.executable, '-W', 'ignore', '-c', code]
    done = subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, value = done.stdout.splitlines()[-2:]
    assert where.startswith(installed['PYTHONPATH'])
    assert value == 'found'


def test_model_index_lists_every_metafile_and_no_other() -> None:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').rglob('metafile.yml')}
    assert set(index['Import'] or []) == present


def requirement_lines(name: str) -> list[Requirement]:
    """The requirements in requirements/`name`.txt."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [Requirement(line.split('#')[0]) for line in lines if line.split('#')[0].strip()]


def test_no_constraint_contradicts_a_pinned_requirement() -> None:
    limits = {item.name: item.specifier for item in requirement_lines('constraints')}
    for path in (ROOT / 'requirements').glob('*.txt'):
        for item in requirement_lines(path.stem):
            for pin in re.findall(r'==([\w.]+)', str(item.specifier)):
                assert pin in limits.get(item.name, item.specifier), f'{path.name}: {item}'


def imported_modules(*folders: str) -> set[str]:
    """Top-level names of all modules that the Python files below the folders import."""
    names: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split('.')[0])
    return names


def with_dependencies(names: set[str]) -> set[str]:
    """Installed distributions of these names and all that they require, in lower case with hyphens."""
    found: set[str] = set()
    waiting = {re.sub(r'[-_.]+', '-', name).lower() for name in names}
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        needed = [Requirement(line) for line in lines]
        always = {item.name for item in needed if not item.marker or item.marker.evaluate({'extra': ''})}
        waiting |= {re.sub(r'[-_.]+', '-', item).lower() for item in always} - found
    return found


def test_every_import_is_in_the_requirements() -> None:
    folder = ROOT / 'requirements'
    files = [str(path.relative_to(folder).with_suffix('')) for path in folder.rglob('*.txt')]
    required = with_dependencies({item.name for name in files for item in requirement_lines(name)})
    sources = importlib.metadata.packages_distributions()
    for module in imported_modules('mmkd', 'tools', 'tests') - {'mmkd', 'setuptools'}:
        given = {re.sub(r'[-_.]+', '-', name).lower() for name in sources.get(module, [])}
        assert not given or given & required, f'{module} comes from {given}, which no file in requirements/ names'


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    headings = re.findall(r'^## \[(.+?)\]', (ROOT / 'CHANGELOG.md').read_text(), flags=re.MULTILINE)
    assert citation['version'] == mmkd.__version__
    assert mmkd.__version__ in headings or headings[0] == 'Unreleased'

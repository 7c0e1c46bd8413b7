"""Places that cannot be written are refused before any work, in one line; what else a command cannot use as well."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmkd.engine import distillation_pictures, new_config
from mmkd.engine import visualize as visualize_module
from mmkd.engine.command_line import check_output, run_command
from mmkd.engine.visualize import VisualizeOptions, visualize
from mmkd.testing import benchmark_cost
from mmkd.testing.toy_run import ToyRun, make_toy_run
from mmkd.whole_files import CheckpointWriteError, folder_for, write_whole

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file, in whose place or below which something is to be written."""
    path = tmp_path / 'file'
    path.write_text('kept')
    return path


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without permission to write in it, also for root, who runs tests in containers."""
    folder = tmp_path / 'locked'
    folder.mkdir()
    allowed = os.access
    monkeypatch.setattr('os.access', lambda path, mode: Path(path) != folder and allowed(path, mode))
    return folder


def tool(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    """Run a tool's `main` in this process, up to its end."""
    monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run_command(module.main)


def never(*_: Any, **__: Any) -> None:
    raise AssertionError('work was begun')


def test_a_place_is_checked_and_nothing_is_made(file: Path, locked: Path, tmp_path: Path) -> None:
    for path in (tmp_path / 'new' / 'deep' / 'x', file):
        check_output('--out', path)
    for path in (tmp_path, tmp_path / 'new' / 'deep'):
        check_output('--out', path, folder=True)
    for path, folder in ((file / 'x', False), (file / 'x' / 'y', True), (file, True)):
        with pytest.raises(ValueError, match=f'--out {path}: {file} is a file, not a folder'):
            check_output('--out', path, folder=folder)
    with pytest.raises(ValueError, match=f'--out {tmp_path} is a folder; name a file'):
        check_output('--out', tmp_path)
    for path, folder in ((locked / 'x', False), (locked / 'x' / 'y', True), (locked, True)):
        with pytest.raises(PermissionError, match=f'no permission to write in {locked}'):
            check_output('--out', path, folder=folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'locked']


def test_a_file_that_may_not_be_changed_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('os.access', lambda path, mode: Path(path) != file)
    with pytest.raises(PermissionError, match='no permission to write over it'):
        check_output('--out', file)


@pytest.mark.parametrize('error', [PermissionError, NotADirectoryError, IsADirectoryError])
def test_a_place_that_cannot_be_used_is_a_mistake_and_no_crash(error: type, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error(13, 'Not possible', '/x/y')

    with pytest.raises(SystemExit) as leaving:
        run_command(main)
    said = capsys.readouterr().err
    assert leaving.value.code == 1
    assert f'ERROR ({error.__name__})' in said and '/x/y' in said and 'Traceback' not in said


def test_benchmark_cost_does_not_measure_what_it_cannot_write(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_cost, 'benchmark', never)
    with pytest.raises(SystemExit):
        tool('benchmark_cost', monkeypatch, 'mmkd::x/y.py', '--json', file / 'figures.json')
    assert f'{file} is a file, not a folder' in capsys.readouterr().err
    with pytest.raises(AssertionError, match='work was begun'):
        tool('benchmark_cost', monkeypatch, 'mmkd::x/y.py', '--json', file.with_name('figures.json'))


def test_new_config_asks_for_the_permission_first(
    locked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(new_config, 'load_config', never)
    with pytest.raises(SystemExit):
        tool('new_config', monkeypatch, '--student', 'x.py', '--method', 'mssd', '--out', locked / 'leaf.py')
    assert f'no permission to write in {locked}' in capsys.readouterr().err


OPTIONS: dict[str, tuple[Callable[[Path], dict], str]] = {
    'out is a file': (lambda file: dict(out=file), 'is a file, not a folder'),
    'out is below a file': (lambda file: dict(out=file / 'x'), 'is a file, not a folder'),
    'device': (lambda file: dict(device='gpu'), '--device gpu cannot be used.*such as cpu'),
    'unused levels': (lambda file: dict(levels=['p9'], kinds=['detections']), '--kinds asks for neither'),
}


@pytest.mark.parametrize('name', OPTIONS)
def test_visualize_refuses_before_it_loads_anything(
    name: str, toy: ToyRun, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, says = OPTIONS[name]
    for function in ('_subjects', 'load_distillation'):
        monkeypatch.setattr(visualize_module, function, never)
    options = dict(out=tmp_path / 'pictures', images=[str(next((toy.data / 'images').iterdir()))], device='cpu')
    with pytest.raises(ValueError, match=says):
        visualize(toy.load(), VisualizeOptions(**{**options, **change(file)}))


@pytest.mark.parametrize('levels', [['p9'], ['p4']])
def test_visualize_refuses_levels_that_nothing_wanted_has(
    levels: list[str], toy: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = str(next((toy.data / 'images').iterdir()))
    options = dict(out=tmp_path / 'pictures', images=[image], device='cpu', levels=levels)
    if levels == ['p4']:  # a level that is known, but that no loss has
        monkeypatch.setattr(distillation_pictures, '_loss_figures', lambda *_: [])
    with pytest.raises(ValueError, match=levels[0]):
        visualize(toy.load(), VisualizeOptions(**options, kinds=['losses', 'detections']))
    assert not (tmp_path / 'pictures').exists()


def test_a_folder_that_is_a_file_is_what_the_error_tells(file: Path) -> None:
    with pytest.raises(CheckpointWriteError, match='epoch_1.pth could not be written: (File exists|Not a directory)'):
        write_whole(b'x', file / 'epoch_1.pth')
    assert file.read_text() == 'kept'


def test_folders_made_for_a_file_go_when_it_is_not_written(tmp_path: Path) -> None:
    (tmp_path / 'there').mkdir()
    for name in ('there/x', 'new/deep/x'):
        with pytest.raises(KeyError), folder_for(tmp_path / name):
            assert (tmp_path / name).parent.is_dir()
            raise KeyError
    assert [path.name for path in tmp_path.rglob('*')] == ['there']
    with pytest.raises(KeyError), folder_for(tmp_path / 'new' / 'x'):
        (tmp_path / 'new' / 'of_another').touch()
        raise KeyError
    assert (tmp_path / 'new' / 'of_another').exists()
    with folder_for(tmp_path / 'kept' / 'x'):
        pass
    assert (tmp_path / 'kept').is_dir()

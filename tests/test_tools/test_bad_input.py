"""Wrong input to `tools/train.py` and `tools/test.py`: a few lines that name the mistake, exit code 1, nothing written.

Every case runs the tool's own `main()`; a few run the whole command in a process of its own.
"""

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.config import Config
from planted_mistakes import TRAINING, Bomb, hostile

from mmkd.engine.command_line import run_command
from mmkd.testing.toy_run import ToyRun, make_toy_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'))


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a tool's `main` with arguments; gives exit code and what it says on stderr."""

    def run(name: str, *arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            run_command(load_tool(name).main)
        except SystemExit as leaving:
            code = leaving.code
        return code, capsys.readouterr().err

    return run


def write(cfg: Config, path: Path) -> None:
    """As `cfg.dump`, which takes half a second to make it pretty."""
    path.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg._cfg_dict.to_dict().items()))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.mark.parametrize('name', TRAINING)
def test_training_refuses(name: str, toy: ToyRun, tmp_path: Path, tool: Callable) -> None:
    case, cfg = TRAINING[name], toy.load()
    case.change(cfg, toy, tmp_path)
    write(cfg, tmp_path / 'distill.py')
    before = snapshot(tmp_path)
    code, said = tool('train', tmp_path / 'distill.py', '--work-dir', tmp_path / 'run', *case.arguments)
    assert code == 1
    for part in case.says:
        assert part in said
    assert len(said.strip().splitlines()) <= 5
    assert snapshot(tmp_path) == before


def test_the_table_starts_from_a_run_that_trains(toy: ToyRun, tmp_path: Path, tool: Callable) -> None:
    assert tool('train', toy.config, '--work-dir', tmp_path / 'run')[0] == 0
    assert (tmp_path / 'run/epoch_1.pth').is_file()


@pytest.fixture(scope='module')
def finished(toy: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a finished run."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(toy.config), '--work-dir', str(folder)]
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    return folder


def test_several_mistakes_are_told_at_once(toy: ToyRun, tmp_path: Path, tool: Callable) -> None:
    cfg = toy.load(model__teacher_ckpt='/nowhere/t.pth')
    cfg.train_dataloader.dataset.ann_file = '/nowhere/train.json'
    cfg.model.architecture.bbox_head.num_classes = 7
    write(cfg, tmp_path / 'distill.py')
    code, said = tool('train', tmp_path / 'distill.py', '--work-dir', tmp_path / 'run')
    assert code == 1
    assert all(
        part in said
        for part in ('/nowhere/t.pth', '/nowhere/train.json', 'model.architecture.bbox_head.num_classes is 7')
    )


def test_a_work_dir_with_another_run_is_left_as_it_is(toy: ToyRun, finished: Path, tool: Callable) -> None:
    before = snapshot(finished)
    code, said = tool('train', toy.config, '--work-dir', finished)
    assert code == 1
    assert 'already holds a run' in said and '--resume' in said
    assert snapshot(finished) == before


def test_a_work_dir_that_is_a_file_is_refused(toy: ToyRun, tool: Callable) -> None:
    code, said = tool('train', toy.config, '--work-dir', toy.config)
    assert code == 1
    assert 'is a file' in said


@pytest.mark.parametrize(
    ('config', 'says'),
    [
        ('/nowhere/distill.py', ('/nowhere/distill.py does not exist',)),
        (str(ROOT / 'configs/ssim'), ('configs/ssim is a folder; a file is wanted',)),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coc.py', ('nearest: retinanet/retinanet_r50_fpn_1x_coco.py',)),
        ('mmkd::ssim/no_such.py', ("no config 'ssim/no_such.py'",)),
    ],
)
@pytest.mark.parametrize('name', ['train', 'test'])
def test_an_unknown_config_is_refused(name: str, config: str, says: tuple[str, ...], tool: Callable) -> None:
    code, said = tool(name, config, *(['x.pth'] if name == 'test' else []))
    assert code == 1
    assert all(part in said for part in says)


@pytest.mark.parametrize(
    ('text', 'says'),
    [('model = dict(', 'SyntaxError'), ('a = undefined_name', 'undefined_name'), ("_base_ = './no.py'", 'no.py')],
)
def test_a_config_with_a_mistake_of_python_is_refused(text: str, says: str, tmp_path: Path, tool: Callable) -> None:
    (tmp_path / 'c.py').write_text(text)
    code, said = tool('train', tmp_path / 'c.py')
    assert code == 1
    assert 'no valid configuration' in said and says in said


def test_a_config_that_inherits_itself_is_refused(tmp_path: Path, tool: Callable) -> None:
    """MMEngine's loader would follow it for minutes."""
    (tmp_path / 'a.py').write_text("_base_ = ['mmdet::_base_/default_runtime.py', './b.py']")
    (tmp_path / 'b.py').write_text("_base_ = '../x/a.py'".replace('x', tmp_path.name))
    code, said = tool('train', tmp_path / 'a.py')
    assert code == 1
    assert '_base_ leads back to the file itself: a.py -> b.py -> a.py' in said


def test_a_hostile_checkpoint_is_not_executed_in_training(toy: ToyRun, tmp_path: Path, tool: Callable) -> None:
    cfg = toy.load()
    hostile(cfg, toy, tmp_path)
    write(cfg, tmp_path / 'distill.py')
    tool('train', tmp_path / 'distill.py', '--work-dir', tmp_path / 'run')
    assert not (tmp_path / 'executed').exists()
    os.system(f'{sys.executable} -c "import pickle; pickle.load(open({str(tmp_path / "bomb.pth")!r}, {"rb"!r}))"')
    assert (tmp_path / 'executed').exists(), 'the planted file must be one that would execute'


def damaged_checkpoint(kind: str, toy: ToyRun, finished: Path, folder: Path) -> Path:
    whole = finished / 'epoch_1.pth'
    if kind == 'missing':
        return folder / 'none.pth'
    path = folder / f'{kind}.pth'
    if kind == 'truncated':
        path.write_bytes(whole.read_bytes()[:20_000])
    elif kind == 'hostile':
        path.write_bytes(pickle.dumps(Bomb(folder / 'executed'), protocol=2))
    elif kind == 'teacher':
        path.write_bytes(toy.teacher_ckpt.read_bytes())
    elif kind == 'mmrazor':
        state = torch.load(toy.teacher_ckpt, weights_only=True)['state_dict']
        torch.save(dict(state_dict={f'architecture.{k}': v for k, v in state.items()}), path)
    else:
        torch.save(dict(weights=[1, 2]), path)
    return path


@pytest.mark.parametrize(
    ('kind', 'says'),
    [
        ('missing', 'none.pth does not exist'),
        ('truncated', 'cut off or no checkpoint'),
        ('hostile', 'is refused'),
        ('teacher', 'does not fit RetinaNet'),
        ('mmrazor', 'MMRazor algorithm'),
        ('no state', 'no state_dict'),
    ],
)
def test_testing_refuses_a_checkpoint(
    kind: str, says: str, toy: ToyRun, finished: Path, tmp_path: Path, tool: Callable
) -> None:
    path = damaged_checkpoint(kind, toy, finished, tmp_path)
    before = snapshot(tmp_path)
    code, said = tool('test', toy.config, path, '--work-dir', tmp_path / 'run')
    assert code == 1
    assert says in said
    assert snapshot(tmp_path) == before


def test_testing_refuses_an_out_file_of_another_kind(
    toy: ToyRun, finished: Path, tmp_path: Path, tool: Callable
) -> None:
    code, said = tool('test', toy.config, finished / 'epoch_1.pth', '--out', tmp_path / 'out.json')
    assert code == 1
    assert '.pkl' in said and 'out.json' in said


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda saved: saved['mmkd']['teacher'].update(sha256='0' * 64), 'another teacher'),
        (lambda saved: saved['mmkd'].update(world_size=4, images=99), '4 processes, now 1'),
        (lambda saved: saved['mmkd'].update(inside_epoch=True), 'inside an epoch'),
        (lambda saved: saved.pop('optimizer'), 'holds no optimizer, as the best_*.pth'),
        (lambda saved: saved.pop('mmkd'), 'not written by a distillation'),
    ],
    ids=['teacher', 'processes', 'inside an epoch', 'best', 'plain'],
)
def test_resuming_another_run_is_refused(
    change: Callable, says: str, toy: ToyRun, finished: Path, tmp_path: Path, tool: Callable
) -> None:
    from mmkd.compat import load_checkpoint_file

    saved = load_checkpoint_file(str(finished / 'epoch_1.pth'))
    change(saved)
    folder = tmp_path / 'run'
    folder.mkdir()
    torch.save(saved, folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    before = snapshot(folder)
    code, said = tool('train', toy.config, '--work-dir', folder, '--resume')
    assert code == 1
    assert says in said
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before


def test_the_command_itself_ends_with_a_message_and_exit_code_1(toy: ToyRun, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(toy.config), '--work-dir', str(tmp_path / 'run')]
    command += ['--cfg-options', 'model.teacher_ckpt=/nowhere/t.pth']
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 1
    assert 'ERROR (PreflightError): teacher_ckpt: Checkpoint /nowhere/t.pth does not exist.' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'run').exists()

"""`tools/visualize_distillation.py`: which files it writes, what it loads, what it refuses."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmkd.engine.command_line import run_command
from mmkd.engine.visualize import load_distillation, split_files
from mmkd.testing.toy_run import ToyRun, make_toy_run

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'visualize_distillation.py'


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyRun:
    return make_toy_run(tmp_path_factory.mktemp('toy'))


@pytest.fixture
def checkpoint(toy: ToyRun) -> Path:
    """Of a distilled student, with its connectors; `plain.pth` beside it has the student alone."""
    path = toy.root / 'distilled.pth'
    if not path.exists():
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = MODELS.build(toy.load().model)
            nn.init.normal_(next(model.distiller.parameters()))
            torch.save(dict(state_dict=model.state_dict()), toy.root / 'plain.pth')
            apart = {name: module.saved_state() for name, module in model.apart_modules().items()}
            torch.save(dict(state_dict=model.state_dict(), mmkd=apart), path)
    return path


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the tool's `main`; gives exit code and what it says."""

    def run(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, 'argv', ['visualize_distillation', *map(str, arguments)])
        spec = importlib.util.spec_from_file_location('tool_visualize', TOOL)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = 0
        try:
            run_command(module.main)
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_one_call_draws_everything_and_the_next_overwrites_nothing(
    toy: ToyRun, checkpoint: Path, tmp_path: Path, tool: Callable
):
    image, out = toy.data / 'images' / 'val_00001.png', tmp_path / 'pictures'
    plain, truth = checkpoint.with_name('plain.pth'), toy.data / 'annotations' / 'val.json'
    call = (toy.config, checkpoint, image, '--out', out, '--plain', plain, '--annotations', truth, '--dpi', 40)
    code, said = tool(*call, '--levels', 'p3')
    assert code == 0, said
    names = sorted(path.name for path in out.iterdir())
    assert names == [f'val_00001_{kind}.png' for kind in ('attention', 'detections', 'loss_kd')]
    assert 'note:' not in said and all(name in said for name in names)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, said = tool(*call)
    assert code == 1 and 'is there already; choose another --out, or --force' in said
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert tool(*call, '--force', '--kinds', 'losses')[0] == 0
    assert (out / 'val_00001_loss_kd.png').read_bytes() != before['val_00001_loss_kd.png'], 'now with all levels'


def test_connectors_come_from_the_checkpoint(toy: ToyRun, checkpoint: Path):
    saved = torch.load(checkpoint, weights_only=True)
    model, remarks = load_distillation(toy.load(), str(checkpoint), 'cpu')
    assert remarks == []
    state = model.distiller.saved_state()
    assert state and all(torch.equal(value, saved['mmkd']['distiller'][name]) for name, value in state.items())
    _, remarks = load_distillation(toy.load(), str(checkpoint.with_name('plain.pth')), 'cpu')
    assert len(remarks) == 1 and 'holds no distiller' in remarks[0]


def wrong(kind: str, toy: ToyRun, checkpoint: Path, folder: Path) -> tuple[list, str]:
    """Arguments that are refused, and what is said."""
    image = toy.data / 'images' / 'val_00001.png'
    if kind == 'no image':
        return [toy.config, checkpoint], 'Name at least one image'
    if kind == 'missing image':
        return [toy.config, checkpoint, image.with_name('val_0001.png')], 'nearest: val_00001.png'
    if kind == 'no picture':
        return [toy.config, checkpoint, toy.config], 'is no image that OpenCV can read'
    if kind == 'index':
        return [toy.config, checkpoint, '--val', 2], 'has the images 0 to 1, not 2'
    if kind == 'plain config':
        return [toy.teacher, checkpoint, image], 'distils nothing'
    if kind == 'teacher':
        return [toy.config, toy.teacher_ckpt, image], 'does not fit RetinaNet'
    if kind == 'same name':
        return [toy.config, checkpoint, image, '--val', 0], 'Two images are called val_00001'
    saved = torch.load(checkpoint, weights_only=True)
    torch.save(dict(saved, mmkd=dict(distiller={})), folder / 'other.pth')
    return [toy.config, folder / 'other.pth', image], 'is of another method or pair'


KINDS = ['no image', 'missing image', 'no picture', 'index', 'plain config', 'teacher', 'same name', 'other method']


@pytest.mark.parametrize('kind', KINDS)
def test_refuses(kind: str, toy: ToyRun, checkpoint: Path, tmp_path: Path, tool: Callable):
    arguments, says = wrong(kind, toy, checkpoint, tmp_path)
    code, said = tool(*arguments, '--out', tmp_path / 'pictures')
    assert code == 1
    assert says in said
    assert not (tmp_path / 'pictures').exists()


def test_the_checkpoint_is_told_from_the_images():
    assert split_files(['a.pth', 'b.jpg'], named_images=False) == ('a.pth', ['b.jpg'])
    assert split_files(['b.jpg', 'c.png'], named_images=False) == (None, ['b.jpg', 'c.png'])
    assert split_files(['a.pth'], named_images=True) == ('a.pth', [])


def test_only_pictures_of_the_same_image_are_in_the_way(toy: ToyRun, checkpoint: Path, tmp_path: Path, tool: Callable):
    image, out = toy.data / 'images' / 'val_00001.png', tmp_path / 'pictures'
    odd, car, other = tmp_path / 'img[1].png', tmp_path / 'car.png', tmp_path / 'car_2.png'
    for copy in (odd, car, other):
        shutil.copy(image, copy)
    small = ('--out', out, '--dpi', 20, '--kinds', 'detections')
    assert tool(toy.config, checkpoint, odd, *small)[0] == 0
    code, said = tool(toy.config, checkpoint, odd, *small)
    assert code == 1 and 'img[1]_detections.png is there already' in said
    assert tool(toy.config, checkpoint, other, *small)[0] == 0
    code, said = tool(toy.config, checkpoint, car, *small)
    assert code == 0, said

"""Wrong input to `tools/train.py` and `tools/test.py`: a few lines that name the mistake, exit code 1, nothing written.

Every case runs the tool's own `main()`; a few run the whole command in a process of its own.
"""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmkd.engine.command_line import run_command
from mmkd.testing.toy_run import ToyRun, make_toy_run, neck_source

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


class Bomb:
    """A pickle of it leaves a file behind when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.path}',)


@dataclass
class Case:
    """A mistake: what is changed, and what the message must name.

    Args:
        change: changes the configuration in place; gets the toy run and a folder of its own.
        says: parts of the message.
        arguments: further arguments of the tool.
    """

    change: Callable[[Config, ToyRun, Path], None]
    says: tuple[str, ...]
    arguments: tuple[str, ...] = field(default=())


def put(key: str, value: Any) -> Callable[[Config, ToyRun, Path], None]:
    return lambda cfg, toy, folder: cfg.merge_from_dict({key: value})


def nothing(cfg: Config, toy: ToyRun, folder: Path) -> None:
    pass


def annotations(change: Callable[[dict], None]) -> Callable[[Config, ToyRun, Path], None]:
    """The training annotations, changed."""

    def write(cfg: Config, toy: ToyRun, folder: Path) -> None:
        content = json.loads((toy.data / 'annotations/train.json').read_text())
        change(content)
        (folder / 'train.json').write_text(json.dumps(content))
        cfg.train_dataloader.dataset.ann_file = str(folder / 'train.json')

    return write


def truncated(cfg: Config, toy: ToyRun, folder: Path) -> None:
    (folder / 'cut.pth').write_bytes(toy.teacher_ckpt.read_bytes()[:5000])
    cfg.model.teacher_ckpt = str(folder / 'cut.pth')


def text_as_checkpoint(cfg: Config, toy: ToyRun, folder: Path) -> None:
    (folder / 'page.pth').write_text('<html>404 not found</html>')
    cfg.model.teacher_ckpt = str(folder / 'page.pth')


def other_model(cfg: Config, toy: ToyRun, folder: Path) -> None:
    torch.save(dict(state_dict={'backbone.stem.weight': torch.zeros(3)}), folder / 'other.pth')
    cfg.model.teacher_ckpt = str(folder / 'other.pth')


def wrong_shape(cfg: Config, toy: ToyRun, folder: Path) -> None:
    state = torch.load(toy.teacher_ckpt, weights_only=True)['state_dict']
    state['bbox_head.retina_cls.weight'] = torch.zeros(720, 24, 3, 3)
    torch.save(dict(state_dict=state), folder / 'coco.pth')
    cfg.model.teacher_ckpt = str(folder / 'coco.pth')


def hostile(cfg: Config, toy: ToyRun, folder: Path) -> None:
    (folder / 'bomb.pth').write_bytes(pickle.dumps(dict(state_dict=Bomb(folder / 'executed')), protocol=2))
    cfg.model.teacher_ckpt = str(folder / 'bomb.pth')


def hostile_archive(cfg: Config, toy: ToyRun, folder: Path) -> None:
    torch.save(dict(state_dict=Bomb(folder / 'executed')), folder / 'archive.pth')
    cfg.model.teacher_ckpt = str(folder / 'archive.pth')


def of_mmrazor(cfg: Config, toy: ToyRun, folder: Path) -> None:
    state = torch.load(toy.teacher_ckpt, weights_only=True)['state_dict']
    torch.save(dict(state_dict={f'architecture.{k}': v for k, v in state.items()}), folder / 'razor.pth')
    cfg.model.teacher_ckpt = str(folder / 'razor.pth')


def no_connector(cfg: Config, toy: ToyRun, folder: Path) -> None:
    cfg.model.distiller.connectors = {}
    cfg.model.distiller.loss_forward_mappings.loss_kd.preds_S.pop('connector')


def rename_loss(cfg: Config, toy: ToyRun, folder: Path) -> None:
    distiller = cfg.model.distiller
    distiller.distill_losses = dict(kd=distiller.distill_losses.loss_kd)
    distiller.loss_forward_mappings = dict(kd=distiller.loss_forward_mappings.loss_kd)


def top_level(cfg: Config, toy: ToyRun, folder: Path) -> None:
    cfg.distiller = cfg.model.distiller.copy()
    cfg.distiller.schedules = dict(loss_kd=dict(begin=1))


def no_mapping(cfg: Config, toy: ToyRun, folder: Path) -> None:
    cfg.model.distiller.loss_forward_mappings = {}


MAPPING = 'model.distiller.loss_forward_mappings.loss_kd'
HEAD = 'model.architecture.bbox_head'
LOSS = 'model.distiller.distill_losses.loss_kd'
TRAIN = 'train_dataloader.dataset'

CASES: dict[str, Case] = {
    'data folder missing': Case(put(f'{TRAIN}.data_root', '/nowhere/coco'), ('/nowhere/coco does not exist', 'data_r')),
    'annotation file missing': Case(put(f'{TRAIN}.ann_file', '/nowhere/train.json'), ('/nowhere/train.json does not',)),
    'evaluator annotation file missing': Case(
        put('val_evaluator.ann_file', '/nowhere/val.json'), ('val_evaluator', '/nowhere/val.json does not exist')
    ),
    'class not in annotations': Case(
        put(f'{TRAIN}.metainfo', dict(classes=('circle', 'sqare', 'triangle', 'cross'))),
        ("the class 'sqare' is not in train.json", 'nearest: square'),
    ),
    'annotations of another kind': Case(annotations(lambda c: c.pop('categories')), ('no COCO annotation file',)),
    'annotations without images': Case(annotations(lambda c: c['images'].clear()), ('lists no image',)),
    'image folder wrong': Case(put(f'{TRAIN}.data_prefix.img', '/nowhere/images'), ('does not exist', 'data_prefix')),
    'path leaves the data folder': Case(
        annotations(lambda c: c['images'][0].update(file_name='../../../etc/passwd')),
        ('outside the data folder', '../../../etc/passwd'),
    ),
    'absolute path in annotations': Case(
        annotations(lambda c: c['images'][0].update(file_name='/etc/passwd')), ('outside the data folder', '/etc/passw')
    ),
    'num_classes': Case(put(f'{HEAD}.num_classes', 80), ('bbox_head.num_classes is 80', '4 classes: circle, square')),
    'bomb: num_classes': Case(put(f'{HEAD}.num_classes', 10**9), ('num_classes is 1000000000', 'more than')),
    'bomb: channels': Case(put('model.architecture.neck.out_channels', 10**8), ('neck.out_channels is 100000000',)),
    'bomb: batch size': Case(put('train_dataloader.batch_size', 10**8), ('batch_size is 100000000',)),
    'bomb: nested annotations': Case(
        lambda cfg, toy, folder: (
            (folder / 'a.json').write_text('[' * 200_000),
            put(f'{TRAIN}.ann_file', str(folder / 'a.json'))(cfg, toy, folder),
        ),
        ('no COCO annotation file',),
    ),
    'unknown detector': Case(put('model.architecture.type', 'RetinaNett'), ("'RetinaNett'", 'nearest: RetinaNet')),
    'unknown backbone': Case(put('model.architecture.backbone.type', 'ResNett'), ("registered as 'ResNett'", 'ResNet')),
    'unknown algorithm': Case(
        put('model.type', 'mmkd.TeacherStudentDistil'), ("'mmkd.TeacherStudentDistil'", 'mmkd.TeacherStudentDistill')
    ),
    'unknown loss type': Case(put(f'{LOSS}.loss.type', 'mmkd.NormalisedLpLoss'), ('nearest: mmkd.NormalizedLpLoss',)),
    'unknown connector type': Case(
        put('model.distiller.connectors.adapt.connector.type', 'mmkd.ConvConector'), ('mmkd.ConvConnector',)
    ),
    'unknown argument of a backbone': Case(
        put('model.architecture.backbone.dept', 18), ('ResNet takes no argument', "'dept'", 'nearest: depth')
    ),
    'unknown argument of a loss': Case(
        put(f'{LOSS}.loss.loss_wieght', 2.0), ("NormalizedLpLoss takes no argument 'loss_wieght'", 'loss_weight')
    ),
    'unknown argument of the algorithm': Case(
        put('model.teacher_checkpoint', 'x.pth'), ('TeacherStudentDistill takes no argument', 'teacher_ckpt')
    ),
    'teacher config missing': Case(
        put('model.teacher', '/nowhere/teacher.py'), ('/nowhere/teacher.py does not exist',)
    ),
    'teacher name wrong': Case(
        put('model.teacher', 'mmdet::retinanet/retinanet_r101_fpn_1x_coc.py'),
        ('mmdet has no config', 'nearest: retinanet/retinanet_r101_fpn_1x_coco.py'),
    ),
    'teacher package wrong': Case(put('model.teacher', 'mmdett::a/b.py'), ("'mmdett' is not installed",)),
    'teacher without weights': Case(put('model.teacher_ckpt', None), ('No weights are published', 'teacher_ckpt=')),
    'teacher checkpoint missing': Case(put('model.teacher_ckpt', '/nowhere/t.pth'), ('/nowhere/t.pth does not exist',)),
    'teacher checkpoint truncated': Case(truncated, ('cut.pth is cut off or no checkpoint',)),
    'teacher checkpoint is a web page': Case(text_as_checkpoint, ('page.pth is refused: it is damaged or wants',)),
    'teacher checkpoint of another model': Case(other_model, ('does not fit', 'missing', 'unexpected: backbone.stem')),
    'teacher checkpoint of other classes': Case(wrong_shape, ('retina_cls.weight (720', 'number of classes')),
    'teacher checkpoint executes code': Case(hostile, ('bomb.pth is refused', 'execute code', 'posix.system')),
    'teacher archive executes code': Case(hostile_archive, ('archive.pth is refused', 'execute code', 'posix.system')),
    'teacher checkpoint of MMRazor': Case(of_mmrazor, ('MMRazor algorithm', 'Export')),
    'inherit of nothing': Case(put('model.inherit', ['nek']), ("no part 'nek'", 'nearest: neck')),
    'layer unknown': Case(
        put('model.distiller.teacher_recorders.neck.source', 'nek'), ("teacher RetinaNet has no layer 'nek'", 'neck')
    ),
    'layer is never called': Case(
        put('model.distiller.student_recorders.neck.source', 'neck.fpn_convs'),
        ('neck.fpn_convs', 'never run', 'name a'),
    ),
    'recorder type unknown': Case(
        put('model.distiller.student_recorders.neck.type', 'ModuleOutput'), ("'ModuleOutput'", 'ModuleOutputs')
    ),
    'channels do not match': Case(no_connector, ('loss_kd does not fit', '16, 32, 48', '24, 32, 48')),
    'no common stride': Case(
        put(f'{MAPPING}.preds_T', neck_source(False, strides=(4,))), ('asks for stride 4', '(8, 16, 32, 64, 128)')
    ),
    'loss key without loss': Case(rename_loss, ('must contain "loss"', "'kd'")),
    'loss without mapping': Case(no_mapping, ("'loss_kd' has no entry in loss_forward_mappings",)),
    'mapping of unknown loss': Case(
        put('model.distiller.loss_forward_mappings.loss_dk', dict(preds_S=neck_source(True))), ('loss_dk', 'loss_kd')
    ),
    'mapping with unknown argument': Case(
        put(f'{MAPPING}.pred_S', neck_source(True)), ("takes no argument 'pred_S'", 'nearest: preds_S')
    ),
    'mapping lacks an argument': Case(
        put('model.distiller.loss_forward_mappings', dict(loss_kd=dict(_delete_=True, preds_S=neck_source(True)))),
        ("lacks the argument 'preds_T'",),
    ),
    'mapping with unknown recorder': Case(put(f'{MAPPING}.preds_T.recorder', 'nekc'), ("no 'nekc'", 'nearest: neck')),
    'mapping with unknown connector': Case(put(f'{MAPPING}.preds_S.connector', 'adpat'), ("'adpat'", 'adapt')),
    'mapping with unknown key': Case(
        put(f'{MAPPING}.preds_S.recorder_idx', 0), ("unknown key 'recorder_idx'", 'recor')
    ),
    'connector without use': Case(
        put('model.distiller.connectors.spare', dict(type='mmkd.ConvConnector')), ("'spare' is used by no loss",)
    ),
    'schedule for unknown loss': Case(
        put('model.distiller.schedules', dict(loss_dk=dict(begin=1))), ("unknown loss 'loss_dk'", 'nearest: loss_kd')
    ),
    'schedule with unknown ramp': Case(
        put('model.distiller.schedules', dict(loss_kd=dict(end=2, ramp='linar'))), ("got 'linar'", 'linear')
    ),
    'schedule with unknown key': Case(
        put('model.distiller.schedules', dict(loss_kd=dict(start=2))), ("'start'", 'WeightSchedule')
    ),
    'top-level distiller': Case(top_level, ('top-level distiller', 'no effect', 'model.distiller')),
    'load_from missing': Case(put('load_from', '/nowhere/s.pth'), ('load_from', '/nowhere/s.pth does not exist')),
    'resume from a missing file': Case(nothing, ('/nowhere/s.pth does not exist',), ('--resume', '/nowhere/s.pth')),
    'option that nobody reads': Case(
        nothing, ("nothing reads 'optim_wraper'", 'optim_wrapper'), ('--cfg-options', 'optim_wraper.optimizer.lr=1')
    ),
    'auto-scale without base': Case(nothing, ('auto_scale_lr.base_batch_size',), ('--auto-scale-lr',)),
    'no model': Case(lambda cfg, toy, folder: cfg.pop('model'), ('defines no model', 'base to inherit')),
}


@pytest.mark.parametrize('name', CASES)
def test_training_refuses(name: str, toy: ToyRun, tmp_path: Path, tool: Callable) -> None:
    case, cfg = CASES[name], toy.load()
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
    assert all(part in said for part in ('/nowhere/t.pth', '/nowhere/train.json', 'num_classes is 7'))


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
        (lambda saved: saved['mmkd'].update(world_size=4), '4 processes, now 1'),
        (lambda saved: saved['meta'].update(iter=1), 'inside an epoch'),
        (lambda saved: saved.pop('mmkd'), 'not written by a distillation'),
    ],
    ids=['teacher', 'processes', 'inside an epoch', 'plain'],
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

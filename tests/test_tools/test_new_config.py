"""`tools/new_config.py`: what it writes trains as it is; what cannot train is refused and nothing is written."""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmkd.engine.launch import load_config
from mmkd.engine.new_config import Request, Written, leaf_text, method_names, write_config
from mmkd.models.algorithms.model_config import config_folder
from mmkd.testing.detection_data import detection_data
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.shrink import shrink
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for configs and weights, with a small data set."""
    root = tmp_path_factory.mktemp('new_config')
    make_toy_data(root / 'data', train=2, val=1, size=(96, 64))
    return root


@pytest.fixture
def detector(toy: Path) -> Callable[..., str]:
    """Writes the config of a small detector, and weights beside it; gives its path."""

    def make(family: str, channels: int = 16, *, classes: int = 4) -> str:
        path = toy / f'{family}_{channels}_{classes}.py'
        if not path.exists():
            model = toy_detector(family, num_classes=classes, width=8, channels=channels, convs=1)
            cfg = training_config(model, detection_data(toy / 'data'), Schedule(1, (96, 64), 2), 0)
            path.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg._cfg_dict.to_dict().items()))
            torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), path.with_suffix('.pth'))
        return str(path)

    return make


def written(student: str, teacher: str | None, method: str, out: Path, **more: object) -> Written:
    weights = None if teacher is None else str(Path(teacher).with_suffix('.pth'))
    return write_config(Request(student, method, out, teacher, **dict(dict(teacher_ckpt=weights), **more)))


# Student, teacher, method, file that is chosen.
PAIRS = [
    (('retinanet', 16), ('retinanet', 24), 'ssim', 'ssim_adapt'),
    (('retinanet', 16), ('retinanet', 16), 'ssim', 'ssim'),
    (('retinanet', 16), ('retinanet', 24), 'ikd', 'ikd'),
    (('faster-rcnn', 16), ('faster-rcnn', 24), 'mkd', 'mkd_roi'),
    (('gfl', 16), ('retinanet', 24), 'mkd', 'mkd_neck'),
    (('retinanet', 16), None, 'frskd', 'frskd_dense'),
    (('yolox', 16), None, 'mssd', 'mssd'),
]


@pytest.mark.parametrize(('student', 'teacher', 'method', 'chosen'), PAIRS, ids=lambda value: str(value))
def test_what_is_written_trains(
    student: tuple,
    teacher: tuple | None,
    method: str,
    chosen: str,
    detector: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / 'deep' / 'leaf.py'
    found = written(detector(*student), None if teacher is None else detector(*teacher), method, out)
    assert found.method == chosen
    lines = out.read_text().splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 120 and out.read_text() == found.text
    assert [path.name for path in out.parent.iterdir()] == ['leaf.py']
    monkeypatch.chdir(tmp_path)  # whatever the working directory
    small = shrink(load_config(str(out)), tmp_path / 'made')
    MessageHub.get_current_instance().update_info_dict(dict(epoch=1, iter=0, max_epochs=12, max_iters=12))
    model = MODELS.build(copy.deepcopy(small.model))
    model.init_weights()
    batch = next(iter(Runner.build_dataloader(small.train_dataloader, seed=0)))
    logs = model.train().train_step(batch, build_optim_wrapper(model, copy.deepcopy(small.optim_wrapper)))
    distilled = {name: float(v.detach()) for name, v in logs.items() if name.startswith('distill.loss')}
    assert any(value > 0 for value in distilled.values()), distilled
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in logs.values())


def test_teacher_of_other_classes_is_refused_or_compared_by_features(detector: Callable[..., str], tmp_path: Path):
    student, teacher = detector('retinanet', 16), detector('retinanet', 24, classes=7)
    out = tmp_path / 'leaf.py'
    with pytest.raises(ValueError, match=r'other classes: 4 \(circle, square.*--other-classes'):
        written(student, teacher, 'ikd', out)
    assert not list(tmp_path.iterdir())
    assert written(student, teacher, 'ikd', out, other_classes=True).method == 'ikd_neck'


def test_a_pair_that_the_method_cannot_serve_is_refused(detector: Callable[..., str], tmp_path: Path):
    with pytest.raises(ValueError, match=r'l2 does not serve this pair, nothing was written:\n.*loss_l2'):
        written(detector('retinanet', 16), detector('retinanet', 24), 'l2', tmp_path / 'new' / 'folders' / 'leaf.py')
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused(detector: Callable[..., str], tmp_path: Path):
    wrong = Path(detector('retinanet', 16)).with_suffix('.pth')
    with pytest.raises(ValueError, match='teacher_ckpt: .*does not fit'):
        teacher = detector('retinanet', 24)
        written(detector('retinanet', 16), teacher, 'ssim', tmp_path / 'leaf.py', teacher_ckpt=str(wrong))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('change', 'error', 'says'),
    [
        (dict(method='simm'), ValueError, "No method is called 'simm'; nearest: ssim"),
        (dict(teacher=None, teacher_ckpt=None), ValueError, 'ssim needs a teacher.*mssd, frskd'),
        (dict(method='mssd'), ValueError, 'mssd has no teacher, the student teaches itself'),
        (dict(teacher_ckpt=None), ValueError, 'No weights are published for .*--teacher-ckpt'),
        (dict(teacher_ckpt='/nowhere.pth'), FileNotFoundError, '/nowhere.pth does not exist'),
        (dict(student='/nowhere.py'), FileNotFoundError, '/nowhere.py does not exist'),
        (dict(out=Path('leaf.yml')), ValueError, 'must end in .py, got leaf.yml'),
    ],
)
def test_a_wrong_request_is_refused(change: dict, error: type, says: str, detector: Callable[..., str], tmp_path: Path):
    teacher = detector('retinanet', 24)
    right = dict(student=detector('retinanet', 16), method='ssim', out=tmp_path / 'leaf.py', teacher=teacher)
    right['teacher_ckpt'] = str(Path(teacher).with_suffix('.pth'))
    with pytest.raises(error, match=says):
        write_config(Request(**{**right, **change}))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_needs_force(detector: Callable[..., str], tmp_path: Path):
    out = tmp_path / 'leaf.py'
    out.write_text('mine = 1\n')
    with pytest.raises(FileExistsError, match='is there already; --force'):
        written(detector('yolox', 16), None, 'mssd', out)
    assert out.read_text() == 'mine = 1\n'
    written(detector('yolox', 16), None, 'mssd', out, force=True)
    assert 'MultiScaleSelfDistill' in out.read_text()


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ("model = dict(type='ResNet', depth=18)", 'is no detector of MMDetection: its model is ResNet'),
        ("model = dict(type='mmkd.X', architecture=dict(type='Y'))", 'is a distillation already'),
        ('model_ = 1', 'defines no model'),
    ],
)
def test_what_is_no_detector_is_refused(text: str, says: str, detector: Callable[..., str], tmp_path: Path):
    (tmp_path / 'other.py').write_text(text)
    for student, teacher in (
        (str(tmp_path / 'other.py'), detector('yolox')),
        (detector('yolox'), tmp_path / 'other.py'),
    ):
        with pytest.raises(ValueError, match=says):
            write_config(Request(student, 'ssim', tmp_path / 'leaf.py', str(teacher), 'x.pth'))


def heirs(detector: Callable[..., str], folder: Path) -> tuple[Path, Path]:
    """A student that inherits from `middle.py` that inherits from `base.py`, and a teacher with a base."""
    (folder / 'base.py').write_text(Path(detector('retinanet', 16)).read_text())
    (folder / 'middle.py').write_text("_base_ = ['./base.py']\n")
    (folder / 'student.py').write_text("_base_ = 'middle.py'\n")
    (folder / 'teacher_base.py').write_text(Path(detector('retinanet', 24)).read_text())
    (folder / 'teacher.py').write_text("_base_ = 'teacher_base.py'\n")
    shutil.copy(Path(detector('retinanet', 24)).with_suffix('.pth'), folder / 'teacher.pth')
    (folder / 'link.py').symlink_to('student.py')
    return folder / 'student.py', folder / 'teacher.py'


OWN_FILES = {
    'student.py': 'the file of --student',
    'link.py': 'the file of --student',
    'middle.py': 'a base of --student',
    'base.py': 'a base of --student',
    'teacher.py': 'the file of --teacher',
    'teacher_base.py': 'a base of --teacher',
}


@pytest.mark.parametrize('name', OWN_FILES)
def test_what_the_new_config_is_made_of_is_never_written_over(name: str, detector: Callable[..., str], tmp_path: Path):
    student, teacher = heirs(detector, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for force in (True, False):
        with pytest.raises(ValueError, match=f'{name} is {OWN_FILES[name]} .*name another'):
            written(str(student), str(teacher), 'ssim', tmp_path / name, force=force)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_method_file_is_never_written_over(detector: Callable[..., str]):
    out = config_folder('mmkd') / '_base_' / 'methods' / 'mssd.py'
    before = out.read_bytes()
    try:
        with pytest.raises(ValueError, match='is a method file of mmkd'):
            written(detector('yolox', 16), None, 'mssd', out, force=True)
    finally:
        out.write_bytes(before)


def test_a_home_folder_is_understood(detector: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    written(detector('yolox', 16), None, 'mssd', Path('~/leaf.py'))
    assert [path.name for path in tmp_path.iterdir()] == ['leaf.py']


@pytest.mark.parametrize('method', method_names())
def test_the_page_that_is_named_exists(method: str):
    names = (f'mmdet::retinanet/retinanet_{backbone}_fpn_1x_coco.py' for backbone in ('r18', 'r50'))
    first = leaf_text(Request(next(names), method, Path('x.py'), next(names)), method, {}).splitlines()[0]
    title, _, page = first.removesuffix('.').partition(', ')
    assert title == f'# {method}'
    assert (ROOT / page).is_file() if page else method in ('cwd', 'pkd', 'mgd')


def test_every_method_file_is_a_method():
    assert {'ssim', 'mssd', 'ikd', 'mkd', 'frskd', 'l2', 'ikd_neck'} <= set(method_names())


def test_a_leaf_for_published_models_is_that_of_the_documentation(tmp_path: Path):
    names = (f'mmdet::retinanet/retinanet_{backbone}_fpn_1x_coco.py' for backbone in ('r18', 'r50'))
    request = Request(next(names), 'ssim', tmp_path / 'distilled.py', next(names))
    assert leaf_text(request, 'ssim', {}) == (
        '# ssim, docs/ssim.md.\n'
        '# retinanet_r50_fpn_1x_coco -> retinanet_r18_fpn_1x_coco\n'
        '_base_ = [\n'
        "    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',\n"
        "    'mmkd::_base_/methods/ssim.py']\n"
        'model = dict(\n'
        '    _delete_=True,\n'
        "    type='mmkd.TeacherStudentDistill',\n"
        '    architecture={{_base_.model}},\n'
        "    teacher='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',\n"
        '    distiller={{_base_.distiller}})\n'
    )


def test_among_the_shipped_configs_paths_are_relative():
    request = Request(str(ROOT / 'configs/baselines/yolox_s_8xb8-100e_kitti.py'), 'mssd', ROOT / 'configs/mssd/x.py')
    text = leaf_text(request, 'mssd', {})
    assert "'../baselines/yolox_s_8xb8-100e_kitti.py'" in text and "'../_base_/methods/mssd.py'" in text


def test_the_tool_as_a_command(detector: Callable[..., str], tmp_path: Path):
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'new_config.py'), '--method', 'mssd']
    command += ['--student', detector('yolox', 16), '--out', 'my/self_distilled.py']
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert 'python tools/train.py my/self_distilled.py' in done.stdout
    assert "type='mmkd.MultiScaleSelfDistill'" in (tmp_path / 'my' / 'self_distilled.py').read_text()

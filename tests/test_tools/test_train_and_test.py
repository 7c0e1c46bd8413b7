"""The tools as a user calls them: MMDetection's own trainer, two processes, testing."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmkd.compat import load_checkpoint_file
from mmkd.testing.detection_data import detection_data
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(*command: object) -> subprocess.CompletedProcess:
    environment = os.environ | {
        'PYTHONPATH': str(ROOT),
        'OMP_NUM_THREADS': '1',
        'PYTHONWARNINGS': 'ignore',
        'PYTHON': sys.executable,
    }
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=500)


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation in a file: 4 images, teacher weights made here; off in the first epoch, on in the second."""
    folder = tmp_path_factory.mktemp('tools')
    data = detection_data(make_toy_data(folder / 'toy', train=4, val=2, size=(96, 80)))
    cfg = training_config(toy_detector('retinanet', width=8, channels=16, convs=1), data, Schedule(2, (96, 80), 2), 0)
    cfg.model.test_cfg.score_thr = 0.0  # after one epoch nothing is certain
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'teacher.pth')
    sides = dict(
        preds_S=dict(from_student=True, recorder='neck', connector='adapt'),
        preds_T=dict(from_student=False, recorder='neck'),
    )
    neck = dict(neck=dict(type='ModuleOutputs', source='neck'))
    loss = dict(type='mmkd.PyramidLoss', loss=dict(type='mmkd.SSIMLoss', data_range=1.0))
    cfg.model = dict(
        type='mmkd.TeacherStudentDistill',
        architecture=cfg.model,
        teacher=cfg.model,
        teacher_ckpt=str(folder / 'teacher.pth'),
        distiller=dict(
            type='mmkd.DetectionDistiller',
            student_recorders=neck,
            teacher_recorders=neck,
            connectors=dict(adapt=dict(type='mmkd.PyramidConnector', connector=dict(type='mmkd.ConvConnector'))),
            distill_losses=dict(loss_ssim=loss),
            schedules=dict(loss_ssim=dict(begin=1)),
            loss_forward_mappings=dict(loss_ssim=sides),
        ),
    )
    cfg.default_hooks.teacher_check = dict(type='mmkd.TeacherCheckHook', num_images=0)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=4)  # two processes, two images each
    cfg.dump(str(folder / 'distill.py'))
    return folder / 'distill.py'


@pytest.fixture(scope='module')
def by_mmdet(config: Path) -> Path:
    """Work directory of a training by MMDetection's own `tools/train.py`."""
    trainer = Path(find_spec('mmdet').origin).parent / '.mim' / 'tools' / 'train.py'
    done = start(sys.executable, trainer, config, '--work-dir', config.parent / 'mmdet')
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'distill.loss_ssim_p3' in done.stdout + done.stderr
    return config.parent / 'mmdet'


@pytest.fixture(scope='module')
def by_two(config: Path) -> Path:
    """Work directory of a training by two processes without a GPU."""
    done = start('bash', ROOT / 'tools' / 'dist_train.sh', config, 2, '--work-dir', config.parent / 'two')
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return config.parent / 'two'


def test_mmdetections_own_trainer_distils_and_saves_what_resuming_needs(by_mmdet):
    checkpoint = load_checkpoint_file(by_mmdet / 'epoch_2.pth')
    assert {'distiller', 'rng', 'teacher'} <= set(checkpoint['mmkd'])
    assert not any(name.startswith('architecture') for name in checkpoint['state_dict'])


def test_two_processes_train_without_a_gpu(by_two):
    checkpoint = load_checkpoint_file(by_two / 'epoch_2.pth')
    assert checkpoint['mmkd']['world_size'] == 2
    assert len(checkpoint['mmkd']['rng']) == 2


def test_resuming_with_another_number_of_processes_is_refused(config, by_two):
    done = start(sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', by_two, '--resume')
    assert done.returncode == 1
    assert 'had 2 processes, now 1' in done.stderr
    assert 'Traceback' not in done.stderr


def logged_rates(work_dir: Path) -> list[float]:
    """Learning rate of every step, as MMEngine's log of the last run has it."""
    log = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime)
    return [record['lr'] for record in map(json.loads, log.read_text().splitlines()) if 'lr' in record]


def test_one_process_goes_on_where_two_were_with_the_rate_scaled_as_asked(config, by_two):
    """The second epoch: one step of 4 images for two processes, two steps of 2 images at half the rate for one."""
    folder = config.parent / 'one'
    resume = ('--resume', by_two / 'epoch_1.pth', '--auto-scale-lr')
    done = start(sys.executable, ROOT / 'tools' / 'train.py', config, '--work-dir', folder, *resume)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        'had 2 processes, now 1, and 4 images a step, now 2: its learning rate is multiplied by 0.5'
        in done.stdout + done.stderr
    )
    last, rate = load_checkpoint_file(folder / 'epoch_2.pth'), logged_rates(by_two)[1]
    assert logged_rates(folder) == pytest.approx([rate / 2, rate / 2 * 0.75])  # of a cosine over three steps
    assert (last['meta']['epoch'], last['meta']['iter'], last['mmkd']['world_size']) == (2, 3, 1)
    assert max(int(state['step']) for state in last['optimizer']['state'].values()) == 3


def scores(output: str) -> list[str]:
    return re.findall(r'= (-?\d\.\d{3})', output)


def test_a_test_of_the_distillation_and_of_the_plain_student_agree(config, by_mmdet):
    checkpoint = by_mmdet / 'epoch_2.pth'
    outputs = []
    for name in (config, by_mmdet / 'student.py'):
        work_dir = config.parent / f'test_{name.stem}'
        done = start(sys.executable, ROOT / 'tools' / 'test.py', name, checkpoint, '--work-dir', work_dir)
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(scores(done.stdout + done.stderr))
    assert len(outputs[0]) == 12
    assert outputs[0] == outputs[1]

"""A run that was interrupted ends as if it had not been, to the last bit."""

import json
import os
from types import SimpleNamespace

import pytest

from mmkd.testing import worker
from mmkd.testing.detection_data import detection_data
from mmkd.testing.recipe import Schedule, training_config
from mmkd.testing.recorder import PARENT, ParentGoneError, RunRecorder
from mmkd.testing.runs import Run, prepare_folder
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector
from mmkd.testing.toy_run import make_toy_run
from mmkd.testing.worker import train_run

pytestmark = pytest.mark.filterwarnings('ignore')
LOOP = dict(max_epochs=3, val_interval=1)
SAME = ('metrics', 'curve', 'epochs', 'initial_sha256', 'batches_sha256', 'weights_sha256')


class PowerCut(Exception):
    pass


@pytest.fixture(autouse=True)
def same_code(monkeypatch):
    """Who edits the sources while the tests run would see runs that start again, as they should."""
    monkeypatch.setattr(worker, 'code_digest', lambda: 'this code')


def _two_stage(tmp_path):
    """Its samplers draw from the global generator: a resumed run must go on in the very same random state."""
    data = detection_data(make_toy_data(tmp_path / 'toy', train=4, val=1, size=(64, 48)))
    model = toy_detector('faster-rcnn', width=8, channels=16).to_dict()
    return training_config(model, data, Schedule(epochs=3, scale=(64, 48), batch=2), seed=1)


def _distilled(tmp_path):
    cfg = make_toy_run(tmp_path / 'toy', epochs=3).load()
    cfg.model.distiller.schedules = dict(loss_kd=dict(begin=0, end=3, ramp='linear'))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
    return cfg


def _train(cfg, folder, monkeypatch=None, cut=None):
    """As a call of the tool does; with `cut` = (method of the recorder, number of its call) the power is cut there."""
    metrics = {'coco/bbox_mAP': 'AP'}
    prepare_folder(Run('arm', 1, folder), cfg.pretty_text, {}, metrics)
    if cut is None:
        return train_run(folder, metrics)
    name, calls = cut[0], []
    shipped = getattr(RunRecorder, name)

    def cutting(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == cut[1]:
            raise PowerCut
        return shipped(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(RunRecorder, name, cutting)
        with pytest.raises(PowerCut):
            train_run(folder, metrics)
    return None


# Two steps an epoch: inside the last epoch; in the scoring of the second, whose checkpoint is written already.
@pytest.mark.parametrize('make', [_two_stage, _distilled])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(make, tmp_path, monkeypatch):
    cfg = make(tmp_path)
    whole = _train(cfg, tmp_path / 'whole')
    assert (whole['resumed'], len(whole['curve'])) == (0, 3)
    _train(cfg, tmp_path / 'cut', monkeypatch, ('before_val', 2))
    assert sorted(path.name for path in (tmp_path / 'cut').glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    _train(cfg, tmp_path / 'cut', monkeypatch, ('after_train_iter', 4))
    resumed = _train(cfg, tmp_path / 'cut')
    assert resumed['resumed'] == 2
    assert {key: resumed[key] for key in SAME} == {key: whole[key] for key in SAME}
    assert not (tmp_path / 'cut' / 'batches.txt').exists()
    assert (tmp_path / 'cut' / 'config.py').read_text() == cfg.pretty_text, 'it is what the next call compares with'


def test_under_other_circumstances_a_run_starts_from_its_beginning(tmp_path, monkeypatch):
    cfg = _two_stage(tmp_path)
    _train(cfg, tmp_path / 'cut', monkeypatch, ('after_train_iter', 6))
    around = worker.circumstances()
    assert worker.resume_point(tmp_path / 'cut', around, LOOP).name == 'epoch_2.pth'
    for key, value in (('code', 'other'), ('threads', 7), ('device', 'H100'), ('versions', {'torch': '3'})):
        assert worker.resume_point(tmp_path / 'cut', {**around, key: value}, LOOP) is None
    monkeypatch.setattr(worker, 'code_digest', lambda: 'other')
    assert _train(cfg, tmp_path / 'cut')['resumed'] == 0


def test_a_damaged_checkpoint_is_passed_over(tmp_path, monkeypatch):
    _train(_two_stage(tmp_path), tmp_path / 'cut', monkeypatch, ('after_train_iter', 6))
    (tmp_path / 'cut' / 'epoch_2.pth').write_bytes(b'damaged')
    assert worker.resume_point(tmp_path / 'cut', worker.circumstances(), LOOP).name == 'epoch_1.pth'


def test_an_epoch_that_was_to_be_scored_and_was_not_is_done_again(tmp_path, monkeypatch):
    _train(_two_stage(tmp_path), tmp_path / 'cut', monkeypatch, ('after_train_iter', 6))
    (tmp_path / 'cut' / 'curve.json').write_text(json.dumps([{'epoch': 1, 'AP': 0.0}]))
    around = worker.circumstances()
    assert worker.resume_point(tmp_path / 'cut', around, LOOP).name == 'epoch_1.pth'
    assert worker.resume_point(tmp_path / 'cut', around, dict(LOOP, val_interval=3)).name == 'epoch_2.pth'


def test_a_last_epoch_that_was_not_scored_is_done_again(tmp_path, monkeypatch):
    """Three epochs, scored every two: the third is scored since it is the last, and its checkpoint is older."""
    cfg = _two_stage(tmp_path)
    cfg.train_cfg.val_interval = 2
    whole = _train(cfg, tmp_path / 'whole')
    assert [point['epoch'] for point in whole['curve']] == [2, 3]
    _train(cfg, tmp_path / 'cut', monkeypatch, ('before_val', 2))
    assert (tmp_path / 'cut' / 'epoch_3.pth').is_file()
    resumed = _train(cfg, tmp_path / 'cut')
    assert resumed['resumed'] == 1
    assert {key: resumed[key] for key in SAME} == {key: whole[key] for key in SAME}


@pytest.mark.parametrize('phase', ['after_train_iter', 'after_val_iter'])
def test_a_run_whose_parent_has_gone_ends_at_its_next_step_also_in_a_scoring(tmp_path, monkeypatch, phase):
    monkeypatch.setenv(PARENT, str(os.getppid()))
    recorder = RunRecorder(tmp_path, {})
    recorder._seen.write_bytes(b'')
    runner = SimpleNamespace(iter=1, max_iters=9)
    getattr(recorder, phase)(runner, 0)
    monkeypatch.setattr(os, 'getppid', lambda: 1)
    with pytest.raises(ParentGoneError):
        getattr(recorder, phase)(runner, 0)

import json
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils

from mmkd.testing.detection_data import detection_data
from mmkd.testing.recipe import Schedule, detector_from_config, training_config
from mmkd.testing.recorder import RunRecorder
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector
from mmkd.testing.worker import train_run


@pytest.fixture
def config(tmp_path):
    data = detection_data(make_toy_data(tmp_path / 'toy', train=6, val=2, size=(64, 48)))
    model = toy_detector('retinanet', width=8, channels=16, convs=1).to_dict()
    return training_config(model, data, Schedule(epochs=2, scale=(64, 48), batch=2), seed=1)


def test_config_survives_writing_and_reading(config, tmp_path):
    config.dump(tmp_path / 'config.py')
    assert Config.fromfile(tmp_path / 'config.py').to_dict() == config.to_dict()


def test_learning_rate_warms_up_and_ends_at_zero_with_the_last_step(config):
    warm, cosine = config.param_scheduler
    assert warm.end == cosine.begin and cosine.end == 2 * 3
    assert cosine.eta_min == 0


def _train(config, folder):
    folder.mkdir()
    config.dump(folder / 'config.py')
    return train_run(folder, {'coco/bbox_mAP': 'AP'})


@pytest.mark.filterwarnings('ignore')
def test_a_run_leaves_scores_of_every_epoch_and_the_same_seed_gives_the_same_run(config, tmp_path):
    first, second = _train(config, tmp_path / 'a'), _train(config, tmp_path / 'b')
    assert [point['epoch'] for point in first['curve']] == [1, 2]
    for key in ('initial_sha256', 'batches_sha256', 'metrics'):
        assert first[key] == second[key]
    assert json.loads((tmp_path / 'a' / 'result.json').read_text()) == first
    assert json.loads((tmp_path / 'a' / 'progress.json').read_text())['step'] == 6


@pytest.mark.filterwarnings('ignore')
def test_another_seed_gives_another_student_and_other_batches(config, tmp_path):
    first = _train(config, tmp_path / 'a')
    config.randomness.seed = 2
    second = _train(config, tmp_path / 'b')
    assert first['initial_sha256'] != second['initial_sha256']
    assert first['batches_sha256'] != second['batches_sha256']


def test_a_run_that_detects_nothing_scores_zero(tmp_path):
    recorder, runner = RunRecorder(tmp_path, {'coco/bbox_mAP': 'AP'}), SimpleNamespace(epoch=1, iter=5, max_iters=5)
    recorder.after_val_epoch(runner, {})
    assert recorder.curve == [{'epoch': 1, 'AP': 0.0}]


def test_a_metric_without_the_expected_score_is_an_error(tmp_path):
    recorder = RunRecorder(tmp_path, {'coco/bbox_mAP': 'AP'})
    with pytest.raises(KeyError, match='coco/bbox_mAP'):
        recorder.after_val_epoch(SimpleNamespace(epoch=1, iter=5, max_iters=5), {'coco/segm_mAP': 0.5})


def test_own_config_gets_the_classes_of_the_data(tmp_path):
    (tmp_path / 'own.py').write_text(
        "model = dict(type='X', bbox_head=[dict(num_classes=80), dict(num_classes=80)], mask_head=dict(num_classes=80))"
    )
    model = detector_from_config(tmp_path / 'own.py', 3)
    assert str(model).count("'num_classes': 3") == 3


def test_own_config_without_model_or_classes_is_refused(tmp_path):
    (tmp_path / 'own.py').write_text('x = 1')
    with pytest.raises(ValueError, match='defines no model'):
        detector_from_config(tmp_path / 'own.py', 3)
    (tmp_path / 'own.py').write_text("model = dict(type='X')")
    with pytest.raises(ValueError, match='no num_classes to set to 3'):
        detector_from_config(tmp_path / 'own.py', 3)


def test_a_config_that_inherits_one_of_mmkd_is_read_in_a_new_process(tmp_path, monkeypatch):
    monkeypatch.delitem(config_utils.MODULE2PACKAGE, 'mmkd', raising=False)  # as before anything asked for it
    (tmp_path / 'own.py').write_text(
        "_base_ = ['mmkd::baselines/retinanet_r18_fpn_1x_kitti.py']\nmodel = dict(bbox_head=dict(num_classes=7))"
    )
    assert detector_from_config(tmp_path / 'own.py', 3)['bbox_head']['num_classes'] == 3


def test_a_distillation_is_no_student_and_no_teacher():
    with pytest.raises(
        ValueError, match=r'is a distillation \(mmkd.TeacherStudentDistill\): --student and --teacher take'
    ):
        detector_from_config('mmkd::ssim/ssim_retinanet_r101_retinanet_r18_fpn_1x_coco.py', 3)

import datetime
import json
import shutil

import pytest
from mmengine.config import Config

from mmkd.testing import comparison, final_score
from mmkd.testing.compare_methods import main, parse_options
from mmkd.testing.detection_data import detection_data
from mmkd.testing.final_score import FinalSplit, final_scores
from mmkd.testing.runs import ExperimentError, Run, write_json
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector


@pytest.fixture
def data(tmp_path):
    """A toy set whose test split is its validation split under another name."""
    root = make_toy_data(tmp_path / 'toy', train=4, val=2, size=(64, 48))
    shutil.copy(root / 'annotations/val.json', root / 'annotations/test.json')
    shutil.copytree(root / 'images/val', root / 'images/test') if (root / 'images/val').is_dir() else None
    return root


@pytest.mark.slow
def test_finished_runs_are_scored_once_and_as_their_last_epoch_was(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, 'draw_pictures', lambda *_, **__: [])
    detector = tmp_path / 'detector.py'
    model = toy_detector('retinanet', num_classes=7, width=8, channels=16, convs=1)
    model.test_cfg.score_thr = 0.0  # so that there are detections without training
    Config(dict(model=model.to_dict())).dump(detector)
    words = ['--data', data, '--scale', 64, 48, '--epochs', 1, '--seeds', 0, '--methods', 'ssim', '--jobs', 1]
    words += ['--diagnose', '--student', detector, '--teacher', detector]
    words += ['--store', tmp_path / 'store.json', '--work-dir', tmp_path / 'work']
    words = [str(word) for word in words]
    assert main([*words, '--final-split', 'val']) == 1
    assert 'name a split that was not seen' in ' '.join(capsys.readouterr().out.split())
    assert main([*words, '--final-split', 'test']) == 0
    store = json.loads((tmp_path / 'store.json').read_text())
    assert store['setting']['metrics'] == ['AP', 'AP50', 'AP test', 'AP50 test']
    assert store['setting']['final'] == {'split': 'test', 'images': 2}
    for row in store['runs']:
        found = row['metrics']
        assert found['AP50'] > 0
        assert (found['AP test'], found['AP50 test']) == (found['AP'], found['AP50'])
        assert datetime.datetime.strptime(row['final_sitting'], '%Y-%m-%d %H:%M')

    (diagnosed,) = (row for row in store['runs'] if 'diagnosis' in row)
    assert diagnosed['arm'] == 'ssim'
    assert [(one['name'], one['weight']) for one in diagnosed['diagnosis']] == [('loss_ssim', 4.0)]

    def again(*_):
        raise AssertionError('scored twice')

    monkeypatch.setattr(final_score, 'score', again)
    assert main([*words, '--final-split', 'test']) == 0
    shutil.rmtree(tmp_path / 'work')
    assert main([*words, '--final-split', 'test', '--report-only']) == 0  # the store knows
    assert json.loads((tmp_path / 'store.json').read_text())['runs'] == store['runs']


def test_it_is_for_the_end(data, tmp_path):
    final = FinalSplit('test', detection_data(data, splits=('train', 'test')))
    with pytest.raises(ExperimentError, match=r'1 runs are not finished \(plain, seed 3'):
        final_scores([Run('plain', 3, tmp_path)], final)
    elsewhere = Run('plain', 3, tmp_path, stored={'metrics': {'AP': 0.5}, 'checkpoint': '/gone.pth'})
    with pytest.raises(ExperimentError, match='no weights on this machine of plain, seed 3'):
        final_scores([elsewhere], final)


@pytest.mark.parametrize('more', [['--data', 'x', '--hold-back', '0.2'], []])
def test_it_needs_a_split_of_own_data_and_chooses_nothing(more):
    with pytest.raises(SystemExit) as stop:
        parse_options(['--final-split', 'test', *more])
    assert stop.value.code == 2


def test_what_an_interrupted_call_has_scored_is_taken_up(data, tmp_path):
    final = FinalSplit('test', detection_data(data, splits=('train', 'test')))
    metrics = {'AP': 0.5, 'AP50': 0.7, 'AP test': 0.4, 'AP50 test': 0.6}
    write_json(tmp_path / 'result.json', {'metrics': metrics, 'finished': 'then'})
    run = Run('plain', 3, tmp_path, stored={'metrics': {'AP': 0.5, 'AP50': 0.7}, 'finished': 'then'})
    found = {'AP test': 0.4, 'AP50 test': 0.6}
    assert final_scores([run], final) == {('plain', 3): {'metrics': found}}, 'scored by a release that kept no day'
    write_json(tmp_path / 'result.json', {'metrics': metrics, 'finished': 'then', 'final_sitting': '2026-11-22'})
    assert final_scores([run], final) == {('plain', 3): {'metrics': found, 'final_sitting': '2026-11-22'}}

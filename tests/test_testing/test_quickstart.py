import functools
import json

import pytest
from mmengine.config import Config
from rich.console import Console

from mmkd.testing import compare_methods, comparison
from mmkd.testing.comparison import build_experiment, checked_data, toy_data
from mmkd.testing.quickstart import main, parse_options, quickstart
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector


@pytest.fixture
def options(tmp_path):
    data = make_toy_data(tmp_path / 'toy', train=4, val=2, size=(64, 48))
    student = tmp_path / 'student.py'
    model = toy_detector('retinanet', num_classes=7, width=8, channels=16, convs=1)
    Config(dict(model=model.to_dict())).dump(student)
    arguments = ['--data', data, '--scale', 64, 48, '--epochs', 1, '--student', student, '--teacher', student]
    return [str(value) for value in [*arguments, '--jobs', 1, '--work-dir', tmp_path / 'work']]


@pytest.mark.slow
def test_teacher_plain_and_distilled_end_in_a_table_and_pictures(options, tmp_path):
    # one epoch on four images teaches a teacher nothing, which must be a note, not the end
    with (tmp_path / 'out').open('w') as out:
        results = quickstart(parse_options(options), Console(file=out, width=140))
    text = (tmp_path / 'out').read_text()
    for part in ('teacher', 'plain', 'ssim', 'AP50', 'M params', 'GFLOPs', 'ms/image', 'train s', 'no better than'):
        assert part in text
    assert results['unfair'] == []
    assert {row['arm'] for row in results['runs']} == {'teacher', 'plain', 'ssim'}
    work = tmp_path / 'work'
    assert json.loads((work / 'results.json').read_text())['arms'].keys() == results['arms'].keys()
    names = {'ap_curve.png', 'ap50_curve.png', 'detections.png', 'features.png', 'ap_curve.svg', 'ap50_curve.svg'}
    assert {path.name for path in (work / 'pictures').iterdir()} == names == set(results['pictures'])
    before = {path: path.stat().st_mtime_ns for path in work.rglob('*')}
    assert main(options) == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob('*')} == before


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (['--methods', 'plain', 'simm'], "got 'simm'; nearest: ssim"),
        (['--data', '/nowhere'], 'no data folder /nowhere: /nowhere does not exist'),
        (['--splits', 'train', 'train'], 'two different splits'),
        (['--format', 'kitti'], 'ImageSets/train.txt'),
        (['--student', '/nowhere/config.py'], '/nowhere/config.py'),
        (['--methods', 'plain', 'x=ssim,distiller.nothing.at=1'], "no 'distiller.nothing' in its model"),
        (['--methods', 'plain', 'x=plain-time,as=ssim'], 'as=ssim is none of the distilled arms'),
    ],
)
def test_mistakes_end_with_one_message_before_anything_is_written(options, tmp_path, capsys, wrong, message):
    assert main([*options, *wrong]) == 1
    shown = ' '.join(capsys.readouterr().out.split())
    assert message in shown.replace(' ', '') or message in shown
    assert 'Traceback' not in shown
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('wrong', [['--epochs', '0'], ['--seeds', '1', '1'], ['--methods', 'ssim', 'ssim']])
def test_impossible_options_are_refused(options, wrong):
    with pytest.raises(SystemExit) as stop:
        parse_options([*options, *wrong])
    assert stop.value.code == 2


def test_small_toy_set_is_scored_by_object_size(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, 'make_toy_data', functools.partial(make_toy_data, train=2, val=20))
    options = parse_options(['--toy', 'small', '--work-dir', str(tmp_path)])
    experiment = build_experiment(options, toy_data(tmp_path / 'data', options.toy))
    assert experiment.schedule.scale == (320, 256)
    assert list(experiment.data.metrics.values()) == ['AP', 'AP50', 'AP_small', 'AP_medium', 'AP_large']
    assert list(toy_data(tmp_path / 'mixed', 'mixed').metrics.values()) == ['AP', 'AP50']


def test_toy_sets_get_folders_of_their_own_and_exclude_own_data(options):
    assert str(parse_options(['--toy', 'mixed']).work_dir) == 'work_dirs/quickstart'
    assert str(parse_options(['--toy', 'small']).work_dir) == 'work_dirs/quickstart_small'
    with pytest.raises(SystemExit) as stop:
        parse_options([*options, '--toy', 'small'])
    assert stop.value.code == 2


def test_own_data_gets_a_folder_of_its_own():
    assert str(parse_options([]).work_dir) == 'work_dirs/quickstart'
    assert str(parse_options(['--data', 'data/bccd']).work_dir) == 'work_dirs/quickstart_bccd'


def _few_images(monkeypatch):
    monkeypatch.setattr(comparison, 'make_toy_data', functools.partial(make_toy_data, train=3, val=2))


def _files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize('command', [main, compare_methods.main])
@pytest.mark.parametrize(
    'files',
    [
        ['data/annotations/train.json', 'data/annotations/val.json', 'notes.txt'],
        ['data/annotations/train.json'],
        ['data/x.png'],
        ['notes.txt'],
    ],
)
def test_somebodys_own_folder_is_left_alone_without_data(command, files, tmp_path, capsys, monkeypatch):
    _few_images(monkeypatch)
    project = tmp_path / 'proj'
    for name in files:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text('mine')
    assert command(['--work-dir', str(project)]) == 1
    out = ' '.join(capsys.readouterr().out.split())
    assert 'holds files of something else' in out or 'is not empty and holds no experiment' in out
    assert {str(path): content for path, content in _files(project).items()} == dict.fromkeys(files, b'mine')


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (['--methods', 'plain', 'simm'], "got 'simm'; nearest: ssim"),
        (['--student', 'tinny'], "got 'tinny'"),
        (['--hold-back', '0.01'], 'leaves an empty part'),
        (['--methods', 'plain', 'x=ssim,distiller.nothing.at=1'], "no 'distiller.nothing' in its model"),
    ],
)
def test_no_toy_set_is_made_for_a_call_with_a_mistake(wrong, message, tmp_path, capsys, monkeypatch):
    _few_images(monkeypatch)
    assert main(['--work-dir', str(tmp_path / 'work'), *wrong]) == 1
    assert message in ' '.join(capsys.readouterr().out.split())
    assert not (tmp_path / 'work').exists()


def test_a_toy_set_is_in_place_once_everything_is_checked(tmp_path, monkeypatch):
    _few_images(monkeypatch)
    work, seen = tmp_path / 'work', []
    options = parse_options(['--work-dir', str(work), '--hold-back', '0.4'])

    def check(data):
        seen.append((work.exists(), data.counts))

    data = checked_data(options, check)
    assert seen == [(False, (2, 1))] and data.counts == (2, 1)
    assert data.train['ann_file'] == str(work / 'data' / 'train_part.json')
    parts = {'train_part.json', 'held_back.json'}
    made = {name: content for name, content in _files(work / 'data').items() if name.name not in parts}
    assert made == _files(make_toy_data(tmp_path / 'other', train=3, val=2))
    before = {path: path.stat().st_mtime_ns for path in work.rglob('*')}
    checked_data(options, check)
    assert {path: path.stat().st_mtime_ns for path in work.rglob('*')} == before
    assert seen[1:] == [(True, (2, 1))]


def test_held_back_parts_are_not_written_beside_somebodys_own_data(options, tmp_path, capsys):
    mine = tmp_path / 'work' / 'data' / 'mine.json'
    mine.parent.mkdir(parents=True)
    mine.write_text('mine')
    assert main([*options, '--hold-back', '0.5']) == 1
    assert 'holds files of something else' in ' '.join(capsys.readouterr().out.split())
    assert _files(tmp_path / 'work') == {mine.relative_to(tmp_path / 'work'): b'mine'}

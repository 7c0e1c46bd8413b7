import json
from pathlib import Path

import pytest
from mmengine.registry import MODELS, init_default_scope

from mmkd.testing.checks import check_arms
from mmkd.testing.compare_methods import comparisons, main, parse_options
from mmkd.testing.experiment import claim_work_dir, run_config, runs_of
from mmkd.testing.runs import ExperimentError, write_json
from mmkd.testing.time_budget import reference_arms
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import PAIRS, SIZES


@pytest.fixture
def options(tmp_path):
    data = make_toy_data(tmp_path / 'toy', train=2, val=1, size=(64, 48))
    return [str(v) for v in ['--data', data, '--scale', 64, 48, '--seeds', 0, '--work-dir', tmp_path / 'work']]


def test_plain_is_also_trained_for_the_time_of_the_others_unless_left_out(options):
    assert parse_options(options).methods[-1] == 'plain-time'
    assert 'plain-time' not in parse_options([*options, '--no-plain-time']).methods
    assert parse_options([*options, '--methods', 'plain']).methods == ['plain']
    own = ['plain', 'ssim', 'plain-time']
    assert parse_options([*options, '--methods', *own]).methods == own


def test_a_family_is_an_experiment_with_a_folder_and_a_store_of_its_own(options, tmp_path):
    asked = [*options, '--families', 'yolox', 'faster-rcnn', '--store', str(tmp_path / 'x.json')]
    found = comparisons(parse_options(asked))
    assert [one.place.work_dir.name for one in found] == ['yolox', 'faster-rcnn']
    assert [one.place.store.name for one in found] == ['x_yolox.json', 'x_faster-rcnn.json']
    assert [one.experiment.student['type'] for one in found] == ['YOLOX', 'FasterRCNN']
    assert found[1].experiment.method('ikd') == 'ikd_roi'


def test_each_arm_is_trained_with_its_learning_rate_and_the_teacher_with_another(options):
    words = ['plain', 'fast=plain,lr=0.016', 'gentle=mssd,lr=1e-3', 'later=plain-time,lr=0.016']
    for given, teacher in (([], 0.004), (['--teacher-lr', '0.001'], 0.001)):
        asked = parse_options([*options, '--no-plain-time', '--lr', '0.008', *given, '--methods', *words])
        experiment = comparisons(asked)[0].experiment
        rates = {}
        for run in runs_of(experiment, Path('work')):
            rates[run.arm] = run_config(experiment, run, run).optim_wrapper.optimizer.lr
        assert rates == dict(teacher=teacher, plain=0.008, fast=0.016, gentle=0.001, later=0.016)
    assert reference_arms(experiment, 'later') == ['gentle']


@pytest.mark.parametrize('family', sorted(PAIRS))
def test_the_teacher_of_a_family_has_4_to_10_times_the_students_parameters(family):
    init_default_scope('mmdet')
    counts = [sum(p.numel() for p in MODELS.build(SIZES[name](3)).parameters()) for name in PAIRS[family]]
    assert 4 <= counts[1] / counts[0] <= 10


def test_every_method_is_built_for_every_family_before_training(options):
    asked = [
        *options,
        '--families',
        'retinanet',
        'yolox',
        'faster-rcnn',
        '--methods',
        'plain',
        'ikd',
        'mkd',
        'frskd',
        'ssim',
    ]
    for one in comparisons(parse_options(asked)):
        check_arms(one.experiment, list(one.experiment.arms()))


def test_an_option_that_a_loss_refuses_is_found_before_training(options):
    text = 'x=ssim,distiller.distill_losses.loss_ssim.loss.loss_weight=-1'
    (one,) = comparisons(parse_options([*options, '--methods', 'plain', text]))
    with pytest.raises(ExperimentError, match='x cannot be built: .*loss_weight'):
        check_arms(one.experiment, ['x'])


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (['--methods', 'plain', 'simm'], "got 'simm'; nearest: ssim"),
        (
            ['--methods', 'plain', 'x=ssim,distiller.distill_losses.loss_x.loss.p=1'],
            "no 'distiller.distill_losses.loss_x'",
        ),
        (['--methods', 'ssim', 'y=plain-time'], 'needs the arm plain'),
        (['--data', '/nowhere'], 'no data folder /nowhere: /nowhere does not exist'),
        (['--teacher', 'tinny'], 'one of tiny, small, large, '),
        (['--teacher', 'mmdet::retinanet/retinanet_r18_fpn_1x_coc.py'], 'retinanet_r18_fpn_1x_coco.py'),
        (['--store', '/nowhere/x.json'], 'there is no folder /nowhere'),
        (['--report-only'], 'no run is finished'),
        (['--methods', 'plain=plain,a=1'], 'plain has no option but lr'),
        (['--methods', 'plain', 'fast=plain,lr=-1'], "fast: lr must be a positive number, got '-1'"),
        (['--methods', 'plain', 'fast=plain,lr=high'], "fast: lr must be a positive number, got 'high'"),
    ],
)
def test_mistakes_end_with_one_message_before_anything_is_written(options, tmp_path, capsys, wrong, message):
    assert main([*options, *wrong]) == 1
    shown = ' '.join(capsys.readouterr().out.split())
    assert message in shown and 'Traceback' not in shown
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'wrong',
    [
        ['--families', 'yolox', '--student', 'small'],
        ['--families', 'yolox', 'yolox'],
        ['--store', 'x.txt'],
        ['--methods', 'plain', 'teacher'],
        ['--seeds', '-1'],
        ['--lr', '0'],
        ['--lr', 'inf'],
        ['--teacher-lr', '0'],
        ['--teacher-lr', 'nan'],
        ['--data', 'x', '--toy', 'small'],
    ],
)
def test_impossible_options_are_refused(options, wrong):
    with pytest.raises(SystemExit) as stop:
        parse_options([*options, *wrong])
    assert stop.value.code == 2


def test_a_store_of_something_else_is_refused_before_training(options, tmp_path, capsys):
    store = tmp_path / 'x.json'
    store.write_text(json.dumps({'runs': [], 'identity': {'data': 'other'}}))
    assert main([*options, '--store', str(store)]) == 1
    assert "differs in data ('toy' now, 'other' there)" in ' '.join(capsys.readouterr().out.split())


def test_a_work_dir_of_something_else_is_refused_before_a_word_of_training(options, tmp_path, capsys):
    work_dir = Path(options[options.index('--work-dir') + 1]) / 'yolox'
    work_dir.mkdir(parents=True)
    (work_dir / 'mine.txt').write_text('mine')
    assert main([*options, '--families', 'retinanet', 'yolox']) == 1
    out = capsys.readouterr().out
    assert 'is not empty and holds no experiment' in ' '.join(out.split())
    assert 'training' not in out
    assert sorted(path.name for path in work_dir.parent.iterdir()) == ['yolox']


@pytest.mark.parametrize('word', [['--by-size'], ['--format', 'kitti'], ['--splits', 'a', 'b']])
def test_an_option_of_own_data_is_refused_for_a_toy_set(word, capsys):
    with pytest.raises(SystemExit):
        parse_options(word)
    assert f'{word[0]} is of --data' in capsys.readouterr().err


def test_a_mistake_in_a_later_family_is_found_before_the_first_is_trained(options, tmp_path, capsys):
    asked = ['--methods', 'plain', 'x=ssim,architecture.bbox_head.stacked_convs=2', '--families', 'retinanet']
    (one,) = comparisons(parse_options([*options, *asked]))
    check_arms(one.experiment, ['x'])
    assert main([*options, *asked, 'faster-rcnn']) == 1
    out = ' '.join(capsys.readouterr().out.split())
    assert "x cannot be built: ValueError: x: no 'architecture.bbox_head'" in out and 'training' not in out
    assert not (tmp_path / 'work' / 'retinanet').exists()


def test_a_report_with_other_options_is_refused(options, tmp_path, capsys):
    (one,) = comparisons(parse_options(options))
    claim_work_dir(one.experiment, tmp_path / 'work')
    assert main([*options, '--epochs', '99', '--report-only']) == 1
    assert 'differs in schedule.epochs (99 now, 24 there)' in ' '.join(capsys.readouterr().out.split())


def test_weights_that_the_final_split_needs_are_missed_before_training(options, tmp_path, capsys):
    (one,) = comparisons(parse_options([*options, '--methods', 'plain', 'mssd']))
    annotations = Path(options[1]) / 'annotations'
    (annotations / 'test.json').write_text((annotations / 'val.json').read_text())
    (Path(options[1]) / 'images' / 'test').symlink_to('val') if (Path(options[1]) / 'images' / 'val').is_dir() else None
    claim_work_dir(one.experiment, tmp_path / 'work')
    run = runs_of(one.experiment, tmp_path / 'work')[1]
    run.folder.mkdir(parents=True)
    write_json(run.folder / 'result.json', dict(metrics=dict(AP=0.1, AP50=0.2), checkpoint='gone.pth', finished='then'))
    assert main([*options, '--methods', 'plain', 'mssd', '--final-split', 'test']) == 1
    out = ' '.join(capsys.readouterr().out.split())
    assert 'no weights on this machine of plain, seed 0' in out and 'training' not in out

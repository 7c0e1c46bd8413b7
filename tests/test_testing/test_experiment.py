import dataclasses
import fcntl
import json
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd.testing import training
from mmkd.testing.detection_data import detection_data
from mmkd.testing.experiment import Experiment, runs_of
from mmkd.testing.fairness import are_paired, unfair_rows, unfair_runs
from mmkd.testing.recipe import Schedule
from mmkd.testing.runs import ExperimentError
from mmkd.testing.time_budget import budget_note, known_budgets, reference_arms
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.toy_detectors import toy_detector
from mmkd.testing.training import FailedRunsError, run_experiment

# Stands in for training: notes that it ran, and leaves a result. In a folder with the word that `FAIL` holds it fails.
_WORKER = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with open(os.environ['LOG'], 'a') as log:
    log.write(folder.parent.name + '/' + folder.name + chr(10))
if os.environ.get('FAIL') and os.environ['FAIL'] in str(folder):
    print('the disk is full')
    sys.exit(3)
(folder / f'epoch_1.pth').write_text('weights')
(folder / 'device').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))
cost = 2.6 if 'ssim' in str(folder) else 1.0
result = dict(metrics={'AP': 0.1, 'AP50': 0.2}, curve=[], train_seconds=1.0, train_cpu_seconds=cost,
              weights_sha256='w', wall_seconds=1.0, peak_memory_mb=1,
              parameters=1, initial_sha256='a', batches_sha256='b', checkpoint=str(folder / 'epoch_1.pth'),
              threads=1, finished='now')
(folder / 'result.json').write_text(json.dumps(result))
"""


@pytest.fixture
def experiment(tmp_path):
    data = detection_data(make_toy_data(tmp_path / 'toy', train=2, val=1, size=(64, 48)))
    student, teacher = dict(type='Student'), dict(type='Teacher')  # never built: the worker is a stand-in
    return Experiment(data, student, teacher, ('plain', 'ssim'), (3,), Schedule(epochs=1, scale=(64, 48)))


@pytest.fixture
def run(tmp_path, monkeypatch):
    script, log = tmp_path / 'worker.py', tmp_path / 'log'
    script.write_text(_WORKER)
    monkeypatch.setenv('LOG', str(log))

    def start(experiment, **options):
        log.unlink(missing_ok=True)
        worker = (sys.executable, str(script))
        runs = run_experiment(experiment, tmp_path / 'work', poll_seconds=0.01, worker=worker, **options)
        return runs, log.read_text().split() if log.exists() else []

    return start


def test_every_arm_is_trained_once_a_seed_and_the_teacher_once(experiment, run):
    runs, started = run(dataclasses.replace(experiment, seeds=(3, 4)))
    assert started == ['work/teacher', 'plain/seed3', 'ssim/seed3', 'plain/seed4', 'ssim/seed4']
    assert all(one.result for one in runs)


def test_distilled_arms_wait_for_the_teacher(experiment, run):
    _, started = run(experiment, jobs=3)
    assert len(started) == 3 and started.index('work/teacher') < started.index('ssim/seed3')


def test_runs_share_the_gpus_out_among_them(experiment, run, monkeypatch):
    monkeypatch.setattr(training, 'visible_devices', lambda: ['4', '6'])
    runs, _ = run(dataclasses.replace(experiment, methods=('plain',), seeds=(3, 4, 5)), jobs=2)
    used = [(one.folder / 'device').read_text() for one in runs]
    assert set(used) == {'4', '6'}
    assert used[:2] == ['4', '6']  # begun together


def test_runs_that_share_a_gpu_are_not_timed(experiment, run, monkeypatch):
    monkeypatch.setattr(training, 'visible_devices', lambda: ['0'])
    timed = dataclasses.replace(experiment, methods=('plain', 'ssim', 'plain-time'))
    with pytest.raises(ExperimentError, match='2 runs at a time on 1 GPUs would spoil: --jobs 1'):
        run(timed, jobs=2)


def test_finished_runs_are_kept_when_called_again(experiment, run):
    run(experiment)
    _, started = run(experiment)
    assert started == []


def test_arms_and_seeds_can_be_added_later(experiment, run):
    run(experiment)
    more = dataclasses.replace(experiment, methods=('plain', 'l2'), seeds=(3, 5))
    _, started = run(more)
    assert started == ['l2/seed3', 'plain/seed5', 'l2/seed5']


def test_a_failed_run_says_where_and_the_next_call_goes_on(experiment, run, monkeypatch):
    monkeypatch.setenv('FAIL', 'ssim')
    with pytest.raises(
        ExperimentError, match=r'(?s)ssim, seed 3, ended with exit code 3.*train\.log.*the disk is full'
    ):
        run(experiment)
    monkeypatch.delenv('FAIL')
    _, started = run(experiment)
    assert started == ['ssim/seed3']


def test_what_an_interrupted_run_left_stays_for_the_same_run_alone(experiment, run, tmp_path):
    run(experiment)
    folder = tmp_path / 'work' / 'ssim' / 'seed3'
    for change, kept in ((lambda text: text, True), (lambda text: text + '# other', False)):
        (folder / 'result.json').unlink()
        (folder / 'epoch_7.pth').write_text('half')
        (folder / 'config.py').write_text(change((folder / 'config.py').read_text()))
        _, started = run(experiment)
        assert started == ['ssim/seed3']
        assert (folder / 'epoch_7.pth').exists() == kept


def test_a_run_of_another_teacher_starts_from_its_beginning(experiment, run, tmp_path):
    run(experiment)
    folder = tmp_path / 'work' / 'ssim' / 'seed3'
    record = json.loads((folder / 'arm.json').read_text())
    assert record['teacher_sha256'] == 'w'
    (folder / 'arm.json').write_text(json.dumps({**record, 'teacher_sha256': 'another'}))
    (folder / 'result.json').unlink()
    (folder / 'epoch_7.pth').write_text('half')
    run(experiment)
    assert not (folder / 'epoch_7.pth').exists()


def test_a_failed_run_does_not_end_the_others(experiment, run, monkeypatch, tmp_path):
    monkeypatch.setenv('FAIL', 'ssim')
    with pytest.raises(FailedRunsError, match='1 of 4 runs failed') as failure:
        run(dataclasses.replace(experiment, methods=('ssim', 'plain', 'mssd')))
    assert [one.arm for one in failure.value.runs if one.result] == ['teacher', 'plain', 'mssd']


def test_without_a_teacher_the_others_are_trained_and_the_rest_is_named(experiment, run, monkeypatch, tmp_path):
    monkeypatch.setenv('FAIL', 'work/teacher')
    with pytest.raises(
        FailedRunsError, match='(?s)Not started, since what they build on is missing: ssim, seed 3'
    ) as failure:
        run(dataclasses.replace(experiment, methods=('plain', 'ssim', 'frskd_dense')))
    assert [one.arm for one in failure.value.runs if one.result] == ['plain', 'frskd_dense']


def test_plain_gets_the_time_of_the_distilled_arms(experiment, run, tmp_path):
    asked = dataclasses.replace(
        experiment,
        methods=('plain-time', 'own=plain-time,as=ssim', 'plain', 'ssim', 'mssd'),
        seeds=(3, 4),
        schedule=Schedule(epochs=10, scale=(64, 48)),
    )
    runs, started = run(asked)
    assert started.index('plain-time/seed3') > max(started.index(f'{arm}/seed3') for arm in ('plain', 'ssim', 'mssd'))
    configs = {
        name: Config.fromfile(tmp_path / 'work' / name / 'config.py') for name in started if 'teacher' not in name
    }
    epochs = {name: cfg.train_cfg.max_epochs for name, cfg in configs.items()}
    assert (epochs['plain/seed3'], epochs['plain-time/seed3'], epochs['own/seed4']) == (10, 18, 26)  # (2.6 + 1) / 2
    assert configs['plain-time/seed4'].param_scheduler[-1].end == 18  # one step an epoch: the cosine is stretched
    assert {one.record['ratio'] for one in runs if one.arm == 'plain-time'} == {1.8}


def test_the_epochs_of_plain_time_stay_when_arms_are_added(experiment, run, tmp_path):
    asked = dataclasses.replace(experiment, methods=('plain', 'mssd', 'plain-time'))
    run(asked)
    run(dataclasses.replace(asked, methods=(*asked.methods, 'ssim'), seeds=(3, 4)))
    cfg = Config.fromfile(tmp_path / 'work/plain-time/seed4/config.py')
    assert cfg.train_cfg.max_epochs == 1


@pytest.mark.parametrize(
    ('methods', 'message'),
    [
        (('plain', 'plain-time'), 'needs the arm plain and a distilled one'),
        (('plain', 'ssim', 'x=plain-time,as=mkd'), 'as=mkd is none of the distilled arms'),
        (('plain', 'ssim', 'x=plain-time,epochs=3'), 'has the options as=ARM and lr=RATE; got epochs'),
    ],
)
def test_a_plain_time_without_a_time_is_refused(experiment, methods, message):
    asked = dataclasses.replace(experiment, methods=methods)
    with pytest.raises(ValueError, match=message):
        reference_arms(asked, asked.methods[-1].split('=')[0])


def test_a_method_is_the_file_for_the_heads_of_the_pair(experiment):
    roi = toy_detector('faster-rcnn')
    asked = dataclasses.replace(experiment, methods=('ikd', 'frskd', 'x=frskd.py'), student=roi, teacher=roi)
    assert [asked.method(arm) for arm in asked.arms()] == ['ikd_roi', 'frskd_roi', 'frskd']


def test_a_name_that_meant_another_file_is_refused(experiment, run, tmp_path):
    asked = dataclasses.replace(experiment, methods=('frskd',), student=toy_detector('retinanet').to_dict())
    runs, _ = run(asked)
    record = runs[-1].record
    assert record['file'] == 'frskd_dense'
    del record['file']  # as an mmkd wrote it for which frskd was the attention maps alone
    (runs[-1].folder / 'arm.json').write_text(json.dumps(record))
    with pytest.raises(ExperimentError, match='with the method file frskd .* means frskd_dense'):
        run(asked)


def test_a_seed_that_is_added_later_gets_the_epochs_of_the_first(experiment, run, tmp_path):
    asked = dataclasses.replace(experiment, methods=('plain', 'ssim', 'plain-time'))
    timed = dataclasses.replace(asked, schedule=Schedule(epochs=10, scale=(64, 48)))
    runs, _ = run(timed)
    assert runs[-1].record['epochs'] == 26
    more = dataclasses.replace(timed, methods=('plain', 'ssim', 'mssd', 'plain-time'), seeds=(4,))
    runs, _ = run(more)  # with mssd, the mean time would be another
    assert (runs[-1].seed, runs[-1].record['epochs'], runs[-1].record['as']) == (4, 26, ['ssim'])
    stored = [{'arm': 'plain-time', 'options': [], **{key: runs[-1].record[key] for key in ('clock', 'as')}}]
    stored[0] |= dict(seed=0, epochs=31, ratio=3.1)
    elsewhere = tmp_path / 'elsewhere'
    assert [one['epochs'] for one in known_budgets(elsewhere, {'runs': stored})] == [31]
    assert [one['epochs'] for one in known_budgets(tmp_path / 'work', {'runs': stored})] == [31, 26, 26]
    assert budget_note(stored).count('31 epochs') == 1
    both = budget_note([*stored, dict(stored[0], epochs=26, seed=4)])
    assert '31 epochs' in both and '26 epochs' in both


@pytest.mark.parametrize('lets_go', [True, False])
def test_a_folder_that_a_worker_still_holds_is_waited_for(experiment, run, monkeypatch, lets_go):
    runs, _ = run(dataclasses.replace(experiment, seeds=(3, 4)))
    held_run, other = (next(one for one in runs if (one.arm, one.seed) == key) for key in (('ssim', 3), ('ssim', 4)))
    for one in (held_run, other):
        (one.folder / 'result.json').unlink()
    monkeypatch.setattr(training, 'PATIENCE', 60 if lets_go else 0.2)
    with (held_run.folder / 'config.py').open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def watch(runs):
            if lets_go and other.result:
                fcntl.flock(held, fcntl.LOCK_UN)

        asked = dataclasses.replace(experiment, seeds=(3, 4))
        if lets_go:
            assert run(asked, watch=watch)[1] == ['ssim/seed4', 'ssim/seed3']
        else:
            with pytest.raises(FailedRunsError, match='still training in .*ssim/seed3'):
                run(asked, watch=watch)
            assert other.result


def test_changed_settings_of_a_method_are_another_arm(experiment, run, monkeypatch):
    asked = dataclasses.replace(experiment, methods=('ssim',), student=toy_detector('retinanet').to_dict())
    runs, _ = run(asked)
    assert len(runs[-1].record['settings_sha256']) == 12
    assert run(asked)[1] == []
    record = {**runs[-1].record, 'settings_sha256': 'of another'}
    (runs[-1].folder / 'arm.json').write_text(json.dumps(record))
    with pytest.raises(ExperimentError, match='settings of the method file ssim have changed'):
        run(asked)
    del record['settings_sha256']  # of an mmkd that did not record them
    (runs[-1].folder / 'arm.json').write_text(json.dumps(record))
    assert run(asked)[1] == []


def test_another_experiment_is_refused_and_nothing_is_changed(experiment, run, tmp_path):
    run(experiment)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'work').rglob('*')}
    other = dataclasses.replace(experiment, schedule=Schedule(epochs=2, scale=(64, 48)))
    with pytest.raises(ExperimentError, match='it differs in schedule.epochs .2 now, 1 there.'):
        run(other)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'work').rglob('*')} == before


def test_changed_annotations_are_another_experiment(experiment, run):
    run(experiment)
    file = Path(experiment.data.val['ann_file'])
    file.write_text(file.read_text() + ' ')
    with pytest.raises(ExperimentError, match='differs in annotations'):
        run(experiment)


def test_a_folder_with_something_else_is_refused(experiment, run, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'thesis.tex').write_text('mine')
    with pytest.raises(ExperimentError, match='is not empty and holds no experiment'):
        run(experiment)


def test_two_processes_do_not_work_in_one_folder(experiment, run, tmp_path):
    def start_another(runs):
        with pytest.raises(ExperimentError, match='another process is working in'):
            run_experiment(experiment, tmp_path / 'work')

    run(experiment, watch=start_another)


def test_within_a_seed_configs_differ_in_the_model_alone(experiment, run, tmp_path):
    run(experiment)
    work = tmp_path / 'work'
    plain, ssim = (Config.fromfile(work / arm / 'seed3' / 'config.py').to_dict() for arm in ('plain', 'ssim'))
    assert ssim.pop('model')['architecture'] == plain.pop('model')
    check = ssim['default_hooks'].pop('teacher_check')  # its score is known: one of 0 must not end the other arms
    assert check == dict(type='mmkd.TeacherCheckHook', num_images=0)
    assert plain == ssim
    assert plain['randomness']['seed'] == 3


def test_seeds_differ_in_the_seed_alone(experiment, run, tmp_path):
    run(dataclasses.replace(experiment, methods=('plain',), seeds=(3, 4)))
    first, second = (Config.fromfile(tmp_path / f'work/plain/seed{s}/config.py').to_dict() for s in (3, 4))
    assert first.pop('randomness') != second.pop('randomness')
    assert first == second


def test_the_distilled_arm_learns_from_the_trained_teacher(experiment, run, tmp_path):
    runs, _ = run(experiment)
    cfg = Config.fromfile(tmp_path / 'work/ssim/seed3/config.py')
    assert cfg.model.teacher_ckpt == runs[0].result['checkpoint']
    assert Config.fromfile(cfg.model.teacher).model.type == 'Teacher'


def test_other_batches_or_another_start_are_noticed(experiment, tmp_path):
    runs = runs_of(dataclasses.replace(experiment, seeds=(3, 4)), tmp_path / 'work')
    for one in runs:
        one.folder.mkdir(parents=True)
        digests = {'file': 'x', 'initial_sha256': f's{one.seed}', 'batches_sha256': f'b{one.seed}'}
        (one.folder / 'result.json').write_text(json.dumps(digests))
    assert unfair_runs(runs) == []
    (runs[2].folder / 'result.json').write_text(json.dumps({'initial_sha256': 's3', 'batches_sha256': 'x'}))
    (runs[4].folder / 'result.json').write_text(json.dumps({'initial_sha256': 'x', 'batches_sha256': 'b4'}))
    assert unfair_runs(runs) == [
        'ssim, seed 3: other batches than plain',
        'ssim, seed 4: other initial student than plain',
    ]


def test_a_name_that_means_another_arm_now_is_refused(run, experiment):
    run(experiment)
    other = dataclasses.replace(
        experiment, methods=('plain', 'ssim=ssim,distiller.distill_losses.loss_ssim.loss.loss_weight=1')
    )
    with pytest.raises(ExperimentError, match="holds 'ssim' with the method file ssim and the options \\[\\]"):
        run(other)


def test_an_arm_with_options_is_trained_with_them(run, experiment):
    text = 'weak=ssim,distiller.distill_losses.loss_ssim.loss.loss_weight=1'
    runs, _ = run(dataclasses.replace(experiment, methods=('plain', text)))
    model = Config.fromfile(runs[-1].folder / 'config.py').model
    assert (runs[-1].arm, model.distiller.distill_losses.loss_ssim.loss.loss_weight) == ('weak', 1)


def test_plain_time_sees_more_batches_and_the_same_start(experiment):
    rows = [
        {'arm': 'plain', 'seed': 0, 'file': 'plain', 'initial_sha256': 'a', 'batches_sha256': 'b'},
        {'arm': 'plain-time', 'seed': 0, 'file': 'plain-time', 'initial_sha256': 'a', 'batches_sha256': 'longer'},
        {'arm': 'long', 'seed': 0, 'file': 'plain-time', 'initial_sha256': 'x', 'batches_sha256': 'longer'},
    ]
    assert unfair_rows(rows) == ['long, seed 0: other initial student than plain']


def test_a_folder_may_be_moved_with_its_weights(experiment, run, tmp_path):
    run(experiment)
    (tmp_path / 'work').rename(tmp_path / 'moved')
    for one in runs_of(experiment, tmp_path / 'moved'):
        assert one.checkpoint == str(one.folder / 'epoch_1.pth')


def test_a_teacher_without_weights_is_said_before_a_run_that_needs_them(experiment, run, tmp_path):
    run(experiment)
    (tmp_path / 'work/teacher/epoch_1.pth').unlink()
    assert run(experiment)[1] == []  # nothing needs them
    with pytest.raises(ExperimentError, match='weights of the teacher are gone.*l2, seed 3 needs them.*work/teacher'):
        run(dataclasses.replace(experiment, methods=('plain', 'ssim', 'l2')))


def test_a_begun_stretched_run_keeps_no_budget_of_another_arm(experiment, run, monkeypatch):
    arms = ('plain', 'ssim', 'mssd')
    monkeypatch.setenv('FAIL', 'timed')
    with pytest.raises(FailedRunsError):
        run(dataclasses.replace(experiment, methods=(*arms, 'timed=plain-time,as=mssd')))
    monkeypatch.delenv('FAIL')
    runs, _ = run(dataclasses.replace(experiment, methods=(*arms, 'timed=plain-time,as=ssim')))
    assert (runs[-1].record['as'], runs[-1].record['epochs']) == (['ssim'], 3)


def test_without_plain_the_first_arm_is_what_the_others_are_compared_with():
    rows = [dict(arm=arm, seed=1, file=arm, initial_sha256='a', batches_sha256='b') for arm in ('ssim', 'l2')]
    assert are_paired(rows) and unfair_rows(rows) == []
    rows[1]['initial_sha256'] = 'c'
    assert unfair_rows(rows) == ['l2, seed 1: other initial student than ssim']
    assert not are_paired(rows[:1]) and not are_paired([dict(rows[0], seed=2), rows[1]])

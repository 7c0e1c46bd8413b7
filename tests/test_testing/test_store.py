import dataclasses
import io
import json

import pytest
from rich.console import Console

from mmkd.testing import comparison
from mmkd.testing.checks import unmet_wishes
from mmkd.testing.comparison import Place, compare
from mmkd.testing.detection_data import detection_data
from mmkd.testing.experiment import Experiment, arm_record, runs_of
from mmkd.testing.fairness import other_teachers
from mmkd.testing.final_score import FinalSplit
from mmkd.testing.html_report import html_page
from mmkd.testing.recipe import Schedule
from mmkd.testing.remarks import rate_note, remarks
from mmkd.testing.results import FinalScores, collect_results
from mmkd.testing.runs import ExperimentError, write_json
from mmkd.testing.store import read_store, write_store
from mmkd.testing.tables import markdown, table_rows
from mmkd.testing.toy_data import make_toy_data
from mmkd.testing.training import FailedRunsError, known_runs


@pytest.fixture
def experiment(tmp_path):
    data = detection_data(make_toy_data(tmp_path / 'toy', train=2, val=1, size=(64, 48)))
    student, teacher = dict(type='Student'), dict(type='Teacher')
    return Experiment(data, student, teacher, ('plain', 'ssim', 'mssd'), (0, 1), Schedule(epochs=1, scale=(64, 48)))


def _finish(run, experiment, *, teacher='T', ap=0.3, when='then'):
    """What a worker leaves."""
    run.folder.mkdir(parents=True)
    (run.folder / 'epoch_1.pth').write_text('weights')
    result = dict(metrics={'AP': ap, 'AP50': ap}, curve=[{'epoch': 1, 'AP': ap, 'AP50': ap}], train_seconds=1.0)
    result |= dict(train_cpu_seconds=1.0, wall_seconds=1.0, peak_memory_mb=1, initial_sha256=f'i{run.seed}', threads=1)
    result |= dict(batches_sha256=f'b{run.seed}', finished=when, checkpoint=str(run.folder / 'epoch_1.pth'))
    result |= dict(weights_sha256=teacher if run.arm == 'teacher' else f'{run.arm}{run.seed}', parameters=7)
    if run.arm == 'ssim':
        result['teacher_sha256'] = teacher
    write_json(run.folder / 'result.json', result)
    record = dict(name=run.arm, method=run.arm, options=[], file=run.arm)
    write_json(run.folder / 'arm.json', record)


@pytest.fixture
def stored(experiment, tmp_path):
    """A store with all of seed 0, written on another machine."""
    runs = runs_of(experiment, tmp_path / 'there')
    for run in runs[:4]:
        _finish(run, experiment)
    write_store(
        tmp_path / 'store.json', collect_results(experiment, runs, {'plain': dict(parameters=7, gflops=1, ms=2)})
    )
    return tmp_path / 'store.json'


def _todo(runs):
    return [f'{run.arm}{run.seed}' for run in runs if run.result is None]


def test_what_is_in_the_store_is_done_and_the_teacher_is_trained_where_a_run_needs_it(experiment, stored, tmp_path):
    store = read_store(stored, experiment)
    assert _todo(known_runs(experiment, tmp_path / 'here', store)) == ['teacher0', 'plain1', 'ssim1', 'mssd1']
    without = dataclasses.replace(experiment, methods=('plain', 'mssd'))
    assert _todo(known_runs(without, tmp_path / 'here', store)) == ['plain1', 'mssd1']
    nothing = dataclasses.replace(experiment, seeds=(0,))
    assert _todo(known_runs(nothing, tmp_path / 'here', store)) == []


def test_runs_of_another_teacher_are_named_and_both_teachers_kept(experiment, stored, tmp_path):
    store = read_store(stored, experiment)
    runs = known_runs(experiment, tmp_path / 'here', store)
    for run in runs:
        if run.result is None:
            _finish(run, experiment, teacher='U', when='now')
    results = collect_results(experiment, runs, {}, store=store)
    assert len([row for row in results['runs'] if row['arm'] == 'teacher']) == 2
    (complaint,) = results['unfair']
    assert complaint.startswith('ssim, seed 1: learned from another teacher of the same recipe, U (AP 0.300)')
    assert results['arms']['teacher']['seeds'] == [0]
    assert results['arms']['plain']['gflops'] == 1  # measured there


def test_the_same_teacher_trained_again_is_no_other_teacher(experiment, stored, tmp_path):
    store = read_store(stored, experiment)
    runs = known_runs(experiment, tmp_path / 'here', store)
    for run in runs:
        if run.result is None:
            _finish(run, experiment, when='now')
    results = collect_results(experiment, runs, {}, store=store)
    assert results['unfair'] == []
    assert len(results['runs']) == 7


def test_what_is_in_the_store_stays_as_it_is(experiment, stored, tmp_path):
    runs = runs_of(experiment, tmp_path / 'here')
    for run in runs[:4]:
        _finish(run, experiment, ap=0.9, when='now')
    store = read_store(stored, experiment)
    results = collect_results(experiment, known_runs(experiment, tmp_path / 'here', store), {}, store=store)
    assert {row['metrics']['AP'] for row in results['runs']} == {0.3}


def test_other_arms_of_the_store_are_kept(experiment, stored, tmp_path):
    asked = dataclasses.replace(experiment, methods=('plain', 'l2'), seeds=(0,))
    store = read_store(stored, asked)
    results = collect_results(asked, known_runs(asked, tmp_path / 'here', store), {}, store=store)
    assert list(results['arms']) == ['teacher', 'plain', 'ssim', 'mssd']


def test_an_older_run_without_digests_learned_from_the_teacher_of_its_folder(experiment, tmp_path):
    runs = runs_of(dataclasses.replace(experiment, seeds=(0,)), tmp_path / 'work')
    for run in runs:
        _finish(run, experiment)
    file = tmp_path / 'work' / 'ssim' / 'seed0' / 'result.json'
    result = json.loads(file.read_text())
    del result['teacher_sha256']
    file.write_text(json.dumps(result))
    (row,) = [row for row in collect_results(experiment, runs, {})['runs'] if row['arm'] == 'ssim']
    assert row['teacher_sha256'] == 'T'
    assert other_teachers([row]) == []


def test_a_store_of_another_experiment_is_refused(experiment, stored):
    other = dataclasses.replace(experiment, schedule=Schedule(epochs=2, scale=(64, 48)))
    with pytest.raises(ExperimentError, match='another experiment: it differs in schedule.epochs .2 now, 1 there'):
        read_store(stored, other)


def test_a_name_that_is_another_arm_in_the_store_is_refused(experiment, stored, tmp_path):
    asked = dataclasses.replace(experiment, methods=('plain', 'ssim=l2'), student=experiment.student)
    with pytest.raises(ExperimentError, match="the store holds 'ssim' with the method file ssim .* means l2"):
        known_runs(asked, tmp_path / 'here', read_store(stored, asked))


@pytest.mark.parametrize(
    ('content', 'message'),
    [('{', 'holds no results'), ('[]', 'holds no results'), ('{"runs": []}', 'could not go on from it')],
)
def test_a_file_that_is_no_store_is_refused_and_left(experiment, tmp_path, content, message):
    file = tmp_path / 'x.json'
    file.write_text(content)
    with pytest.raises(ExperimentError, match=message):
        read_store(file, experiment)
    assert file.read_text() == content


def test_a_store_has_one_line_a_run_and_reads_back(experiment, stored):
    lines = [line for line in stored.read_text().splitlines() if line.startswith('  {"arm"')]
    assert len(lines) == 4
    assert len(json.loads(stored.read_text())['runs']) == 4


def test_a_report_from_a_store_alone_leaves_it_and_names_the_command_that_trained(experiment, stored, tmp_path):
    content = json.loads(stored.read_text())
    content['setting']['commands'] = ['trained so']
    write_store(stored, content)
    place = Place(tmp_path / 'empty', stored, 'reported so')
    results = compare(experiment, place, Console(file=io.StringIO()), train=False)
    assert results['setting']['commands'] == ['trained so']
    assert results['missing'] == ['plain, seed 1', 'ssim, seed 1', 'mssd, seed 1']
    assert (tmp_path / 'empty/pictures/ap_curve.png').is_file()
    after = json.loads(stored.read_text())
    assert (after['runs'], after['setting']) == (content['runs'], content['setting'])


def test_a_store_in_a_folder_that_is_not_there_is_a_mistake(experiment, tmp_path):
    with pytest.raises(ExperimentError, match='there is no folder'):
        read_store(tmp_path / 'nowhere' / 'x.json', experiment)


def test_the_teacher_is_one_whatever_seeds_are_asked_for(experiment, tmp_path):
    runs = runs_of(experiment, tmp_path / 'work')
    for run in runs:
        _finish(run, experiment)
    write_store(tmp_path / 'store.json', collect_results(experiment, runs, {}))
    asked = dataclasses.replace(experiment, seeds=(1,))
    store = read_store(tmp_path / 'store.json', asked)
    results = collect_results(asked, known_runs(asked, tmp_path / 'work', store), {}, store=store)
    assert results['arms']['teacher']['seeds'] == [0]
    assert runs_of(asked, tmp_path)[0].seed == 0, 'more seeds in a new folder have the same teacher'
    other = dataclasses.replace(asked, teacher_seed=5)
    assert runs_of(other, tmp_path)[0].seed == 5
    with pytest.raises(ExperimentError, match=r'the store holds a teacher of seed 0, and --teacher-seed is 5'):
        known_runs(other, tmp_path / 'empty', store)
    known_runs(dataclasses.replace(asked, teacher_seed=0), tmp_path / 'empty', store)


def test_a_teacher_keeps_the_seed_that_it_was_trained_with(experiment, tmp_path):
    first = runs_of(dataclasses.replace(experiment, teacher_seed=4), tmp_path / 'work')[0]
    _finish(first, experiment)
    write_json(first.folder / 'arm.json', arm_record(experiment, first))
    results = collect_results(experiment, runs_of(experiment, tmp_path / 'work'), {})
    assert results['arms']['teacher']['seeds'] == [4]


def test_a_final_score_belongs_to_the_teacher_that_was_scored_and_a_lost_one_leaves_the_column(
    experiment, stored, tmp_path
):
    store = read_store(stored, experiment)
    runs = known_runs(experiment, tmp_path / 'here', store)
    for run in runs:
        if run.result is None:
            _finish(run, experiment, teacher='U', when='now')
    found = {(run.arm, run.seed): {'metrics': {'AP test': 0.1}, 'final_sitting': '2026-11-22'} for run in runs}
    final = FinalScores(found, {'split': 'test', 'images': 2})
    results = collect_results(experiment, runs, {}, store=store, final=final)
    scored = {row['weights_sha256']: 'AP test' in row['metrics'] for row in results['runs'] if row['arm'] == 'teacher'}
    assert scored == {'T': False, 'U': True}
    assert {row.get('final_sitting') for row in results['runs'] if 'AP test' in row['metrics']} == {'2026-11-22'}
    assert results['setting']['metrics'] == ['AP', 'AP50', 'AP test']
    heads, body = table_rows(results)
    assert [row[heads.index('AP test')] for row in body][:2] == ['-', '10.0 ± 0.0']
    html_page([results])


def test_an_arm_that_was_not_scored_on_the_final_split_has_dashes_there(experiment, tmp_path):
    runs = runs_of(experiment, tmp_path / 'work')
    for run in runs:
        _finish(run, experiment)
    found = {(run.arm, run.seed): {'metrics': {'AP test': 0.1}} for run in runs if run.arm != 'mssd'}
    described = {'split': 'test', 'images': 2}
    results = collect_results(experiment, runs, {}, final=FinalScores(found, described))
    heads, body = table_rows(results)
    column = {row[0]: row[heads.index('AP test')] for row in body}
    assert column == {'teacher': '10.0', 'plain': '10.0 ± 0.0', 'ssim': '10.0 ± 0.0', 'mssd': '-'}
    html_page([results])
    del found['ssim', 1]
    results = collect_results(experiment, runs, {}, final=FinalScores(found, described))
    assert results['setting']['metrics'] == ['AP', 'AP50'], 'a mean of one seed beside means of two'


def test_runs_that_another_process_adds_to_the_store_meanwhile_stay(experiment, stored, tmp_path, monkeypatch):
    def draw(*_, **__):
        content = json.loads(stored.read_text())
        content['runs'].append({**content['runs'][1], 'arm': 'l2'})
        write_store(stored, content)
        return []

    monkeypatch.setattr(comparison, 'draw_pictures', draw)
    compare(experiment, Place(tmp_path / 'empty', stored), Console(file=io.StringIO()), train=False)
    assert 'l2' in [row['arm'] for row in json.loads(stored.read_text())['runs']]


def test_failed_runs_are_named_also_where_a_final_split_was_asked_for(experiment, tmp_path, monkeypatch):
    def train(*_, **__):
        runs = runs_of(experiment, tmp_path / 'work')
        for run in runs[:2]:
            _finish(run, experiment)
        raise FailedRunsError('the disk is full', runs)

    monkeypatch.setattr(comparison, 'run_experiment', train)
    for name in ('_costs', 'draw_pictures'):
        monkeypatch.setattr(comparison, name, lambda *_, **__: {})
    place = Place(tmp_path / 'work', final=FinalSplit('test', experiment.data))
    with pytest.raises(FailedRunsError, match='the disk is full') as failure:
        compare(experiment, place, Console(file=io.StringIO()))
    assert list(failure.value.results['arms']) == ['teacher', 'plain']


def test_the_date_is_that_of_the_last_run_and_not_of_the_report(experiment, tmp_path):
    runs = runs_of(experiment, tmp_path / 'work')
    for run in runs:
        _finish(run, experiment, when=f'2025-03-0{1 + run.seed}T10:00:00+00:00')
    assert collect_results(experiment, runs, {})['setting']['date'] == '2025-03-02'


def test_a_finished_experiment_is_written_into_a_store_that_is_named_later(experiment, tmp_path, monkeypatch):
    for name in ('_costs', 'draw_pictures'):
        monkeypatch.setattr(comparison, name, lambda *_, **__: {})
    for run in runs_of(experiment, tmp_path / 'work'):
        _finish(run, experiment)
    console = Console(file=io.StringIO())
    first = compare(experiment, Place(tmp_path / 'work', command='trained so'), console, train=False)
    assert first['setting']['commands'] == []
    for store in (None, tmp_path / 'late.json'):
        compare(experiment, Place(tmp_path / 'work', store), console, train=False)
    assert 'up to date' in console.file.getvalue()
    assert json.loads((tmp_path / 'late.json').read_text())['runs'] == first['runs']


def test_every_command_that_made_the_runs_is_kept(experiment, stored, tmp_path):
    store = read_store(stored, experiment)
    store['setting'] = {**store['setting'], 'command': 'first'}
    del store['setting']['commands']
    results = collect_results(experiment, known_runs(experiment, tmp_path, store), {}, command='second', store=store)
    assert results['setting']['commands'] == ['first', 'second']
    again = collect_results(experiment, known_runs(experiment, tmp_path, store), {}, command='second', store=results)
    assert again['setting']['commands'] == ['first', 'second']
    assert 'Command: `first`\n\nCommand: `second`' in markdown(results)


def test_what_a_finished_run_lacks_is_said(experiment, stored, tmp_path):
    runs = known_runs(experiment, tmp_path / 'here', read_store(stored, experiment))
    assert unmet_wishes(experiment, runs) == []
    (text,) = unmet_wishes(dataclasses.replace(experiment, diagnose=True, methods=('plain', 'ssim')), runs[:3])
    assert text.startswith('ssim, seed 0 was trained without a diagnosis')
    sizes = dataclasses.replace(experiment.data, metrics={**experiment.data.metrics, 'coco/bbox_mAP_s': 'AP_small'})
    texts = unmet_wishes(dataclasses.replace(experiment, data=sizes), runs)
    assert 'plain, seed 0 was scored without AP_small' in texts[0]


def test_settings_that_were_not_recorded_are_no_proof(experiment, tmp_path):
    rows = [dict(arm='ssim', seed=seed, file='ssim', options=[]) for seed in (0, 1)]
    assert remarks(rows)['notes'] == []
    rows[1]['settings_sha256'] = 'x'
    assert 'Some runs of ssim were made before settings were recorded' in remarks(rows)['notes'][0]
    rows = [dict(arm='x4', seed=0, file='ssim', options=[['a.b', '4']])]
    assert remarks(rows)['notes'] == ['x4 is the method file ssim with a.b=4.']
    rows = [dict(arm='fast', seed=0, file='plain', options=[['lr', '4e-3']]), dict(arm='plain', seed=0, file='plain')]
    assert remarks(rows)['notes'] == ['fast is plain with peak learning rate 0.004.']


def test_a_better_learning_rate_of_plain_is_said():
    def row(arm, seed, score, **more):
        return dict(arm=arm, seed=seed, file='plain', metrics={'AP': score, 'AP50': 1 - score}, **more)

    fast = dict(options=[['lr', '0.01']])
    rows = [row('plain', 0, 0.40), row('plain', 1, 0.30), row('fast', 0, 0.39, **fast), row('fast', 1, 0.32, **fast)]
    assert rate_note(rows).startswith('fast, plain at another learning rate, has a higher mean AP than plain')
    assert rate_note(rows) in remarks(rows)['notes']
    assert rate_note(rows[:3]) == ''  # below plain in the seed that both have
    assert rate_note([*rows[:1], row('fast', 1, 0.9, **fast)]) == ''  # no seed is shared
    assert rate_note(rows[2:]) == ''
    assert rate_note([*rows[:1], row('again', 0, 0.9)]) == ''  # not at another rate

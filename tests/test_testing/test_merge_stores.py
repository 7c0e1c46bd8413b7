import copy
import json

import pytest

from mmkd.testing.merge_stores import main, merge
from mmkd.testing.report import load_results
from mmkd.testing.runs import ExperimentError
from mmkd.testing.store import write_store


def row(arm, seed, ap, **more):
    found = dict(arm=arm, seed=seed, method=arm, file=arm, options=[], metrics={'AP': ap}, epochs=2, threads=1)
    found |= dict(train_seconds=1.0, train_cpu_seconds=1.0, peak_memory_mb=9, hardware='one core', code='c')
    found |= dict(initial_sha256=f'i{seed}', batches_sha256=f'b{seed}', finished=f'2026-11-2{seed}T00:00:00')
    return found | more


def store(*rows, costs=(), **setting):
    known = dict(data='toy', metrics=['AP'], seeds=[0], epochs=2, commands=['first'], percent=True)
    known |= dict(scale=[64, 48], train_images=2, val_images=1, classes=['a'], hardware='one core', threads=1)
    known |= dict(student='S', teacher='T', batch=2, lr=0.1, teacher_lr=0.1, teacher_epochs=2, date='2026-11-20')
    identity = dict(data='toy', student='s', schedule=dict(epochs=2))
    found = dict(identity=identity, setting=known | setting, arms=dict(costs), runs=list(rows))
    return found | dict(missing=['lost'], unfair=[], notes=[])


@pytest.fixture
def parts():
    here = store(row('plain', 0, 0.30), row('plain', 1, 0.40), costs=[('plain', dict(gflops=1))])
    there = store(
        row('plain', 0, 0.30), row('ssim', 0, 0.35), costs=[('plain', dict(gflops=2, ms=5)), ('ssim', dict(ms=7))]
    )
    there['setting']['commands'] = ['first', 'second']
    return {'here': here, 'there': there, 'third': store(row('ssim', 1, 0.41))}


def test_means_and_pairs_are_found_again_from_all_runs(parts):
    merged = merge(parts)
    assert [(r['arm'], r['seed']) for r in merged['runs']] == [('plain', 0), ('plain', 1), ('ssim', 0), ('ssim', 1)]
    assert merged['arms']['ssim']['AP - plain']['mean'] == pytest.approx(0.03)
    assert merged['arms']['ssim']['AP - plain']['count'] == 2
    assert merged['arms']['plain'] | dict(gflops=1, ms=5) == merged['arms']['plain']  # each of the first that knows
    assert merged['arms']['ssim']['ms'] == 7
    assert merged['setting']['seeds'] == [0, 1]
    assert merged['setting']['commands'] == ['first', 'second']
    assert merged['setting']['date'] == '2026-11-21'
    assert merged['missing'] == [] and merged['unfair'] == []


def test_what_the_tables_must_warn_of_is_found_again(parts):
    parts['third']['runs'][0]['batches_sha256'] = 'other'
    parts['third']['runs'][0]['code'] = 'd'
    merged = merge(parts)
    assert merged['unfair'] == ['ssim, seed 1: other batches than plain']
    assert '2 versions of the code' in merged['notes'][0]


def test_a_further_split_is_named_where_no_arm_has_its_scores_in_part(parts):
    scored = copy.deepcopy(parts['here'])
    scored['setting'] |= dict(final=dict(split='test', images=1), metrics=['AP', 'AP test'])
    for found in scored['runs']:
        found['metrics'] = found['metrics'] | {'AP test': 0.2}
    assert merge({'scored': scored, 'third': parts['third']})['setting']['final']['split'] == 'test'
    other = store(row('plain', 2, 0.41))
    assert 'final' not in merge({'scored': scored, 'other': other})['setting'], 'plain is scored for two of three seeds'
    rest = copy.deepcopy(scored)
    rest['runs'] = [dict(found, arm='mssd', file='mssd', method='mssd') for found in rest['runs']]
    merged = merge({'scored': scored, 'rest': rest})
    assert merged['setting']['final'] == dict(split='test', images=1)
    assert merged['setting']['metrics'] == ['AP', 'AP test']


def test_different_experiments_are_refused(parts):
    parts['third']['identity'] = dict(data='bccd', student='s', schedule=dict(epochs=3))
    with pytest.raises(
        ExperimentError, match=r"data \('toy' in here, 'bccd' in third\), schedule.epochs \(2 in here, 3"
    ):
        merge(parts)


def test_an_arm_that_means_two_things_is_refused(parts):
    parts['third']['runs'][0]['options'] = [['w', 2]]
    with pytest.raises(ExperimentError, match=r"'ssim' is not the same arm in there and third: options is \[\] there"):
        merge(parts)


def test_a_run_that_ended_differently_is_refused(parts):
    parts['there']['runs'][0]['metrics'] = {'AP': 0.31}
    with pytest.raises(ExperimentError, match='plain, seed 0, was run twice and ended differently: .*0.3.*0.31'):
        merge(parts)


def test_the_command_writes_a_store_and_nothing_over_another_file(parts, tmp_path, capsys):
    for name, part in parts.items():
        write_store(tmp_path / f'{name}.json', part)
    files = [str(tmp_path / f'{name}.json') for name in parts]
    assert main([*files, '--out', str(tmp_path / 'all.json')]) == 0
    assert len(load_results(tmp_path / 'all.json')['runs']) == 4
    before = (tmp_path / 'all.json').read_text()
    assert main([*files, '--out', str(tmp_path / 'all.json')]) == 1
    assert 'all.json exists and is none of the stores' in capsys.readouterr().err
    assert (tmp_path / 'all.json').read_text() == before
    assert main([*files, '--out', files[0]]) == 0  # gone on with
    assert len(json.loads((tmp_path / 'here.json').read_text())['runs']) == 4


def test_files_that_are_no_stores_are_named(tmp_path, parts, capsys):
    write_store(tmp_path / 'here.json', parts['here'])
    (tmp_path / 'old.json').write_text(
        json.dumps({key: parts['here'][key] for key in ('setting', 'arms', 'runs', 'unfair')})
    )
    out = ['--out', str(tmp_path / 'out.json')]
    assert main([str(tmp_path / 'here.json'), str(tmp_path / 'none.json'), *out]) == 1
    assert 'none.json' in capsys.readouterr().err
    assert main([str(tmp_path / 'here.json'), str(tmp_path / 'old.json'), *out]) == 1
    assert 'old.json does not say of which experiment it is' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / 'here.json'), str(tmp_path / 'here.json'), *out])
    assert not (tmp_path / 'out.json').exists()

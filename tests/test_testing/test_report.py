import io
import json

import pytest
from rich.console import Console

from mmkd.testing.hold_back import HELD_BACK
from mmkd.testing.html_report import html_page
from mmkd.testing.remarks import teacher_note
from mmkd.testing.report import main, write_section
from mmkd.testing.results import summarise
from mmkd.testing.tables import markdown, print_table, short_markdown, short_rows, table_rows


def _row(arm, seed, ap):
    row = {'arm': arm, 'seed': seed, 'metrics': {'AP': ap}, 'train_seconds': 10.0, 'peak_memory_mb': 500}
    return {**row, 'curve': [{'epoch': 12, 'AP': ap}]}


@pytest.fixture
def results():
    rows = [_row('teacher', 0, 0.5)]
    rows += [_row('plain', seed, 0.30 + 0.02 * seed) for seed in range(3)]
    rows += [_row('ssim', seed, 0.31 + 0.02 * seed) for seed in range(3)]
    costs = {arm: {'parameters': 1_090_000, 'gflops': 0.23, 'ms': 12.0} for arm in ('teacher', 'plain', 'ssim')}
    setting = dict(data='cells', train_images=205, val_images=87, scale=[320, 240], epochs=12, batch=4, lr=0.002)
    setting |= dict(
        teacher_lr=0.001, teacher_epochs=12, seeds=[0, 1, 2], metrics=['AP'], percent=100.0, classes=['RBC']
    )
    setting |= dict(hardware='2 CPU cores', threads=1, date='2026-11-21', command='quickstart --data cells')
    return {'setting': setting, 'arms': summarise(rows, ['AP'], costs), 'unfair': [], 'runs': rows}


def test_the_difference_is_paired_by_seed(results):
    difference = results['arms']['ssim']['AP - plain']
    assert difference['mean'] == pytest.approx(0.01)
    assert difference['low'] == pytest.approx(0.01) and difference['high'] == pytest.approx(0.01)
    assert results['arms']['ssim']['AP']['high'] - results['arms']['ssim']['AP']['low'] > 0.05


def test_scores_on_held_back_training_images_are_called_that(results):
    assert 'which nothing was chosen on by the tool' in markdown(results)
    results['setting']['data'] = f'cells{HELD_BACK}'
    assert 'held back from the training split, on which settings were chosen' in markdown(results)
    assert 'nothing was chosen' not in markdown(results)


def test_teacher_and_plain_have_no_difference_to_plain(results):
    assert 'AP - plain' not in results['arms']['plain']
    heads, body = table_rows(results)
    assert [row[heads.index('AP - plain')] for row in body] == ['-', '-', '+1.0 ± 0.0']


@pytest.mark.parametrize(('score', 'said'), [(0.5, False), (0.32, True), (0.0, True)])
def test_a_teacher_that_is_no_better_than_plain_is_named(score, said):
    rows = [_row('teacher', 0, score), *(_row('plain', seed, 0.30 + 0.02 * seed) for seed in range(3))]
    assert ('no better than the plain student' in teacher_note(rows)) == said
    assert teacher_note(rows[1:]) == teacher_note(rows[:1]) == ''


def test_a_teacher_that_nobody_learned_from_is_not_named():
    rows = [_row('teacher', 0, 0.1), _row('plain', 0, 0.3), _row('mssd', 0, 0.3)]
    assert teacher_note(rows) == ''
    assert teacher_note([*rows, {**_row('x', 0, 0.3), 'file': 'ssim'}]) != ''


def test_a_page_says_what_is_not_finished_and_that_seeds_differ(results):
    assert 'Not finished' not in markdown(results) and 'same seeds' not in markdown(results)
    results['missing'] = ['ssim, seed 3', 'plain, seed 4']
    results['arms']['ssim']['seeds'] = [1, 2, 3]
    for text in (markdown(results), html_page([results])):
        assert text.count('Not finished: ssim, seed 3; plain, seed 4.') == 1
        assert text.count('Not every arm has the same seeds') == 1
        assert text.count('Plain over the seeds 1, 2: AP 33.0.') == 1
    assert 'Differences use the seeds that both arms have. Plain over the seeds 1, 2: AP 33.0.' in short_markdown(
        results
    )


def test_curves_are_means_over_the_seeds_that_all_arms_have(results):
    results['setting']['epochs'] = 2
    for row in results['runs']:
        row['curve'] = [{'epoch': 1, 'AP': 0.1 * row['seed']}, {'epoch': 2, 'AP': 0.2}]
    assert '| plain | 10.0 | 20.0 |' in markdown(results)
    assert 'mean over the seeds 0, 1, 2, which all arms have:' in markdown(results)
    results['runs'] = [row for row in results['runs'] if (row['arm'], row['seed']) != ('ssim', 0)]
    assert '| plain | 15.0 | 20.0 |' in markdown(results)
    assert 'mean over the seeds 1, 2, which all arms have:' in markdown(results)
    results['runs'] = [row for row in results['runs'] if (row['arm'] == 'ssim') == (row['seed'] == 2)]
    assert '| plain | 5.0 | 20.0 |' in markdown(results), 'no seed in common: each over its own'
    assert 'mean over the seeds:' in markdown(results)


def test_the_columns_of_a_final_split_are_explained(results):
    assert 'final' not in markdown(results)
    results['setting']['final'] = {'split': 'test', 'images': 72}
    said = 'Columns that end in "test" are scores on the split test, 72 images. Each run was scored there once, '
    said += 'behind its '
    assert said + 'training.' in markdown(results) and said.replace('"', '&quot;') in html_page([results])
    for row in results['runs']:
        row['final_sitting'] = '2026-11-22'
    assert said + 'training.' in markdown(results)
    results['runs'][1]['final_sitting'] = '2026-11-23'
    count = len(results['runs']) - 1
    text = f'{said}training, in 2 sittings (UTC): 2026-11-22 ({count} runs), 2026-11-23 (1 runs).'
    assert text in markdown(results) and text in short_markdown(results)


def test_what_a_distillation_did_is_shown_where_it_was_measured(results):
    assert 'gradient / task' not in markdown(results) + html_page([results])
    found = dict(name='loss_ssim', readings=16, weight=4.0, share=0.25, cosine=-0.5, negative=1.0)
    found |= dict(similarity=[0.1, 0.75], before=[None, None], value=[2.0, 1.0])
    results['runs'][4]['diagnosis'] = [found]
    assert '| ssim, seed 0 | loss_ssim | 4 | 0.25 | -0.5 | 0.1 -> 0.75 | - | 2 -> 1 |' in markdown(results)
    assert 'gradient / task' in html_page([results])


def test_the_page_has_the_main_score_over_the_epochs(results):
    assert 'Over the epochs' not in markdown(results)
    for row in results['runs']:
        row['curve'].insert(0, {'epoch': 6, 'AP': row['metrics']['AP'] / 2})
    results['runs'][0]['curve'].insert(0, {'epoch': 3, 'AP': 0.1})  # the teacher's
    results['runs'][-1]['curve'].insert(0, {'epoch': 4, 'AP': 0.1})  # of one seed alone: no mean
    results['runs'].append(_row('plain-time', 0, 0.4) | {'curve': [{'epoch': e, 'AP': 0.3} for e in (7, 19)]})
    table = markdown(results).split('which all arms have:\n\n')[1].split('\n\n')[0].splitlines()
    assert table[0] == '| AP after | epoch 4 | epoch 6 | epoch 12 |'
    assert table[2:] == ['| plain | - | 16.0 | 32.0 |', '| ssim | - | 16.5 | 33.0 |']


def test_scores_that_are_percentages_are_not_multiplied_again(results):
    results['setting']['percent'] = 1.0
    heads, body = table_rows(results)
    assert body[0][heads.index('AP')] == '0.5'


def test_the_page_says_data_schedule_seeds_hardware_and_date(results):
    text = markdown(results)
    for part in ('cells', '205 training and 87 validation', '12 epochs', 'Seeds 0, 1, 2', '2 CPU cores', '2026-11-21'):
        assert part in text
    assert '`quickstart --data cells`' in text


def test_an_unfair_pair_is_said_in_every_output(results):
    results['unfair'] = ['ssim, seed 1: other batches than plain']
    console = Console(record=True, width=120, file=io.StringIO())
    print_table(results, console)
    assert 'other batches than plain' in markdown(results)
    assert 'other batches than plain' in console.export_text()


def test_one_seed_is_called_one_seed(results):
    results['setting']['seeds'] = [0]
    assert 'a single run proves little' in markdown(results)


def test_the_terminals_table_is_whole_where_there_is_no_terminal(results, capsys):
    print_table(results)
    shown = capsys.readouterr().out
    assert '…' not in shown and 'ssim' in shown and '12 epochs' in shown
    results['setting']['epochs'] = 1
    print_table(results)
    assert '1 epoch;' in capsys.readouterr().out


def test_a_section_replaces_itself_and_leaves_the_rest(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# Results\n\nby hand\n')
    write_section(page, 'cells', 'old')
    write_section(page, 'shapes', 'other')
    write_section(page, 'cells', 'new')
    assert page.read_text() == (
        '# Results\n\nby hand\n\n<!-- cells -->\nnew\n<!-- /cells -->\n\n<!-- shapes -->\nother\n<!-- /shapes -->\n'
    )


def test_a_page_with_half_a_section_is_refused(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('<!-- cells -->\n')
    with pytest.raises(ValueError, match='only one of'):
        write_section(page, 'cells', 'text')


def test_the_command_line_writes_page_and_json(tmp_path, results):
    (tmp_path / 'results.json').write_text(json.dumps(results))
    main([str(tmp_path), '--page', str(tmp_path / 'docs' / 'page.md'), '--json', str(tmp_path / 'docs' / 'copy.json')])
    assert '| ssim | 3 |' in (tmp_path / 'docs' / 'page.md').read_text()
    assert json.loads((tmp_path / 'docs' / 'copy.json').read_text()) == results | {'notes': []}


def test_the_short_table_has_the_main_score_best_gain_first(results):
    results['arms']['worse'] = {**results['arms']['ssim'], 'AP - plain': dict(mean=-0.02, low=None, high=None, count=1)}
    results['arms'] = {arm: results['arms'][arm] for arm in ('teacher', 'worse', 'plain', 'ssim')}
    heads, body = short_rows(results)
    assert heads == ['arm', 'seeds', 'AP', 'AP - plain']
    assert [cells[0] for cells in body] == ['teacher', 'plain', 'ssim', 'worse']
    assert body[2] == ['ssim', '3', '33.0 ± 5.0', '+1.0 ± 0.0']


def test_the_short_table_has_the_final_split_too(results):
    results['setting']['final'] = dict(split='test', images=72)
    results['arms']['ssim'] |= {'AP test': dict(mean=0.3, low=None, high=None, count=1)}
    heads, body = short_rows(results)
    assert heads[2:] == ['AP', 'AP - plain', 'AP test', 'AP test - plain']
    assert next(cells for cells in body if cells[0] == 'ssim')[4:] == ['30.0', '-']
    assert 'scores on the split test, 72 images' in short_markdown(results)


def test_several_stores_come_onto_one_page_each_in_its_section(tmp_path, results):
    for name in ('cells', 'roads'):
        (tmp_path / f'{name}.json').write_text(json.dumps(results))
    page, front = tmp_path / 'long.md', tmp_path / 'short.md'
    sources = [str(tmp_path / f'{name}.json') for name in ('cells', 'roads')]
    main([*sources, '--page', str(page), '--short-page', str(front), '--html', str(tmp_path / 'out' / 'all.html')])
    for text in (page.read_text(), front.read_text()):
        assert text.index('<!-- cells -->') < text.index('<!-- /cells -->') < text.index('<!-- roads -->')
    assert 'M params' in page.read_text() and 'M params' not in front.read_text()
    assert (tmp_path / 'out' / 'all.html').read_text().count('<h3>Scores</h3>') == 2


@pytest.mark.parametrize(
    ('content', 'message'), [(None, 'an experiment writes it'), ('{', 'no JSON file'), ('{}', 'holds no results')]
)
def test_what_is_no_result_is_said_in_one_line(tmp_path, content, message):
    file = tmp_path / 'x.json'
    if content:
        file.write_text(content)
    with pytest.raises(SystemExit, match=message):
        main([str(file)])


def test_two_experiments_of_one_name_do_not_share_a_section(results, tmp_path, capsys):
    for name in 'ab':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'results.json').write_text(json.dumps(results))
    words = [str(tmp_path / 'a'), str(tmp_path / 'b'), '--page', str(tmp_path / 'page.md')]
    with pytest.raises(SystemExit):
        main(words)
    assert "two sources would write the section 'cells'" in capsys.readouterr().err
    assert not (tmp_path / 'page.md').exists()


def test_the_results_of_another_experiment_are_not_replaced(results, tmp_path):
    source, target = tmp_path / 'a.json', tmp_path / 'b.json'
    source.write_text(json.dumps(results))
    target.write_text(json.dumps({**results, 'identity': {'data': 'another'}}))
    with pytest.raises(SystemExit, match='another experiment'):
        main([str(source), '--json', str(target)])
    assert json.loads(target.read_text())['identity'] == {'data': 'another'}

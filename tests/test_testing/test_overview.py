"""One table over several experiments."""

import json

import pytest

from mmkd.testing.overview import main, overview_rows
from mmkd.testing.results import summarise


def _results(gain: float, spread: float, *, arm: str = 'ssim', metrics: tuple[str, ...] = ('AP',)) -> dict:
    """Three seeds, in which the arm's gains are `gain` and that plus and minus `spread`."""
    rows = []
    for seed, off in enumerate((-spread, 0.0, spread)):
        plain = 0.30 + 0.01 * seed
        for name, value in (('plain', plain), (arm, plain + gain + off)):
            scores = dict.fromkeys(metrics, value)
            rows.append(dict(arm=name, seed=seed, metrics=scores, curve=[], train_seconds=1.0, peak_memory_mb=1))
    setting = dict(metrics=list(metrics), percent=100.0, seeds=[0, 1, 2])
    return dict(setting=setting, arms=summarise(rows, list(metrics), {}), runs=rows, unfair=[])


def test_gains_stand_side_by_side_and_those_whose_interval_leaves_zero_are_bold():
    found = dict(first=_results(0.02, 0.001), second=_results(0.02, 0.02), third=_results(-0.03, 0.001))
    heads, body = overview_rows(found)
    assert heads == ['', 'first, AP', 'second, AP', 'third, AP']
    assert [row[0] for row in body] == ['seeds', 'plain', 'ssim']
    assert body[0][1:] == ['3', '3', '3']
    assert body[1][1].startswith('31.0 ± ')
    assert body[2][1:] == ['**+2.0 ± 0.2**', '+2.0 ± 5.0', '**-3.0 ± 0.2**']


def test_a_row_takes_the_first_arm_that_an_experiment_has():
    found = dict(a=_results(0.02, 0.001), b=_results(0.01, 0.001, arm='ssim-x4'))
    _, body = overview_rows(found, {'ssim': ['ssim', 'ssim-x4']})
    assert body[2] == ['ssim', '**+2.0 ± 0.2**', '**+1.0 ± 0.2**']
    assert overview_rows(found)[1][2:] == [['ssim', '**+2.0 ± 0.2**', '-'], ['ssim-x4', '-', '**+1.0 ± 0.2**']]


def test_small_objects_and_the_final_split_have_columns():
    results = _results(0.02, 0.001, metrics=('AP', 'AP50', 'AP_small'))
    results['setting']['final'] = dict(split='test', images=72)
    results['arms']['ssim']['AP test - plain'] = dict(mean=0.01, low=-0.01, high=0.03)
    heads, body = overview_rows(dict(cells=results))
    assert heads[1:] == ['cells, AP', 'cells, AP test', 'cells, AP_small']
    assert body[2][1:] == ['**+2.0 ± 0.2**', '+1.0 ± 2.0', '**+2.0 ± 0.2**']
    assert body[1][2] == '-'


def test_a_cell_says_where_it_has_fewer_seeds_than_its_column():
    results = _results(0.02, 0.001)
    results['arms']['ssim']['AP - plain']['count'] = 2
    assert overview_rows(dict(cells=results))[1][2][1] == '**+2.0 ± 0.2 (of 2)**'


def test_two_columns_of_one_name_are_refused(tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'cells.json').write_text(json.dumps(_results(0.02, 0.001)))
    with pytest.raises(SystemExit, match="two columns would be called 'cells'"):
        main([str(tmp_path / folder / 'cells.json') for folder in ('a', 'b')])


def test_the_command_writes_the_section_of_a_page(tmp_path, capsys):
    (tmp_path / 'cells.json').write_text(json.dumps(_results(0.02, 0.001)))
    page = tmp_path / 'page.md'
    page.write_text('# Results\n\n<!-- overview -->\nold\n<!-- /overview -->\n\nend\n')
    main([f'Blood cells={tmp_path / "cells.json"}', '--page', str(page)])
    text = page.read_text()
    assert '|  | Blood cells, AP |' in text and '| ssim | **+2.0 ± 0.2** |' in text
    assert 'old' not in text and text.endswith('end\n')


def test_an_unknown_arm_or_file_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / 'cells.json').write_text(json.dumps(_results(0.02, 0.001)))
    page = tmp_path / 'page.md'
    with pytest.raises(SystemExit, match=r"no experiment has an arm 'sim'; nearest: ssim"):
        main([str(tmp_path / 'cells.json'), '--arms', 'sim', '--page', str(page)])
    with pytest.raises(SystemExit, match='absent.json'):
        main([str(tmp_path / 'absent.json'), '--page', str(page)])
    assert not page.exists()

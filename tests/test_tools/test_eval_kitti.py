"""`tools/eval_kitti.py` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'eval_kitti.py'
CAR = 'Car 0 0 -1.57 100 100 200 200 1 2 3 4 5 6 0.1'


def run(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, 'PYTHONPATH': ''})


@pytest.fixture
def folders(tmp_path):
    """50 frames, each with one car that is found exactly."""
    labels, results = tmp_path / 'label_2', tmp_path / 'results'
    labels.mkdir()
    results.mkdir()
    for index in range(50):
        (labels / f'{index:06d}.txt').write_text(CAR + '\n')
        (results / f'{index:06d}.txt').write_text(CAR + ' 0.9\n')
    return labels, results


def test_prints_a_table_and_writes_json(folders, tmp_path):
    done = run('--labels', folders[0], '--results', folders[1], '--json', tmp_path / 'ap.json')
    assert done.returncode == 0, done.stderr
    assert '100.0000' in done.stdout
    assert '50/50/50' in done.stdout
    written = json.loads((tmp_path / 'ap.json').read_text())
    assert written['Car'] == {'R40': [100.0] * 3, 'R11': [100.0] * 3, 'num_gt': [50] * 3}
    assert list(written) == ['Car', 'Pedestrian', 'Cyclist']
    assert 'Cyclist: no ground truth' in done.stderr


def test_frames_without_a_result_file_count_as_missed(folders, tmp_path):
    for index in range(25):
        (folders[1] / f'{index:06d}.txt').unlink()
    done = run('--labels', folders[0], '--results', folders[1], '--json', tmp_path / 'ap.json', '--classes', 'Car')
    assert 'no file for 25 frames (000000, 000001, 000002, ...)' in done.stderr
    assert json.loads((tmp_path / 'ap.json').read_text())['Car']['R40'][0] == pytest.approx(50)


def test_split_chooses_frames_and_results_outside_are_told(folders, tmp_path):
    (tmp_path / 'val.txt').write_text('\n'.join(f'{index:06d}' for index in range(41)))
    done = run('--labels', folders[0], '--results', folders[1], '--split', tmp_path / 'val.txt', '--classes', 'Car')
    assert done.returncode == 0
    assert '9 frames (000041, 000042, 000043, ...) outside the split' in done.stderr
    assert '41/41/41' in done.stdout


def test_overlap_can_be_changed(folders, tmp_path):
    for file in folders[1].iterdir():
        file.write_text(CAR.replace('200 200', '200 170') + ' 0.9\n')
    arguments = ['--labels', folders[0], '--results', folders[1], '--classes', 'Car', '--json', tmp_path / 'ap.json']
    assert run(*arguments).returncode == 0
    assert json.loads((tmp_path / 'ap.json').read_text())['Car']['R40'] == [0, 0, 0]
    assert run(*arguments, '--min-overlap', 'Car=0.5').returncode == 0
    assert json.loads((tmp_path / 'ap.json').read_text())['Car']['R40'] == [100, 100, 100]


def assert_fails(message, *arguments):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: ')
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


def test_bad_input_ends_with_one_line(folders, tmp_path):
    labels, results = folders
    arguments = ['--labels', labels, '--results', results]
    assert_fails('nowhere is not a folder', '--labels', labels, '--results', 'nowhere')
    assert_fails('nowhere.txt', *arguments, '--split', 'nowhere.txt')
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert_fails('holds no result file', '--labels', labels, '--results', empty)
    assert_fails('holds no label file', '--labels', empty, '--results', empty)
    (tmp_path / 'other.txt').write_text('000099\n')
    assert_fails('no label file for 1 frame (000099)', *arguments, '--split', tmp_path / 'other.txt')
    (results / '000003.txt').write_text(CAR + '\n')
    assert_fails('000003.txt:1: expected 16 fields, found 15', *arguments)
    (results / '000099.txt').write_text('')
    assert_fails('results for 1 frame (000099) that have no label file', *arguments)


def test_results_of_other_frames_only_are_refused(folders, tmp_path):
    (tmp_path / 'val.txt').write_text('000001\n')
    (folders[1] / '000001.txt').unlink()
    assert_fails(
        'no result file for any of the 1 frames', '--labels', folders[0], '--results', folders[1], '--split',
        tmp_path / 'val.txt',
    )  # fmt: skip


def test_starts_without_torch_and_mmengine(folders):
    code = (
        f'import sys; sys.path.insert(0, {str(TOOL.parents[1])!r}); import mmkd.evaluation.kitti_report;'
        'print([name for name in ("torch", "mmengine", "mmdet", "mmcv") if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_the_table_is_printed_also_where_the_json_cannot_be_written(folders, tmp_path):
    done = run('--labels', folders[0], '--results', folders[1], '--json', tmp_path / 'no' / 'ap.json')
    assert done.returncode == 1
    assert '50/50/50' in done.stdout
    assert done.stderr.splitlines()[-1].startswith('error: ') and 'ap.json' in done.stderr


def test_an_overlap_without_a_value_is_said_to_be_one(folders):
    done = run('--labels', folders[0], '--results', folders[1], '--min-overlap', 'Car')
    assert done.returncode == 2
    assert "an overlap is NAME=IOU, such as Car=0.5, got 'Car'" in done.stderr

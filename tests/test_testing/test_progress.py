import json

import pytest
from rich.console import Console

from mmkd.testing.progress import ProgressBoard, StepClock
from mmkd.testing.runs import Run


@pytest.fixture
def runs(tmp_path):
    runs = [Run('teacher', 0, tmp_path / 'teacher'), *(Run(arm, 0, tmp_path / arm) for arm in ('plain', 'ssim'))]
    for run in runs:
        run.folder.mkdir()
    return runs


def _at(run, step, steps=100):
    (run.folder / 'progress.json').write_text(json.dumps({'step': step, 'steps': steps, 'epoch': 1, 'AP': 0.25}))


def _finish(run, seconds):
    (run.folder / 'result.json').write_text(json.dumps({'wall_seconds': seconds}))


def test_nothing_is_promised_before_anything_was_measured(runs):
    clock = StepClock()
    clock.look(runs, now=0.0)
    assert clock.seconds_left(runs) is None


def test_time_left_is_steps_left_times_measured_seconds(runs):
    clock = StepClock()
    for run in runs:
        _at(run, 100)
        _finish(run, 10.0)
    (runs[2].folder / 'result.json').unlink()
    _at(runs[2], 10)
    clock.look(runs, now=0.0)
    _at(runs[2], 20)
    clock.look(runs, now=5.0)
    assert clock.seconds_left(runs) == pytest.approx(80 * 0.5)
    assert clock.seconds_left(runs, jobs=2) == pytest.approx(40 * 0.5)


def test_arms_that_were_not_seen_yet_are_guessed_from_those_that_were(runs):
    clock = StepClock()
    _at(runs[1], 100)
    _finish(runs[1], 10.0)
    clock.look(runs, now=0.0)
    assert clock.seconds_left(runs) == pytest.approx(100 * 0.1 * 3.0 + 100 * 0.1 * 2.3)


def test_nothing_is_left_at_the_end(runs):
    clock = StepClock()
    for run in runs:
        _at(run, 100)
        _finish(run, 10.0)
    clock.look(runs, now=0.0)
    assert clock.seconds_left(runs) == 0


@pytest.mark.parametrize('terminal', [True, False])
def test_score_and_time_left_are_shown(runs, terminal, tmp_path):
    with open(tmp_path / 'out', 'w') as file:
        console = Console(file=file, force_terminal=terminal, width=120)
        with ProgressBoard(console=console, line_seconds=0.0) as board:
            _at(runs[0], 10)
            board(runs)
            _at(runs[0], 60)
            board(runs)
    text = (tmp_path / 'out').read_text()
    assert 'teacher' in text and 'AP 0.250' in text and ' left' in text

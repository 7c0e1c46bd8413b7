"""The training log says where the time goes, without waiting for the device."""

import copy
import json
import re
import time
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger

from mmkd.models.algorithms.step_clock import StepClock

SPLIT = ('data_time', 'teacher_time', 'distill_time', 'student_time')


def scalars(folder: Path) -> list[dict]:
    (path,) = folder.rglob('scalars.json')
    return [line for line in map(json.loads, path.read_text().splitlines()) if 'loss' in line]


def test_log_carries_split_memory_and_time_left(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    cfg.log_level = 'INFO'
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    run(cfg, tmp_path / 'run')
    lines = scalars(tmp_path / 'run')
    assert len(lines) > 2
    for line in lines:
        assert all(line[name] > 0 for name in SPLIT)
        parts = sum(line[name] for name in SPLIT)
        assert parts == pytest.approx(line['time'], rel=0.3, abs=0.05)
        if not torch.cuda.is_available():
            assert 100 < line['memory'] < 100_000
    (log,) = (tmp_path / 'run').rglob('*.log')
    MMLogger._instance_dict.clear()
    trained = [line for line in log.read_text().splitlines() if 'Epoch(train)' in line]
    assert trained
    for text in ('eta:', 'data_time:', 'memory:', 'teacher_time:', 'student_time:', 'distill_time:'):
        assert all(text in line for line in trained), text
    assert re.search(r'eta: \d+:\d\d:\d\d', trained[0])


def test_idle_teacher_takes_no_time_and_nothing_is_kept(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    cfg.model.distiller.schedules = dict(loss_ssim=dict(begin=1, by_epoch=False))
    runner = run(cfg, tmp_path / 'run')
    hub = runner.message_hub
    times = hub.get_scalar('train/teacher_time').data[0]
    assert times[0] == 0 and (times[1:] > 0).all()
    assert hub.get_scalar('train/student_time').min() > 0
    assert not runner.model.clock.listening and runner.model.clock.finished() == []
    assert hub._resumed_keys['train/teacher_time'] is False


def test_parts_add_up_over_a_step():
    clock = StepClock()
    clock.begin(torch.device('cpu'))
    for _ in range(2):
        with clock.part('teacher'):
            time.sleep(0.01)
    time.sleep(0.01)
    clock.end()
    (seconds,) = clock.finished()
    assert 0.02 <= seconds['teacher'] <= seconds['step'] - 0.01
    assert clock.finished() == []


def test_nothing_is_measured_when_nobody_listens():
    clock = StepClock()
    with clock.part('teacher'):
        pass
    clock.end()
    assert clock.finished() == []


def test_a_step_that_is_compiled_as_a_whole_is_not_split():
    """Marks would break its graph, and on a GPU torch would keep every event of a graph for ever."""
    clock = StepClock()

    @torch.compile(backend='eager', fullgraph=True)
    def step(x):
        with clock.part('teacher'):
            return x + 1

    clock.begin(torch.device('cpu'))
    assert step(torch.ones(2)).tolist() == [2, 2]
    clock.end()
    assert [set(seconds) for seconds in clock.finished()] == [{'step'}]


def test_a_step_that_failed_leaves_nothing_behind():
    clock = StepClock()
    clock.begin(torch.device('cpu'))
    with pytest.raises(RuntimeError), clock.part('teacher'):
        raise RuntimeError('out of memory')
    clock.begin(torch.device('cpu'))
    clock.end()
    assert [set(seconds) for seconds in clock.finished()] == [{'step'}]
    assert copy.deepcopy(clock) is not clock


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_the_clock_reads_events_when_the_device_has_passed_them():
    clock, device = StepClock(), torch.device('cuda')
    matrix = torch.randn(4096, 4096, device=device)
    clock.begin(device)
    with clock.part('teacher'):
        for _ in range(50):
            matrix = torch.nn.functional.normalize(matrix @ matrix)
    clock.end()
    assert clock.finished() == []  # the device is still busy, and nobody waits for it
    torch.cuda.synchronize()
    (seconds,) = clock.finished()
    assert 0 < seconds['teacher'] <= seconds['step']

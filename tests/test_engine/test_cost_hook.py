"""The training log says where the time goes, without waiting for the device."""

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import IterTimerHook, iter_timer_hook
from mmengine.logging import MMLogger
from torch import nn

from mmkd.engine.hooks.cost_hook import CostHook
from mmkd.models.algorithms import plain_student
from mmkd.models.algorithms.step_clock import StepClock

SPLIT = ('data_time', 'teacher_time', 'distill_time', 'student_time')


class MadeTime:
    """Time that passes where somebody says so, and nowhere else."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.seconds += seconds

    def passes_in(self, module: nn.Module, seconds: float) -> None:
        """At every call of the module."""
        module.register_forward_pre_hook(lambda *_: self.passes(seconds))


@pytest.fixture
def made_time(monkeypatch: pytest.MonkeyPatch) -> MadeTime:
    """The time of a run's step clock and of MMEngine's timer: 7 s for data, 2 teacher, 3 distillation, 5 student."""
    made, read_data, attach = MadeTime(), IterTimerHook._before_iter, CostHook.before_train

    def before_iter(self: IterTimerHook, *args: object, **kwargs: object) -> None:
        made.passes(7)
        read_data(self, *args, **kwargs)

    def before_train(self: CostHook, runner: object) -> None:
        attach(self, runner)
        made.passes_in(runner.model.teacher.backbone, 2)
        made.passes_in(runner.model.distiller.connectors['adapt'], 3)
        made.passes_in(runner.model.architecture.backbone, 5)

    monkeypatch.setattr(plain_student, 'StepClock', lambda: StepClock(made.now))
    monkeypatch.setattr(iter_timer_hook, 'time', SimpleNamespace(time=made.now))
    monkeypatch.setattr(IterTimerHook, '_before_iter', before_iter)
    monkeypatch.setattr(CostHook, 'before_train', before_train)
    return made


def scalars(folder: Path) -> list[dict]:
    (path,) = folder.rglob('scalars.json')
    return [line for line in map(json.loads, path.read_text().splitlines()) if 'loss' in line]


def test_log_carries_split_memory_and_time_left(distill_config, run, tmp_path, made_time):
    cfg = distill_config(epochs=1)
    cfg.log_level = 'INFO'
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    run(cfg, tmp_path / 'run')
    lines = scalars(tmp_path / 'run')
    assert len(lines) > 2
    for number, line in enumerate(lines):
        assert line['time'] == 17
        if torch.cuda.is_available():  # read from events: a line may hold the step before, the first none
            assert line['data_time'] == 7 and all(line[name] > 0 for name in SPLIT if number or name in line)
        else:
            assert [line[name] for name in SPLIT] == [7, 2, 3, 5]
            assert 100 < line['memory'] < 100_000
    (log,) = (tmp_path / 'run').rglob('*.log')
    MMLogger._instance_dict.clear()
    trained = [line for line in log.read_text().splitlines() if 'Epoch(train)' in line]
    assert trained
    for text in ('eta:', 'data_time:', 'memory:', 'teacher_time:', 'student_time:', 'distill_time:'):
        assert all(text in line for line in trained[1:]), text
    assert re.search(r'eta: \d+:\d\d:\d\d', trained[0])


def test_idle_teacher_takes_no_time_and_nothing_is_kept(distill_config, run, tmp_path):
    cfg = distill_config(epochs=1)
    cfg.model.distiller.schedules = dict(loss_ssim=dict(begin=1, by_epoch=False))
    runner = run(cfg, tmp_path / 'run')
    hub = runner.message_hub
    times = hub.get_scalar('train/teacher_time').data[0]
    assert len(times) > 2 and times[0] == 0 and (times[1:] > 0).all()
    assert hub.get_scalar('train/student_time').min() > 0
    assert not runner.model.clock.listening
    assert drained(runner.model.clock) <= int(torch.cuda.is_available())
    assert hub._resumed_keys['train/teacher_time'] is False


def drained(clock: StepClock) -> int:
    """Steps that nobody has read; a GPU may finish the last one after its reading."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    waiting = len(clock.finished())
    assert clock.finished() == []
    return waiting


def test_parts_add_up_over_a_step():
    made = MadeTime()
    clock = StepClock(made.now)
    clock.begin(torch.device('cpu'))
    for _ in range(2):
        with clock.part('teacher'):
            made.passes(2)
    made.passes(3)
    clock.end()
    assert clock.finished() == [dict(teacher=4, step=7)]
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


class MadeEvent:
    """A mark in a stream that the device has not passed when it is set, one second behind the mark before it."""

    marks: list['MadeEvent'] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.passed = False

    def record(self) -> None:
        self.marks.append(self)
        self.at = len(self.marks)

    def query(self) -> bool:
        return self.passed

    def elapsed_time(self, end: 'MadeEvent') -> float:
        assert self.passed and end.passed
        return 1000.0 * (end.at - self.at)


def test_events_are_read_when_the_device_has_passed_them(monkeypatch):
    marks: list[MadeEvent] = []
    monkeypatch.setattr(MadeEvent, 'marks', marks)
    monkeypatch.setattr(torch.cuda, 'Event', MadeEvent)
    clock = StepClock()
    for _ in range(2):
        clock.begin(torch.device('cuda'))
        with clock.part('teacher'):
            pass
        clock.end()
    assert len(marks) == 8 and clock.finished() == []  # the device is busy, and nobody waits for it
    for mark in marks[:7]:
        mark.passed = True
    assert clock.finished() == [dict(step=3, teacher=1)]
    marks[7].passed = True
    assert clock.finished() == [dict(step=3, teacher=1)]
    assert clock.finished() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_gives_the_seconds_of_its_own_work():
    clock, device = StepClock(), torch.device('cuda')
    matrix = torch.randn(1024, 1024, device=device)
    clock.begin(device)
    with clock.part('teacher'):
        matrix @ matrix
    clock.end()
    torch.cuda.synchronize()
    (seconds,) = clock.finished()
    assert 0 < seconds['teacher'] <= seconds['step']
    assert clock.finished() == []

"""`mmkd.testing.long_run`: a training keeps nothing, and what a planted hook keeps is found."""

import runpy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmkd.testing.long_run import Growth, long_run, main
from mmkd.testing.long_run import __file__ as long_run_file

# NumPy's, about MMDetection's drawing
pytestmark = pytest.mark.filterwarnings('ignore:__array_wrap__:DeprecationWarning')


@HOOKS.register_module(force=True)
class LeakHook(Hook):
    """Keeps a tensor of every step's graph, a file handle and a thread, as careless hooks do."""

    kept: list[Any] = []
    stop = threading.Event()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        thread = threading.Thread(target=LeakHook.stop.wait, daemon=True)
        thread.start()
        loss = next(iter(runner.model.parameters())).sum()
        LeakHook.kept += [loss, open('/dev/null'), thread]  # noqa: SIM115


def test_a_training_keeps_nothing(tmp_path: Path) -> None:
    """Recorders, hooks, EMA, pictures and checkpoints included; also where the file ran as a script before."""
    runpy.run_path(long_run_file, run_name='another')
    found = long_run(tmp_path, steps=16, every=4, method='frskd_dense')
    assert [row[0] for row in found.rows] == [12, 16]
    assert found.problems == []
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth')) == ['epoch_6.pth', 'epoch_8.pth']


def test_what_a_hook_keeps_is_found(tmp_path: Path) -> None:
    try:
        found = long_run(tmp_path, steps=16, every=4, hooks=(dict(type='LeakHook'),))
    finally:
        LeakHook.stop.set()
        for thing in LeakHook.kept:
            getattr(thing, 'close', lambda: None)()
        LeakHook.kept.clear()
    assert {text.split(':')[0] for text in found.problems} == {'live tensors', 'file handles', 'threads'}


@pytest.mark.parametrize(('per_step', 'flat'), [(0, True), (10, True), (40, False)])
def test_resident_memory_is_judged_by_its_slope(per_step: float, flat: bool) -> None:
    noise = np.random.default_rng(0)
    rows = [[s, 500 + per_step * s / 1024 + noise.normal(0, 0.5), 9, 1, 9, 1, 0, 5] for s in range(100, 2001, 100)]
    assert (Growth(rows).judge().problems == []) == flat


def test_checkpoints_that_pile_up_are_found() -> None:
    rows = [[s, 500, 9, 1, 9, 1, 0, 5 + s / 100] for s in (100, 200)]
    (problem,) = Growth(rows).judge().problems
    assert problem.startswith('disk MiB: 6 at step 100, 7')


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for steps, every in ((8, 4), (20, 4), (16, 3)):
        with pytest.raises(ValueError, match=f'got {steps} and {every}'):
            long_run(tmp_path, steps=steps, every=every)


@pytest.mark.parametrize('method', ['plain', 'plain-time', 'mkd_roi', 'simm'])
def test_what_cannot_be_trained_is_neither_offered_nor_begun(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main(['--help'])
    assert method not in capsys.readouterr().out.replace(',', ' ').split()
    with pytest.raises(SystemExit) as stop:
        main(['--method', method, '--work-dir', str(tmp_path / 'new')])
    assert stop.value.code == 2
    assert f"invalid choice: '{method}'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"method must be one of .*, got '{method}'"):
        long_run(tmp_path / 'new', steps=16, every=4, method=method)
    assert not (tmp_path / 'new').exists()

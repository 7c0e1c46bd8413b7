"""Kill a training at random moments, resume it each time, and compare with the uninterrupted run to the last bit.

python -m mmkd.testing.kill_and_resume --kills 20 --work-dir /tmp/kills

A small distillation (AdamW, EMA, a ramped weight, learnt connectors, random flips) is trained once without
interruption, and once in pieces: every piece is a process of its own that resumes by `--resume` and is killed by
SIGKILL at a random iteration, in one of four phases: anywhere in a step (a timer of random delay), between gradient
and weight update, in the evaluation, and half-way through the writing of a checkpoint.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmkd import whole_files
from mmkd.compat import load_checkpoint_file
from mmkd.engine.launch import load_config, prepare_training, train
from mmkd.testing.toy_run import make_toy_run

PHASES = ('step', 'update', 'evaluation', 'checkpoint')


def die(*_: Any) -> None:
    """End this process as the out-of-memory killer or a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)  # as a script this file is imported a second time
class DeathHook(Hook):
    """Kills the process at an iteration or soon after.

    Args:
        at: iteration of the run, from 0.
        phase: one of `PHASES`.
        delay: seconds behind the beginning of the iteration, for the phase `step`.
    """

    def __init__(self, *, at: int, phase: str, delay: float) -> None:
        self.at, self.phase, self.delay = at, phase, delay

    def before_train(self, runner: Runner) -> None:
        """Lay the trap of the phase `update`."""
        if self.phase == 'update':

            def before_step(*_: Any) -> None:
                if runner.iter >= self.at:
                    die()

            runner.optim_wrapper.optimizer.register_step_pre_hook(before_step)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Lay the trap of the phase `step`."""
        if self.phase == 'step' and runner.iter >= self.at:
            self.phase = ''
            threading.Timer(self.delay, die).start()

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """The phase `evaluation`."""
        if self.phase == 'evaluation' and runner.iter >= self.at:
            die()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The phase `checkpoint`: half of the file is written."""
        if self.phase == 'checkpoint' and runner.iter >= self.at:

            def half(descriptor: int) -> None:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                die()

            whole_files.os.fsync = half


def differences(one: Any, other: Any, path: str = '') -> list[str]:
    """Where two checkpoints differ, to the last bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {*one, *other}
        return [d for key in sorted(keys, key=str) for d in differences(one.get(key), other.get(key), f'{path}.{key}')]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f'{path}[{i}]')]
    return [] if one == other else [path]


def compare(reference: Path, resumed: Path) -> list[str]:
    """Differences of two checkpoints in all that training goes on from (not in times and logs)."""
    first, second = (load_checkpoint_file(str(path)) for path in (reference, resumed))
    parts = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'mmkd')
    return [d for part in parts for d in differences(first.get(part), second.get(part), part)]


def configure(folder: Path, epochs: int) -> Path:
    """Write data, teacher and configuration of the training."""
    toy = make_toy_run(folder / 'toy', epochs=epochs, train=8)
    cfg = toy.load()
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.01, update_buffers=True)]
    cfg.model.distiller.schedules = dict(loss_kd=dict(begin=0, end=epochs, ramp='linear'))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
    cfg.log_level = 'WARNING'
    cfg.dump(str(folder / 'config.py'))
    return folder / 'config.py'


def in_a_process(work: Callable[[], None], log: Path) -> int:
    """Exit code of `work` in a forked process whose output goes to `log`; -9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with open(log, 'a') as file, contextlib.suppress(BaseException):
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                work()
                code = 0
            except BaseException as error:
                print(f'{type(error).__name__}: {error}', flush=True)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def training(config: Path, work_dir: Path, death: dict | None = None) -> None:
    """What `tools/train.py CONFIG --work-dir WORK_DIR --resume` does."""
    cfg: Config = load_config(str(config))
    prepare_training(cfg, config_name=str(config), work_dir=str(work_dir), resume='auto')
    if death is not None:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='DeathHook', **death)]
    train(cfg)


def kill_and_resume(folder: Path, *, kills: int, epochs: int, seed: int) -> list[str]:
    """Run both trainings.

    Args:
        folder: new folder for everything.
        kills: number of kills.
        epochs: length of the training, 4 iterations each.
        seed: of the moments.

    Returns:
        The differences: none, if resuming keeps its promise.

    Raises:
        RuntimeError: a training ended otherwise than by its end or by the kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    config, log = configure(folder, epochs), folder / 'output.log'
    start = time.perf_counter()
    if in_a_process(lambda: training(config, folder / 'whole'), log) != 0:
        raise RuntimeError(f'The uninterrupted training failed; see {log}.')
    print(f'uninterrupted: {epochs} epochs, {4 * epochs} iterations, {time.perf_counter() - start:.0f} s', flush=True)
    draw = random.Random(seed)
    # not in the last epochs: a run killed in its last evaluation has nothing left to be killed in
    moments = sorted(draw.randrange(4 * max(epochs - 2, 1)) for _ in range(kills))
    for number, at in enumerate(moments, 1):
        phase = PHASES[number % len(PHASES)]
        death = dict(at=at, phase=phase, delay=draw.uniform(0, 0.05))
        code = in_a_process(lambda death=death: training(config, folder / 'killed', death), log)
        if code != -signal.SIGKILL:
            raise RuntimeError(f'Kill {number} at iteration {at} ({phase}) ended with code {code}; see {log}.')
        present = sorted(path.name for path in (folder / 'killed').glob('*.pth'))
        print(f'kill {number:2d}: iteration {at:3d}, {phase:10s} whole: {", ".join(present) or "none"}', flush=True)
    if in_a_process(lambda: training(config, folder / 'killed'), log) != 0:
        raise RuntimeError(f'The last resumed training failed; see {log}.')
    name = f'epoch_{epochs}.pth'
    found = compare(folder / 'whole' / name, folder / 'killed' / name)
    left = sorted(path.name for path in (folder / 'killed').glob('*.pth*')) + list((folder / 'killed').glob('.*.part'))
    print(f'{kills} kills, {time.perf_counter() - start:.0f} s. Files at the end: {", ".join(map(str, left))}')
    print('weights, EMA, optimiser, schedulers, connectors, random state: ' + ('equal' if not found else 'DIFFERENT'))
    return found


def main() -> int:
    """Run and say what differs; exit code 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--work-dir', type=Path, required=True, help='a new folder')
    args = parser.parse_args()
    found = kill_and_resume(args.work_dir, kills=args.kills, epochs=args.epochs, seed=args.seed)
    for path in found[:20]:
        print(f'differs: {path}')
    return int(bool(found))


if __name__ == '__main__':
    sys.exit(main())

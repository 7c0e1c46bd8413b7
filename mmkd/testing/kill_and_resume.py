"""Kill a training at random moments, resume it each time, and compare with the uninterrupted run to the last bit.

python -m mmkd.testing.kill_and_resume --kills 20 --work-dir /tmp/kills
python -m mmkd.testing.kill_and_resume --kills 6 --epochs 5 --processes 2 --work-dir /tmp/kills_of_two

A small distillation (AdamW, EMA, a ramped weight, learnt connectors, random flips) is trained once without
interruption, and once in pieces: every piece is a process of its own that resumes by `--resume` and is killed by
SIGKILL at a random iteration, in one of four phases: anywhere in a step (a timer of random delay), between gradient
and weight update, in the evaluation, and half-way through the writing of a checkpoint. With several processes (gloo)
one of them is killed, a random one (the first in the writing of a checkpoint, which is its work), and the others must
end by themselves.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
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
from mmkd.testing.ranks import Ended, in_ranks
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


def configure(folder: Path, epochs: int, processes: int = 1) -> Path:
    """Write data, teacher and configuration of the training: an epoch has 4 iterations."""
    toy = make_toy_run(folder / 'toy', epochs=epochs, train=8 * processes)
    cfg = toy.load()
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.01, update_buffers=True)]
    cfg.model.distiller.schedules = dict(loss_kd=dict(begin=0, end=epochs, ramp='linear'))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
    cfg.log_level = 'WARNING'
    cfg.dump(str(folder / 'config.py'))
    return folder / 'config.py'


@dataclass(frozen=True)
class Trial:
    """One configuration that is trained in several pieces.

    Args:
        config: file of the configuration.
        log: file for the output of all trainings.
        processes: ranks of each training.
    """

    config: Path
    log: Path
    processes: int

    def train(self, work_dir: Path, death: dict | None = None, victim: int = 0) -> Ended:
        """What `tools/train.py CONFIG --work-dir WORK_DIR --resume` does; `victim` is the rank that dies."""

        def training(rank: int) -> None:
            """One rank."""
            cfg: Config = load_config(str(self.config))
            launcher = 'pytorch' if self.processes > 1 else 'none'
            name, folder = str(self.config), str(work_dir)
            prepare_training(cfg, config_name=name, work_dir=folder, resume='auto', launcher=launcher)
            if death is not None and rank == victim:
                cfg.custom_hooks = [*cfg.custom_hooks, dict(type='DeathHook', **death)]
            train(cfg)

        return in_ranks(training, self.log, self.processes)

    def train_to_the_end(self, work_dir: Path, which: str) -> None:
        """As `train`.

        Raises:
            RuntimeError: it failed.
        """
        if any(self.train(work_dir).codes):
            raise RuntimeError(f'The {which} training failed; see {self.log}.')

    def kill(self, work_dir: Path, death: dict, victim: int) -> str:
        """Train until one rank is killed; says what is left.

        Raises:
            RuntimeError: that rank ended otherwise, another one as if nothing had happened, or not at all.
        """
        ended = self.train(work_dir, death, victim)
        others = [code for rank, code in enumerate(ended.codes) if rank != victim]
        if ended.codes[victim] != -signal.SIGKILL or not all(others):
            raise RuntimeError(f'{death} in rank {victim} ended with the codes {ended.codes}; see {self.log}.')
        present = ', '.join(sorted(path.name for path in work_dir.glob('*.pth'))) or 'none'
        rank = f'rank {victim}, others {ended.seconds:4.1f} s later, ' if others else ''
        return f'iteration {death["at"]:3d}, {death["phase"]:10s} {rank}whole: {present}'


def kill_and_resume(folder: Path, *, kills: int, epochs: int, seed: int, processes: int = 1) -> list[str]:
    """Run both trainings.

    Args:
        folder: new folder for everything.
        kills: number of kills.
        epochs: length of the training, 4 iterations each.
        seed: of the moments.
        processes: ranks of the training, without a GPU.

    Returns:
        The differences: none, if resuming keeps its promise.

    Raises:
        RuntimeError: a training ended otherwise than by its end or by the kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    trial = Trial(configure(folder, epochs, processes), folder / 'output.log', processes)
    whole, killed = folder / 'whole', folder / 'killed'
    start = time.perf_counter()
    trial.train_to_the_end(whole, 'uninterrupted')
    print(f'uninterrupted: {epochs} epochs, {4 * epochs} iterations, {time.perf_counter() - start:.0f} s', flush=True)
    draw = random.Random(seed)
    # not in the last epochs: a run killed in its last evaluation has nothing left to be killed in
    moments = sorted(draw.randrange(4 * max(epochs - 2, 1)) for _ in range(kills))
    for number, at in enumerate(moments, 1):
        phase = PHASES[number % len(PHASES)]
        death = dict(at=at, phase=phase, delay=draw.uniform(0, 0.05))
        victim = draw.randrange(processes) if processes > 1 and phase != 'checkpoint' else 0
        print(f'kill {number:2d}: {trial.kill(killed, death, victim)}', flush=True)
    trial.train_to_the_end(killed, 'last resumed')
    name = f'epoch_{epochs}.pth'
    found = compare(whole / name, killed / name)
    left = sorted(path.name for path in killed.glob('*.pth*')) + list(killed.glob('.*.part'))
    print(f'{kills} kills, {time.perf_counter() - start:.0f} s. Files at the end: {", ".join(map(str, left))}')
    print('weights, EMA, optimiser, schedulers, connectors, random state: ' + ('equal' if not found else 'DIFFERENT'))
    return found


def main() -> int:
    """Run and say what differs; exit code 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=1, help='ranks of each training, without a GPU (gloo)')
    parser.add_argument('--work-dir', type=Path, required=True, help='a new folder')
    args = parser.parse_args()
    if args.kills < 0 or args.epochs < 1 or args.processes < 1:
        parser.error('--epochs and --processes must be at least 1, --kills at least 0')
    counts = dict(kills=args.kills, epochs=args.epochs, processes=args.processes)
    found = kill_and_resume(args.work_dir, seed=args.seed, **counts)
    for path in found[:20]:
        print(f'differs: {path}')
    return int(bool(found))


if __name__ == '__main__':
    sys.exit(main())

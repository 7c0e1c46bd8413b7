"""Train for thousands of steps and see whether memory, file handles, threads, processes and disk stay flat.

python -m mmkd.testing.long_run --steps 2000 --method ssim --work-dir /tmp/long

A small distillation with EMA, a checkpoint and an evaluation with pictures every 100 steps. Live tensors are those that
Python knows; what is kept in graphs alone shows in the resident memory.
"""

import argparse
import gc
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmkd.engine.launch import prepare_training, train
from mmkd.testing.methods import distilled_model, is_plain, known_methods
from mmkd.testing.toy_run import make_toy_run

COLUMNS = ('step', 'resident MiB', 'live tensors', 'MiB in them', 'file handles', 'threads', 'children', 'disk MiB')
# Growth of the resident memory that is no leak: the allocator's and MMEngine's log of every step's numbers.
KIB_PER_STEP = 16.0
# The same numbers are in every checkpoint: two of them, about 30 numbers of 16 bytes a step.
DISK_KIB_PER_STEP = 1.0


def measure(folder: Path) -> list[float]:
    """What this process holds now, in the order of `COLUMNS` behind `step`."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if type(found) is torch.Tensor]
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided}
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
    # logs and pictures grow with every line and every evaluation, on purpose
    disk = sum(path.stat().st_size for path in folder.rglob('*') if path.suffix in ('.pth', '.part'))
    return [
        pages * os.sysconf('SC_PAGE_SIZE') / 2**20,
        len(tensors),
        sum(sizes.values()) / 2**20,
        len(os.listdir('/proc/self/fd')),
        threading.active_count(),
        len(children),
        disk / 2**20,
    ]


@HOOKS.register_module(force=True)  # as a script this file is imported a second time; the last class counts
class ResourceHook(Hook):
    """Measures behind every `every` steps, and prints.

    Args:
        every: steps between two measurements.
        warm: steps before the first one, in which caches fill.
    """

    priority = 'LOWEST'

    def __init__(self, every: int, warm: int = 0) -> None:
        self.every, self.warm = every, warm
        self.rows: list[list[float]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Measure; a step's own batch and outputs are alive, as in every measurement."""
        step = runner.iter + 1
        if step % self.every == 0 and step > self.warm:
            row = [step, *measure(Path(runner.work_dir))]
            self.rows.append(row)
            cells = [f'{value:12.1f}' if i in (1, 3, 7) else f'{value:12.0f}' for i, value in enumerate(row)]
            print('  '.join(cells), flush=True)


@dataclass
class Growth:
    """What a run kept.

    Args:
        rows: measurements, `COLUMNS`.
        problems: what grew, one text each.
    """

    rows: list[list[float]]
    problems: list[str] = field(default_factory=list)

    def judge(self) -> 'Growth':
        """Compare the last measurement with the first; the resident memory by a line through the second half.

        Runs of less than 1000 steps still fill caches: there the resident memory says nothing.
        """
        first, last = self.rows[0], self.rows[-1]
        for index in (2, 4, 5, 6, 7):
            slack = 0.02 * first[7] + DISK_KIB_PER_STEP * (last[0] - first[0]) / 1024 if index == 7 else 0
            if last[index] > first[index] + slack:
                self.problems.append(
                    f'{COLUMNS[index]}: {first[index]:g} at step {first[0]}, {last[index]:g} at the end'
                )
        half = np.array(self.rows[len(self.rows) // 2 :])
        slope = 1024 * float(np.polyfit(half[:, 0], half[:, 1], 1)[0]) if last[0] >= 1000 else 0.0
        if slope > KIB_PER_STEP:
            self.problems.append(f'resident memory grows by {slope:.1f} KiB a step, more than {KIB_PER_STEP}')
        return self


def long_run(folder: Path, *, steps: int, every: int, method: str = 'ssim', hooks: tuple[dict, ...] = ()) -> Growth:
    """Train and measure.

    Args:
        folder: new folder for everything.
        steps: length of the training; a multiple of 2 * `every`, at least 4 * `every`.
        every: steps between checkpoints, evaluations and measurements; the first measurement comes when both kept
            checkpoints are there.
        method: name of a method file.
        hooks: further hooks of the training.

    Raises:
        ValueError: numbers of steps that do not fit, or a method that the toy pair cannot be trained with.
    """
    if every < 2 or every % 2 or steps < 4 * every or steps % (2 * every):
        raise ValueError(f'steps must be a multiple of 2 * every, at least 4 * every, got {steps} and {every} (even)')
    if method not in runnable_methods():
        raise ValueError(f'method must be one of {runnable_methods()}, got {method!r}')
    toy = make_toy_run(folder / 'toy', epochs=steps // 2, train=4)
    cfg = toy.load()
    teacher = dict(teacher=cfg.model.teacher, teacher_ckpt=cfg.model.teacher_ckpt)
    cfg.model = distilled_model(cfg.model.architecture, method, teacher)
    cfg.train_cfg.val_interval = every // 2
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=every // 2, max_keep_ckpts=2)
    cfg.default_hooks.visualization = dict(type='DetVisualizationHook', draw=True, interval=1, score_thr=0.05)
    ema = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.01, update_buffers=True)
    cfg.custom_hooks = [ema, dict(type='ResourceHook', every=every, warm=2 * every), *hooks]
    cfg.log_level = 'ERROR'
    cfg.experiment_name = f'long_{method}_{folder.name}'
    runner = train(prepare_training(cfg, config_name='long', work_dir=str(folder / 'run')))
    (rows,) = (hook.rows for hook in runner.hooks if type(hook).__name__ == 'ResourceHook')
    return Growth(rows).judge()


def runnable_methods() -> list[str]:
    """Method files that distil the toy pair, two RetinaNets; the others are of a RoI head or a classifier."""
    return [name for name in known_methods() if not is_plain(name) and not name.endswith(('_roi', '_classifier'))]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table and what grew; exit code 1 if anything did.

    Args:
        argv: arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--every', type=int, default=100, help='steps between checkpoints, evaluations, measurements')
    choices = runnable_methods()
    parser.add_argument('--method', default='ssim', choices=choices, metavar='METHOD', help=', '.join(choices))
    parser.add_argument('--work-dir', type=Path, required=True, help='a new folder')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print('  '.join(f'{name:>12}' for name in COLUMNS), flush=True)
    found = long_run(args.work_dir, steps=args.steps, every=args.every, method=args.method)
    for problem in found.problems:
        print(f'GROWS: {problem}')
    print(f'{args.method}, {args.steps} steps: ' + ('something grows' if found.problems else 'flat'))
    return int(bool(found.problems))


if __name__ == '__main__':
    sys.exit(main())

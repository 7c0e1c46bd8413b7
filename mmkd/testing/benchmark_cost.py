"""What a distillation costs, measured: `tools/benchmark_cost.py` runs `main`, its command line is `cost_options`."""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmkd.engine.cost_arms import DISTILLED, MMRAZOR, PLAIN, TEACHER, Arm, Workbench, distilled_name
from mmkd.engine.cost_profile import added, net_added, profile_arms, work
from mmkd.engine.cost_rounds import clock_words, hook_seconds, queued_steps, summarise, take_turns
from mmkd.engine.launch import load_config
from mmkd.models.algorithms.teacher_options import TeacherOptions, split_teacher
from mmkd.testing.cost_options import check, parse_arguments
from mmkd.testing.methods import config_root
from mmkd.testing.process_memory import RETURN_FREED_MEMORY, forget_peak, process_memory
from mmkd.testing.runs import write_json
from mmkd.testing.worker import hardware_class

# The maintained forks are other distributions.
PACKAGES = ('torch', 'mmengine', 'onedl-mmengine', 'mmcv', 'onedl-mmcv', 'mmdet', 'onedl-mmdetection', 'mmrazor')


def builders(bench: Workbench, args: argparse.Namespace) -> dict[str, Any]:
    """How to build each arm that is wanted, by name."""
    found = {PLAIN: bench.plain}
    if bench.has_teacher:
        found[TEACHER] = bench.teacher
    found[distilled_name(split_teacher(bench.cfg.model.get('teacher'))[1])] = bench.distilled
    for kind in MMRAZOR if args.against else ():
        found[kind] = lambda kind=kind: bench.mmrazor(kind)
    for options in args.teacher:
        found[distilled_name(TeacherOptions(**options))] = lambda options=options: bench.distilled(options)
    return found


def benchmark(args: argparse.Namespace) -> dict:
    """Measure what the arguments ask for, print it, write the JSON file."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    cfg = load_config(args.config, args.cfg_options)
    check(args, cfg)
    if args.memory_of:
        rehearse(cfg, args)
        bench = Workbench(cfg, tuple(args.shape[0]), args.batch[0], args.device)
        print(peak_memory(builders(bench, args)[args.memory_of], args.device))
        return {}
    queued, settings = queued_steps(args.queued, args.device), []
    for shape in args.shape:
        for batch in args.batch:
            found = measure(cfg, args, tuple(shape), batch)
            release(args.device)
            if args.memory:
                names = [name for name in found['arms'] if name != TEACHER]
                found['memory_MiB'] = {name: memory_in_own_process(args, name, shape, batch) for name in names}
            settings.append(found)
            show(found, clock_words(args.device, torch.get_num_threads(), queued))
    figures = dict(
        config=args.config,
        command=' '.join(['python tools/benchmark_cost.py', *args.command]),
        hardware=hardware_class(args.device),
        device=args.device,
        threads=torch.get_num_threads(),
        rounds=args.rounds,
        queued=queued,
        date=time.strftime('%Y-%m-%d'),
        versions={name: version(name) for name in PACKAGES if _there(name)},
        settings=settings,
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, figures)
    return figures


def measure(cfg: Any, args: argparse.Namespace, size: tuple[int, int], batch: int) -> dict[str, Any]:
    """All figures of one input but the memory; no arm is left when it returns, but for reference cycles.

    Args:
        cfg: configuration of a distillation.
        args: of the command line.
        size: (H, W) px of the padded input.
        batch: images a step.
    """
    bench = Workbench(cfg, size, batch, args.device)
    arms: list[Arm] = [build() for build in builders(bench, args).values()]
    queued = queued_steps(args.queued, args.device)
    found = summarise(take_turns(arms, args.rounds, args.warmup, args.device, queued), batch)
    found |= dict(height=size[0], width=size[1], batch=batch, weights_MiB=weights(arms))
    algorithm = next(arm.model for arm in arms if arm.name.startswith(DISTILLED))
    found |= dict(gradients_MiB=gradients(arms[0].model), distilled_gradients_MiB=gradients(algorithm))
    found['hook_seconds'] = hook_seconds(algorithm)
    if args.profile:
        found['operators'] = profile_arms(arms, args.device)
        found['work'] = {arm.name: work(arm) for arm in arms}
    return found


def release(device: str) -> None:
    """Give back the memory of arms that nobody holds, so that the next ones, or another process, find the device empty.

    Args:
        device: `cpu` or `cuda`.
    """
    gc.collect()
    if device.startswith('cuda'):
        torch.cuda.empty_cache()


def _there(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False
    return True


def weights(arms: Sequence[Arm]) -> dict[str, float]:
    """MiB of the teacher's parameters and buffers in each arm that has one, after its steps."""
    found = {}
    for arm in arms:
        teacher = arm.model if arm.name == TEACHER else arm.model.__dict__.get('_teacher')
        network = getattr(teacher, 'model', teacher)
        if isinstance(network, torch.nn.Module):
            tensors = [*network.parameters(), *network.buffers()]
            found[arm.name] = sum(t.numel() * t.element_size() for t in tensors) / 2**20
    return found


def gradients(model: torch.nn.Module) -> float:
    """MiB of the float32 gradients of all that a model trains, which several processes exchange in a step."""
    return sum(4 * p.numel() for p in model.parameters() if p.requires_grad) / 2**20


def rehearse(cfg: Any, args: argparse.Namespace) -> None:
    """One step of the arm on a small input: what is loaded once in a process is no memory of a training step."""
    small = tuple(min(size, 128) for size in args.shape[0])
    bench = Workbench(cfg, small, 1, args.device)
    builders(bench, args)[args.memory_of]().step()
    del bench
    gc.collect()


def peak_memory(build: Any, device: str) -> int:
    """Bytes that the process grows by at its peak, from before the networks are built to the end of three steps."""
    if device == 'cpu':
        before = forget_peak()
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    arm = build()
    for _ in range(3):
        arm.step()
    return (process_memory('VmHWM') if device == 'cpu' else torch.cuda.max_memory_allocated()) - before


def memory_in_own_process(args: argparse.Namespace, name: str, shape: Sequence[int], batch: int) -> float:
    """`peak_memory` in MiB in a new process whose freed memory goes back to the system at once."""
    tool = config_root().parent / 'tools' / 'benchmark_cost.py'
    words = without(
        args.command, {'--shape': 2, '--batch': len(args.batch), '--json': 1, '--memory': 0, '--profile': 0}
    )
    words += ['--shape', *map(str, shape), '--batch', str(batch), '--memory-of', name]
    command = [sys.executable, '-W', 'ignore', str(tool), *words]
    done = subprocess.run(command, env={**os.environ, **RETURN_FREED_MEMORY}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'The memory of {name} could not be measured: {done.stderr.strip()[-500:]}')
    return int(done.stdout.split()[-1]) / 2**20


def without(words: Sequence[str], options: Mapping[str, int]) -> list[str]:
    """Words of a command line without some options and their values.

    Args:
        words: of the command line.
        options: each with the most values that it takes; what follows behind them is another argument.
    """
    kept, left = [], 0
    for word in words:
        if word.startswith('--'):
            name, equals, _ = word.partition('=')
            left = 0 if equals else options.get(name, 0)
            if name not in options:
                kept.append(word)
        elif left:
            left -= 1
        else:
            kept.append(word)
    return kept


def show(found: dict, clock: str) -> None:
    """Print the figures of one input, ratios first.

    Args:
        found: of `measure`.
        clock: what its seconds are, of `clock_words`.
    """
    console = Console(width=None if sys.stdout.isatty() else 140)
    title = f'{found["height"]}x{found["width"]}, batch {found["batch"]}: {clock}'
    table = Table('arm', 'ratio', 'median', 'low to high', title=title, title_justify='left')
    for name, ratios in found['ratios'].items():
        for kind, r in ratios.items():
            table.add_row(name, kind, f'{r["median"]:.3f}', f'{r["low"]:.3f} to {r["high"]:.3f}')
    console.print(table)
    heads = ('arm', 'seconds', 'images/s (clock time)', 'teacher', 'distillation', 'student', 'peak MiB')
    table = Table(*heads)
    memory = found.get('memory_MiB', {})
    for name, arm in found['arms'].items():
        parts = [f'{arm["parts"][p]:.3f}' if 'parts' in arm else '' for p in ('teacher', 'distill', 'student')]
        peak = f'{memory[name]:.0f}' if name in memory else ''
        table.add_row(name, f'{arm["seconds"]["median"]:.3f}', f'{arm["images_a_second"]:.2f}', *parts, peak)
    console.print(table)
    if 'operators' in found:
        table = Table('arm', 'GFLOPs a step', 'operators')
        for name, done in found['work'].items():
            table.add_row(name, f'{done["gflops"]:.3f}', str(done['operators']))
        console.print(table)
        table = Table('operator', 'added ms a step')
        table.add_row('all together', f'{1e3 * net_added(found["operators"]):+.1f}')
        for name, seconds in added(found['operators'])[:12]:
            table.add_row(name, f'{1e3 * seconds:+.1f}')
        console.print(table)
    share = found['hook_seconds'] / next(
        arm['seconds']['median'] for name, arm in found['arms'].items() if name.startswith(DISTILLED)
    )
    console.print(f'The hook that logs the split takes {1e6 * found["hook_seconds"]:.0f} us a step, {share:.3%} of it.')


def main(argv: Sequence[str] | None = None) -> None:
    """Command line, as `tools/benchmark_cost.py`."""
    found = benchmark(parse_arguments(argv))
    if found:
        print(json.dumps(dict(hardware=found['hardware'], threads=found['threads'], rounds=found['rounds'])))

"""What a distillation costs, measured: `tools/benchmark_cost.py` parses its arguments here and runs `benchmark`."""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from rich.console import Console
from rich.table import Table

from mmkd.engine.cost_arms import DISTILLED, MMRAZOR, PLAIN, TEACHER, Arm, Workbench, stock_distiller
from mmkd.engine.cost_profile import added, profile_arms, work
from mmkd.engine.cost_rounds import hook_seconds, summarise, take_turns
from mmkd.engine.launch import load_config
from mmkd.models.algorithms.teacher_options import TeacherOptions, split_teacher
from mmkd.testing.methods import config_root
from mmkd.testing.process_memory import RETURN_FREED_MEMORY, forget_peak, process_memory
from mmkd.testing.runs import write_json
from mmkd.testing.worker import hardware_class

# The maintained forks are other distributions.
PACKAGES = ('torch', 'mmengine', 'onedl-mmengine', 'mmcv', 'onedl-mmcv', 'mmdet', 'onedl-mmdetection', 'mmrazor')
EPILOG = """
Every arm takes turns in each round of one process. On a CPU the processor time of the process counts, on a GPU clock
time until the device is done. Ratios come first; [low to high] holds the median with 95 %
confidence (from six rounds on; of eight or fewer it is their range).
  over_plain    distillation step / plain student step
  over_floor    distillation step / (plain student step + the float32 teacher's features)
  over_...      distillation step / the same pair and losses in MMRazor's own algorithms
Weights and batch are made: no data set is read and nothing is downloaded.
Example: python tools/benchmark_cost.py CONFIG --against mmrazor --shape 320 320 --shape 640 640 --teacher fold_bn
"""


def teacher_options(text: str) -> dict[str, Any]:
    """`bf16,channels_last` as options of a teacher.

    Raises:
        argparse.ArgumentTypeError: an unknown word.
    """
    options: dict[str, Any] = {}
    for word in text.split(','):
        options |= {word: True} if word in ('channels_last', 'fold_bn', 'compile') else {'precision': word}
    try:
        TeacherOptions(**options)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f'{text}: {error} Further words: channels_last, fold_bn, compile.') from error
    return options


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number >= 1, got {text}')
    return int(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description='Time and memory of a distillation step beside the plain student and beside MMRazor.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='configuration of a distillation, or pkg::name such as mmkd::ssim/....py')
    parser.add_argument('--against', choices=['mmrazor'], help="measure MMRazor's two algorithms too")
    parser.add_argument('--json', type=Path, help='new file for all figures')
    parser.add_argument(
        '--shape', type=positive, nargs=2, action='append', metavar=('H', 'W'), help='input in px (320 320); repeatable'
    )
    parser.add_argument('--batch', type=positive, nargs='+', default=[1], help='images a step (1)')
    parser.add_argument('--rounds', type=positive, default=7, help='rounds that count (7)')
    parser.add_argument('--warmup', type=positive, default=2, help='rounds before them (2)')
    parser.add_argument(
        '--teacher', type=teacher_options, action='append', default=[], metavar='OPTIONS',
        help='a further arm whose teacher has these options, such as bf16,channels_last; repeatable',
    )  # fmt: skip
    parser.add_argument('--memory', action='store_true', help='peak memory too, each arm in a process of its own')
    parser.add_argument(
        '--profile', action='store_true', help='count operations, and show which operators distillation adds time of'
    )
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=positive, help="threads on the CPU (torch's own choice)")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings, as in tools/train.py')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.shape = args.shape or [[320, 320]]
    args.command = sys.argv[1:] if argv is None else list(argv)
    return args


def builders(bench: Workbench, args: argparse.Namespace) -> dict[str, Any]:
    """How to build each arm that is wanted, by name."""
    found = {PLAIN: bench.plain}
    if bench.has_teacher:
        found[TEACHER] = bench.teacher
    found[DISTILLED] = bench.distilled
    for kind in MMRAZOR if args.against else ():
        found[kind] = lambda kind=kind: bench.mmrazor(kind)
    for options in args.teacher:
        name = f'{DISTILLED} ({TeacherOptions(**options)})'
        found[name] = lambda options=options: bench.distilled(options)
    return found


def check(args: argparse.Namespace, cfg: Any) -> None:
    """Refuse what cannot be measured before anything is built.

    Raises:
        FileExistsError: the JSON file is there.
        ValueError: options or a comparison that the configuration does not allow.
    """
    if args.json is not None and args.json.exists() and not args.memory_of:
        raise FileExistsError(f'{args.json} exists; choose another file or remove it.')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: torch sees no GPU.')
    if cfg.model.get('teacher') is None and (args.teacher or args.against):
        raise ValueError(f'{args.config} has no teacher: --teacher and --against mean nothing.')
    split_teacher(cfg.model.get('teacher'))
    if args.against:
        stock_distiller(cfg.model.distiller)


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
    settings = []
    for shape in args.shape:
        for batch in args.batch:
            bench = Workbench(cfg, tuple(shape), batch, args.device)
            arms: list[Arm] = [build() for build in builders(bench, args).values()]
            found = summarise(take_turns(arms, args.rounds, args.warmup, args.device), batch)
            found |= dict(height=shape[0], width=shape[1], batch=batch, weights_MiB=weights(arms))
            algorithm = next(arm.model for arm in arms if arm.name.startswith(DISTILLED))
            found |= dict(gradients_MiB=gradients(arms[0].model), distilled_gradients_MiB=gradients(algorithm))
            found['hook_seconds'] = hook_seconds(algorithm)
            if args.profile:
                found['operators'] = profile_arms(arms, args.device)
                found['work'] = {arm.name: work(arm) for arm in arms}
            if args.memory:
                names = [name for name in builders(bench, args) if name != TEACHER]
                found['memory_MiB'] = {name: memory_in_own_process(args, name, shape, batch) for name in names}
            settings.append(found)
            show(found)
    figures = dict(
        config=args.config,
        command=' '.join(['python tools/benchmark_cost.py', *args.command]),
        hardware=hardware_class(args.device),
        device=args.device,
        threads=torch.get_num_threads(),
        rounds=args.rounds,
        date=time.strftime('%Y-%m-%d'),
        versions={name: version(name) for name in PACKAGES if _there(name)},
        settings=settings,
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, figures)
    return figures


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


def show(found: dict) -> None:
    """Print the figures of one input, ratios first."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    title = f'{found["height"]}x{found["width"]}, batch {found["batch"]}'
    table = Table('arm', 'ratio', 'median', 'low to high', title=title, title_justify='left')
    for name, ratios in found['ratios'].items():
        for kind, r in ratios.items():
            table.add_row(name, kind, f'{r["median"]:.3f}', f'{r["low"]:.3f} to {r["high"]:.3f}')
    console.print(table)
    heads = ('arm', 'seconds', 'images/s', 'teacher', 'distillation', 'student', 'peak MiB')
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
        for name, seconds in added(found['operators'])[:12]:
            table.add_row(name, f'{1e3 * seconds:.1f}')
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

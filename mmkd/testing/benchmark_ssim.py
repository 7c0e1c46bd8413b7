"""Time and memory of the SSIM loss, forward and backward, beside kornia, torchmetrics and pytorch-msssim.

`python -m mmkd.testing.benchmark_ssim --json FILE`. The input is the pyramid P3 ... P7 of one image, two maps a level
in [0, 1]; every library computes the mean of (1 - SSIM) / 2 of each level and one backward pass of their sum. Before
anything is timed, value and gradient of every form must be those of the plain form. All forms take a turn in each round
of one process, in a random order that is the same in every run, so that a busy machine slows them alike. On a CPU the
processor time counts, on CUDA the device's own time over several queued steps; ratios are taken round by round, and
reported by their median and the rounds that hold it with 95 % confidence. `--compile` adds the plain form by
`torch.compile`, warmed up before. `--dense` and `--part` add the fused form with other constants of
`mmkd.functional.ssim_fused`. Memory is what the process grows by at its peak, each form in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from mmkd.engine.cost_rounds import clock_words, queued_steps, ratio, shuffled, spread, step_seconds
from mmkd.functional import ssim_fused
from mmkd.testing.cost_options import add_device_options, positive
from mmkd.testing.process_memory import RETURN_FREED_MEMORY, forget_peak, process_memory
from mmkd.testing.ssim_forms import OURS, PLAIN, WINDOW, Form, Loss, wanted_forms
from mmkd.testing.worker import hardware_class

STRIDES = (8, 16, 32, 64, 128)
# Relative; float32 gave 1e-6 on a CPU, other borders or another window give 1e-2.
TOLERANCE = 1e-4


def make_pyramids(kind: str, args: argparse.Namespace) -> tuple[list[Tensor], list[Tensor]]:
    """Two pyramids; for 'valid' borders without the levels that are smaller than the window."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-args.height // stride), -(-args.width // stride)) for stride in STRIDES]
    smallest = WINDOW if kind == 'valid' else WINDOW // 2 + 1
    shapes = [(args.images, args.channels, *size) for size in sizes if min(size) >= smallest]
    first = [torch.rand(shape, generator=generator) for shape in shapes]
    second = [(x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1) for x in first]
    return [x.to(args.device) for x in first], [y.to(args.device) for y in second]


def step(loss: Loss, first: list[Tensor], second: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One forward and backward pass; the loss and its gradient. A device is not waited for."""
    leaves = [x.detach().requires_grad_() for x in first]
    total = sum(loss(x, y) for x, y in zip(leaves, second, strict=True))
    total.backward()
    return total.detach(), [x.grad for x in leaves]


def measure_times(forms: Mapping[str, Form], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a step of each form in each round, after the rounds of warming up."""
    queued = queued_steps(args.queued, args.device)
    losses = {name: make() for name, (_, make) in forms.items()}
    inputs = {kind: make_pyramids(kind, args) for kind in OURS}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number, order in enumerate(shuffled(list(forms), args.warmup + args.rounds), -args.warmup):
        for name in order:
            given = inputs[forms[name][0]]
            _, seconds = step_seconds(lambda loss=losses[name], given=given: step(loss, *given), args.device, queued)
            if number >= 0:
                times[name].append(seconds)
    return times


def measure_differences(forms: Mapping[str, Form], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Largest difference of loss and gradient from the plain form of the same kind, relative to its largest entry.

    Raises:
        RuntimeError: a form differs by more than `TOLERANCE`; its time would be that of something else.
    """
    result = {}
    for kind, plain in PLAIN.items():
        pyramids = make_pyramids(kind, args)
        right, right_gradients = step(forms[plain][1](), *pyramids)
        for name in (name for name, (other, _) in forms.items() if other == kind and name != plain):
            value, gradients = step(forms[name][1](), *pyramids)
            pairs = list(zip(gradients, right_gradients, strict=True))
            result[name] = found = {
                'loss': (abs(value - right) / right).item(),
                'gradient': max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs),
            }
            if not max(found.values()) <= TOLERANCE:  # nor is NaN
                raise RuntimeError(
                    f'{name} must give what {plain} gives, up to {TOLERANCE:.0e} of it, got the differences '
                    f'{found["loss"]:.1e} (loss) and {found["gradient"]:.1e} (gradient); nothing was timed.'
                )
    return result


def peak_memory(form: Form, args: argparse.Namespace) -> int:
    """Bytes that one step needs at its peak beyond its input, in this process."""
    first, second = make_pyramids(form[0], args)
    loss = form[1]()
    step(loss, first, second)
    if args.device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, first, second)
        return torch.cuda.max_memory_allocated() - before
    before = forget_peak()
    step(loss, first, second)
    return process_memory('VmHWM') - before


def memory_in_own_process(name: str, args: argparse.Namespace) -> int:
    """`peak_memory` of a form in a new process whose freed memory goes back to the system at once."""
    command = [sys.executable, '-W', 'ignore', '-m', 'mmkd.testing.benchmark_ssim', *args.command, '--memory-of', name]
    environment = {**os.environ, **RETURN_FREED_MEMORY}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def report(args: argparse.Namespace) -> dict:
    """All figures; `ratio` is a form's time or memory divided by that of our form on the same input."""
    wanted = args.forms
    differences = measure_differences(wanted, args)
    times = measure_times(wanted, args)
    forms = {}
    for name, (kind, _) in wanted.items():
        forms[name] = {'ms': 1e3 * spread(times[name])['median'], 'time_ratio': ratio(times[name], times[OURS[kind]])}
        forms[name]['memory_MiB'] = memory_in_own_process(name, args) / 2**20
    for name, (kind, _) in wanted.items():
        forms[name]['memory_ratio'] = forms[name]['memory_MiB'] / forms[OURS[kind]]['memory_MiB']
    packages = ('torch', 'kornia', 'torchmetrics', 'pytorch-msssim')
    return {
        'command': ' '.join(['python -m mmkd.testing.benchmark_ssim', *args.command]),
        'input': {key: getattr(args, key) for key in ('images', 'channels', 'height', 'width', 'device')},
        'threads': torch.get_num_threads(),
        'rounds': args.rounds,
        'warmup': args.warmup,
        'queued': queued_steps(args.queued, args.device),
        'dense': ssim_fused.DENSE,
        'part': ssim_fused.PART.get(args.device, ssim_fused.PART_ELSEWHERE),
        'machine': hardware_class(args.device),
        'date': time.strftime('%Y-%m-%d'),
        'versions': {name: version(name) for name in packages},
        'forms': forms,
        'differences': differences,
    }


def not_negative(text: str) -> int:
    """A whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f'must be a whole number >= 0, got {text}')
    return int(text)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--json', type=Path, help='file that the figures are written to')
    parser.add_argument('--height', type=positive, default=800, help='px of the padded input (800)')
    parser.add_argument('--width', type=positive, default=1216, help='px of the padded input (1216)')
    parser.add_argument('--images', type=positive, default=1, help='(1)')
    parser.add_argument('--channels', type=positive, default=256, help='(256)')
    parser.add_argument('--rounds', type=positive, default=15, help='rounds that count (15)')
    parser.add_argument('--warmup', type=positive, default=1, help='rounds before them (1)')
    add_device_options(parser, 'cpu')
    parser.add_argument('--compile', action='store_true', help='add the plain form by torch.compile (a minute)')
    parser.add_argument(
        '--dense', type=not_negative, nargs='+', default=[], metavar='CELLS',
        help="a further form each: maps of up to so many cells are blurred by matrix products, larger ones by "
        f'convolutions; 0 is convolutions alone (shipped: {ssim_fused.DENSE})',
    )  # fmt: skip
    parser.add_argument(
        '--part', type=positive, nargs='+', default=[], metavar='ELEMENTS',
        help='a further form each: about so many elements of a map are worked on together (shipped: '
        f'{ssim_fused.PART["cpu"]} on a CPU, {ssim_fused.PART_ELSEWHERE} elsewhere)',
    )  # fmt: skip
    parser.add_argument('--memory-of', metavar='FORM', help='print the peak memory of one form and end')
    args = parser.parse_args(argv)
    args.command = sys.argv[1:] if argv is None else list(argv)
    args.forms = wanted_forms(args.dense, args.part, args.compile)
    if args.memory_of is not None and args.memory_of not in args.forms:
        parser.error(f'--memory-of must be one of {sorted(args.forms)}, got {args.memory_of!r}')
    smallest = (WINDOW - 1) * STRIDES[0] + 1
    if min(args.height, args.width) < smallest:
        parser.error(f'--height and --width must be >= {smallest} px, got {args.height} and {args.width}')
    if args.device == 'cpu':
        args.threads = args.threads or 1
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the figures."""
    args = parse_arguments(argv)
    queued_steps(args.queued, args.device)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    warnings.filterwarnings('ignore', message='.*torch.jit', category=DeprecationWarning)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # every level has a size of its own
    if args.memory_of:
        print(peak_memory(args.forms[args.memory_of], args))
        return
    figures = report(args)
    print(clock_words(args.device, figures['threads'], figures['queued']))
    print(f'{"form":26} {"ms":>8} {"x time":>22} {"MiB":>8} {"x memory":>8}')
    for name, f in figures['forms'].items():
        ratios = '{median:.2f} ({low:.2f} to {high:.2f})'.format(**f['time_ratio'])
        print(f'{name:26} {f["ms"]:8.1f} {ratios:>22} {f["memory_MiB"]:8.1f} {f["memory_ratio"]:8.2f}')
    for name, difference in figures['differences'].items():
        loss, gradient = difference['loss'], difference['gradient']
        print(f'{name:26} differs from the plain form by {loss:.1e} (loss), {gradient:.1e} (gradient)')
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    main()

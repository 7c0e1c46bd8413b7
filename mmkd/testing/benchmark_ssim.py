"""Time and memory of the SSIM loss, forward and backward, beside kornia, torchmetrics and pytorch-msssim.

`python -m mmkd.testing.benchmark_ssim --json FILE`. The input is the pyramid P3 ... P7 of one image, two maps a level
in [0, 1]; every library computes the mean of (1 - SSIM) / 2 of each level and one backward pass of their sum. All forms
take turns in each round of one process, so that a busy machine slows them alike. On a CPU the processor time counts, on
CUDA clock time until the device is done; ratios are taken round by round, and reported by their median and the rounds
that hold it with 95 % confidence. `--compile` adds the plain form by `torch.compile`, warmed up before. Memory is what
the process grows by at its peak, each form in a process of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from mmkd.engine.cost_rounds import ratio, spread
from mmkd.models.losses.ssim_loss import SSIMLoss
from mmkd.testing.process_memory import RETURN_FREED_MEMORY, forget_peak, process_memory

Loss = Callable[[Tensor, Tensor], Tensor]
STRIDES = (8, 16, 32, 64, 128)
WINDOW = 11
# each form: borders, whether it is the one that others are compared with
OURS = {'same': 'mmkd_same', 'valid': 'mmkd_valid'}


def our_loss(padding: str, normalize: str | None = None, fused: bool = True) -> Loss:
    """The loss of this project."""
    return SSIMLoss(data_range=1.0, padding=padding, normalize=normalize, fused=fused)


def kornia_loss(padding: str) -> Loss:
    """kornia's loss."""
    from kornia.losses import ssim_loss

    return lambda x, y: ssim_loss(x, y, WINDOW, padding=padding)


def torchmetrics_loss() -> Loss:
    """torchmetrics' index, as a loss."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return lambda x, y: (1 - ssim(x, y, data_range=1.0)) / 2


def pytorch_msssim_loss() -> Loss:
    """pytorch-msssim's index, as a loss."""
    from pytorch_msssim import ssim

    return lambda x, y: (1 - ssim(x, y, data_range=1.0)) / 2


FORMS: dict[str, tuple[str, Callable[[], Loss]]] = {
    'mmkd_same': ('same', lambda: our_loss('same')),
    'mmkd_plain_same': ('same', lambda: our_loss('same', fused=False)),
    'kornia_same': ('same', lambda: kornia_loss('same')),
    'torchmetrics_same': ('same', torchmetrics_loss),
    'mmkd_valid': ('valid', lambda: our_loss('valid')),
    'mmkd_plain_valid': ('valid', lambda: our_loss('valid', fused=False)),
    'kornia_valid': ('valid', lambda: kornia_loss('valid')),
    'pytorch_msssim_valid': ('valid', pytorch_msssim_loss),
    'mmkd_min_max_same': ('min_max', lambda: our_loss('same', normalize='image')),
    'mmkd_plain_min_max_same': ('min_max', lambda: our_loss('same', normalize='image', fused=False)),
}
COMPILED: dict[str, tuple[str, Callable[[], Loss]]] = {
    f'mmkd_compiled_{kind}': (kind, lambda kind=kind: torch.compile(our_loss(kind, fused=False), dynamic=False))
    for kind in OURS
}


def make_pyramids(form: str, args: argparse.Namespace) -> tuple[list[Tensor], list[Tensor]]:
    """Two pyramids; for 'valid' borders without the levels that are smaller than the window."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(-(-args.height // stride), -(-args.width // stride)) for stride in STRIDES]
    smallest = WINDOW if FORMS[form][0] == 'valid' else WINDOW // 2 + 1
    shapes = [(args.images, args.channels, *size) for size in sizes if min(size) >= smallest]
    first = [torch.rand(shape, generator=generator) for shape in shapes]
    second = [(x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1) for x in first]
    return [x.to(args.device) for x in first], [y.to(args.device) for y in second]


def step(loss: Loss, first: list[Tensor], second: list[Tensor]) -> tuple[float, list[Tensor]]:
    """One forward and backward pass; the loss and its gradient."""
    leaves = [x.detach().requires_grad_() for x in first]
    total = sum(loss(x, y) for x, y in zip(leaves, second, strict=True))
    total.backward()
    return total.item(), [x.grad for x in leaves]


def measure_times(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each form in each round, after one round of warming up."""
    clock = time.process_time if args.device == 'cpu' else time.perf_counter
    losses = {name: make() for name, (_, make) in FORMS.items()}
    inputs = {kind: make_pyramids(name, args) for name, (kind, _) in FORMS.items()}
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    for turn in range(args.rounds + 1):
        for name, loss in losses.items():
            synchronize(args.device)
            start = clock()
            step(loss, *inputs[FORMS[name][0]])
            synchronize(args.device)
            if turn:
                times[name].append(clock() - start)
    return times


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def measure_differences(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Largest difference of loss and gradient from our form with the same borders, relative to the largest entry."""
    result = {}
    for name, (kind, make) in FORMS.items():
        if kind not in OURS or name == OURS[kind]:
            continue
        pyramids = make_pyramids(name, args)
        value, gradients = step(make(), *pyramids)
        our_value, our_gradients = step(FORMS[OURS[kind]][1](), *pyramids)
        pairs = list(zip(gradients, our_gradients, strict=True))
        result[name] = {
            'loss': abs(value - our_value) / value,
            'gradient': max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs),
        }
    return result


def peak_memory(form: str, args: argparse.Namespace) -> int:
    """Bytes that one step needs at its peak beyond its input, in this process."""
    first, second = make_pyramids(form, args)
    loss = FORMS[form][1]()
    step(loss, first, second)
    if args.device.startswith('cuda'):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(loss, first, second)
        return torch.cuda.max_memory_allocated() - before
    before = forget_peak()
    step(loss, first, second)
    return process_memory('VmHWM') - before


def memory_in_own_process(form: str) -> int:
    """`peak_memory` in a new process whose freed memory goes back to the system at once."""
    command = [sys.executable, '-W', 'ignore', '-m', 'mmkd.testing.benchmark_ssim', *sys.argv[1:], '--memory-of', form]
    environment = {**os.environ, **RETURN_FREED_MEMORY}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def report(args: argparse.Namespace) -> dict:
    """All figures; `ratio` is a form's time or memory divided by that of our form on the same input."""
    times = measure_times(args)
    forms = {}
    for name, (kind, _) in FORMS.items():
        ours = times[OURS.get(kind, 'mmkd_min_max_same')]
        forms[name] = {'ms': 1e3 * spread(times[name])['median'], 'time_ratio': ratio(times[name], ours)}
        forms[name]['memory_MiB'] = memory_in_own_process(name) / 2**20
    for name, (kind, _) in FORMS.items():
        own = forms[OURS.get(kind, 'mmkd_min_max_same')]['memory_MiB']
        forms[name]['memory_ratio'] = forms[name]['memory_MiB'] / own
    packages = ('torch', 'kornia', 'torchmetrics', 'pytorch-msssim')
    return {
        'command': ' '.join(['python -m mmkd.testing.benchmark_ssim', *sys.argv[1:]]),
        'input': {key: getattr(args, key) for key in ('images', 'channels', 'height', 'width', 'device')},
        'threads': torch.get_num_threads(),
        'rounds': args.rounds,
        'machine': f'{platform.machine()}, {os.cpu_count()} CPU cores',
        'date': time.strftime('%Y-%m-%d'),
        'versions': {name: version(name) for name in packages},
        'forms': forms,
        'differences': measure_differences(args),
    }


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', type=Path, help='file that the figures are written to')
    parser.add_argument('--height', type=int, default=800, help='px of the padded input')
    parser.add_argument('--width', type=int, default=1216, help='px of the padded input')
    parser.add_argument('--images', type=int, default=1)
    parser.add_argument('--channels', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true', help='add the plain form by torch.compile (a minute)')
    parser.add_argument(
        '--memory-of', choices=sorted(FORMS | COMPILED), help='print the peak memory of one form and end'
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write the figures."""
    args = parse_arguments()
    warnings.filterwarnings('ignore', message='.*torch.jit', category=DeprecationWarning)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # every level has a size of its own
        FORMS.update(COMPILED)
    if args.memory_of:
        print(peak_memory(args.memory_of, args))
        return
    figures = report(args)
    print(f'{"form":26} {"ms":>8} {"x time":>22} {"MiB":>8} {"x memory":>8}')
    for name, f in figures['forms'].items():
        ratios = '{median:.2f} ({low:.2f} to {high:.2f})'.format(**f['time_ratio'])
        print(f'{name:26} {f["ms"]:8.1f} {ratios:>22} {f["memory_MiB"]:8.1f} {f["memory_ratio"]:8.2f}')
    for name, difference in figures['differences'].items():
        print(f'{name:26} differs by {difference["loss"]:.1e} (loss), {difference["gradient"]:.1e} (gradient)')
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
    main()

"""From the JSON files of `tools/benchmark_cost.py` to tables on a page and a plot.

python -m mmkd.testing.cost_report docs/results/cost_*.json --page docs/cost.md --details docs/results/cost.md \\
    --plot docs/figures/cost.svg
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmkd.engine.cost_arms import DISTILLED, MMRAZOR, PLAIN, TEACHER
from mmkd.engine.cost_profile import added, net_added
from mmkd.engine.cost_rounds import clock_words
from mmkd.testing.report import write_section
from mmkd.visualization.style import colour, new_figure, save_figure

RATIOS = ('over_plain', 'over_floor', *(f'over_{kind}' for kind in MMRAZOR))
GPUS = (8, 64)
OPERATORS = 6
DRAWN = (PLAIN, DISTILLED, *MMRAZOR)


def _pair(figures: dict) -> str:
    return Path(figures['config'].split('::')[-1]).stem


def _input(setting: dict) -> str:
    return f'{setting["height"]}x{setting["width"]}, batch {setting["batch"]}'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ['| ' + ' | '.join(heads) + ' |', '|' + ' --- |' * len(heads)]
    return '\n'.join([*lines, *('| ' + ' | '.join(row) + ' |' for row in rows)])


def _ratio(found: dict | None) -> str:
    return '-' if found is None else f'**{found["median"]:.2f}** ({found["low"]:.2f} to {found["high"]:.2f})'


def ratio_table(files: Sequence[dict]) -> str:
    """Ratios of every distilled arm, one row for each input."""
    rows = []
    for figures in files:
        for setting in figures['settings']:
            for arm, ratios in setting['ratios'].items():
                cells = [_ratio(ratios.get(kind)) for kind in RATIOS]
                rows.append([f'`{_pair(figures)}`', _input(setting), arm, str(figures['rounds']), *cells])
    return _table(['config', 'input', 'arm', 'rounds', *(kind.replace('_', ' ') for kind in RATIOS)], rows)


def split_table(files: Sequence[dict]) -> str:
    """Seconds, images a second, parts of a step, teacher's weights and peak memory."""
    rows = []
    for figures in files:
        for setting in figures['settings']:
            memory, plain = setting.get('memory_MiB', {}), setting.get('memory_MiB', {}).get(PLAIN)
            for name, arm in setting['arms'].items():
                parts = [f'{arm["parts"][p]:.3f}' if 'parts' in arm else '-' for p in ('teacher', 'distill', 'student')]
                weights = f'{setting["weights_MiB"][name]:.0f}' if name in setting['weights_MiB'] else '-'
                peak = f'{memory[name]:.0f} ({memory[name] - plain:+.0f})' if name in memory else '-'
                seconds = f'{arm["seconds"]["median"]:.3f}'
                rows.append(
                    [f'`{_pair(figures)}`', _input(setting), name, seconds, _speed(setting, arm), *parts, weights, peak]
                )
    heads = ['config', 'input', 'arm', 's a step', 'images/s (clock time)', 'teacher s', 'losses s', 'rest s']
    return _table([*heads, 'teacher MiB', 'peak MiB (to plain)'], rows)


def _speed(setting: dict, arm: dict) -> str:
    """Images a second of clock time; files of before 2026-11-23 divided by processor time on a CPU."""
    if 'wall_seconds' in arm:
        return f'{setting["batch"] / arm["wall_seconds"]["median"]:.2f}'
    return f'{arm["images_a_second"]:.2f} (of the time that counts)'


def operator_table(files: Sequence[dict]) -> str:
    """What a step takes longer, net, and the operators that take the most more; nothing where none was profiled."""
    rows = []
    for figures in files:
        for setting in figures['settings']:
            if 'operators' not in setting:
                continue
            more = added(setting['operators'])
            shares = [f'{name.removeprefix("aten::")} {1e3 * seconds:.0f}' for name, seconds in more[:OPERATORS]]
            longer = 1e3 * sum(seconds for _, seconds in more)
            totals = [f'{1e3 * net_added(setting["operators"]):+.0f}', f'{longer:+.0f}']
            rows.append([f'`{_pair(figures)}`', _input(setting), *totals, ', '.join(shares)])
    heads = ['config', 'input', 'net ms to plain and teacher', 'ms of the operators that took more', 'most of them, ms']
    return _table(heads, rows) if rows else ''


def work_table(files: Sequence[dict]) -> str:
    """What every arm computes in a step, and its share of MMRazor's; nothing where nobody counted."""
    rows = []
    for figures in files:
        for setting in figures['settings']:
            for name, done in setting.get('work', {}).items():
                shares = [_share(done, setting['work'].get(kind)) for kind in MMRAZOR]
                counts = [f'{done["gflops"]:.2f}', str(done['operators'])]
                rows.append([f'`{_pair(figures)}`', _input(setting), name, *counts, *shares])
    heads = ['config', 'input', 'arm', 'GFLOPs a step', 'operators', *(f'GFLOPs over {kind}' for kind in MMRAZOR)]
    return _table(heads, rows) if rows else ''


def _share(done: dict, other: dict | None) -> str:
    return '-' if other is None else f'{done["gflops"] / other["gflops"]:.3f}'


def hook_line(files: Sequence[dict]) -> str:
    """What the logging hook costs at most: the longest of all settings, and the largest share."""
    found = [s for figures in files for s in figures['settings'] if 'hook_seconds' in s]
    if not found:
        return ''
    shares = [
        (s['hook_seconds'] / min(arm['seconds']['median'] for arm in s['arms'].values()), s['hook_seconds'])
        for s in found
    ]
    share, seconds = (max(values) for values in zip(*shares, strict=True))
    return f'`CostHook` takes at most {1e6 * seconds:.0f} us a step, and at most {share:.3%} of the fastest arm.'


def gpu_table(files: Sequence[dict]) -> str:
    """What N processes hold and send in a step: a teacher each, and the gradients by a ring all-reduce.

    Files of before 2026-11-22 know the gradients of the student alone: the table says so beside theirs.
    """
    rows = []
    for figures in files:
        known = [s for s in figures['settings'] if TEACHER in s['weights_MiB'] and 'gradients_MiB' in s]
        for setting in known[:1]:
            gradients, note = setting.get('distilled_gradients_MiB'), ''
            if gradients is None:
                gradients, note = setting['gradients_MiB'], " (the student's alone)"
            sent = [f'{2 * (n - 1) / n * gradients:.0f}' for n in GPUS]
            teacher = setting['weights_MiB'][TEACHER]
            rows.append([f'`{_pair(figures)}`', f'{teacher:.0f}', f'{gradients:.0f}{note}', *sent])
    heads = ['config', 'float32 teacher on each GPU, MiB', 'gradients of student and connectors, MiB']
    return _table([*heads, *(f'sent by each of {n} GPUs, MiB a step' for n in GPUS)], rows)


def notes(files: Sequence[dict]) -> str:
    """What the numbers are: machine, threads, date, commands."""
    lines = []
    for figures in files:
        clock = clock_words(figures['device'], figures['threads'], figures.get('queued'))
        versions = ', '.join(f'{name} {release}' for name, release in figures['versions'].items())
        lines.append(
            f'- `{figures["command"]}`: {figures["hardware"]}, {figures["threads"]} thread(s), {clock}, '
            f'{figures["rounds"]} interleaved rounds, {versions}, {figures["date"]}.'
        )
    return '\n'.join(lines)


@dataclass(frozen=True)
class _Panel:
    """Settings of one pair that differ in one thing.

    Args:
        title: the pair, and what all settings share.
        axis: what they differ in.
        points: that, with the setting.
    """

    title: str
    axis: str
    points: list[tuple[float, dict]]


def _panels(pair: str, settings: Sequence[dict]) -> list[_Panel]:
    """Over the size of the input at the smallest batch; over the batch at the size with the most batches."""
    batch = min(s['batch'] for s in settings)
    sizes = {s['height'] * s['width']: s for s in settings if s['batch'] == batch}
    found = [_Panel(f'{pair}\nbatch {batch}', 'pixels of an image, millions', [(p / 1e6, s) for p, s in sizes.items()])]
    shapes = [(s['height'], s['width']) for s in settings]
    height, width = max(shapes, key=shapes.count)
    batches = {s['batch']: s for s in settings if (s['height'], s['width']) == (height, width)}
    if len(batches) > 1:
        found.append(_Panel(f'{pair}\n{height}x{width} px', 'images of a step', list(batches.items())))
    return found


def cost_figure(files: Sequence[dict]) -> Figure:
    """Seconds of a step, a row a pair: over the size of the input, and over the batch where several were measured.

    A pair that was measured at one point only is left out beside pairs with a line.

    Raises:
        ValueError: there is nothing to draw.
    """
    pairs = list(dict.fromkeys(_pair(figures) for figures in files))
    if not pairs:
        raise ValueError('files must hold at least one measurement, got none')
    rows = [_panels(pair, [s for f in files if _pair(f) == pair for s in f['settings']]) for pair in pairs]
    lines = [panels for panels in rows if any(len(panel.points) > 1 for panel in panels)]
    rows = lines or rows
    columns = max(map(len, rows))
    figure = new_figure(5.5 * columns, 4 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(place, panels, strict=False):
            _draw(axes, panel)
    return figure


def _draw(axes: Axes, panel: _Panel) -> None:
    axes.set_axis_on()
    for index, arm in enumerate(DRAWN):
        points = sorted((x, s['arms'][arm]['seconds']['median']) for x, s in panel.points if arm in s['arms'])
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker='o', color=colour(index), label=arm)
    axes.set(title=panel.title, xlabel=panel.axis, ylabel='seconds a step')
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _text(files: Sequence[dict], parts: Sequence[Callable[[Sequence[dict]], str]]) -> str:
    return '\n\n'.join(filter(None, (part(files) for part in parts)))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', type=Path, nargs='+', help='JSON files of tools/benchmark_cost.py')
    parser.add_argument('--page', type=Path, help='Markdown page whose section `cost` is written')
    parser.add_argument('--details', type=Path, help='page for all but the ratios, so that --page stays short')
    parser.add_argument('--name', default='cost', help='of the section')
    parser.add_argument('--plot', type=Path, help='picture to write')
    args = parser.parse_args(argv)
    files = [json.loads(path.read_text()) for path in args.files]
    short, long = _text(files, (ratio_table, hook_line)), _text(files, (split_table, work_table, operator_table, notes))
    print(f'{short}\n\n{long}')
    if args.page:
        write_section(args.page, args.name, short if args.details else f'{short}\n\n{long}')
        write_section(args.page, f'{args.name} gpus', gpu_table(files))
    if args.details:
        write_section(args.details, args.name, long)
    if args.plot:
        save_figure(cost_figure(files), args.plot)


if __name__ == '__main__':
    main()

"""From the runs of an experiment to its results: `results.json`, a table for the terminal, a table for the docs.

python -m mmkd.testing.report WORK_DIR --page docs/results.md --json docs/results/NAME.json
"""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mmkd.testing.experiment import Experiment, Run, unfair_runs
from mmkd.testing.methods import PLAIN, TEACHER
from mmkd.testing.statistics import mean_with_interval, paired_difference
from mmkd.testing.worker import write_json

_KEPT = ('metrics', 'curve', 'train_seconds', 'train_cpu_seconds', 'wall_seconds', 'peak_memory_mb')
_KEPT += ('initial_sha256', 'batches_sha256')


def hardware_class() -> str:
    """What the numbers were measured on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{os.cpu_count()} CPU cores ({platform.machine()}), maybe shared with other work'


def collect_results(experiment: Experiment, runs: Sequence[Run], costs: dict[str, dict], *, command: str = '') -> dict:
    """All that is known of an experiment, ready for JSON.

    Args:
        experiment: What was compared.
        runs: Its finished runs.
        costs: Arm -> `parameters`, `gflops`, `ms`.
        command: That was run.

    Returns:
        `setting`, `runs` (one dict a run), `arms` (arm -> means and paired differences), `unfair` (complaints).
    """
    done = [run for run in runs if run.result]
    data, schedule = experiment.data, experiment.schedule
    setting = {
        'data': data.name,
        'train_images': data.counts[0],
        'val_images': data.counts[1],
        'classes': list(data.classes),
        'scale': list(schedule.scale),
        'epochs': schedule.epochs,
        'batch': schedule.batch,
        'lr': schedule.lr,
        'teacher_lr': (experiment.teacher_schedule or schedule).lr,
        'teacher_epochs': (experiment.teacher_schedule or schedule).epochs,
        'seeds': sorted({run.seed for run in done if run.arm != TEACHER}),
        'metrics': list(data.metrics.values()),
        'percent': data.percent,
        'hardware': hardware_class(),
        'threads': max((run.result['threads'] for run in done), default=1),
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        'command': command,
    }
    rows = [{'arm': run.arm, 'seed': run.seed, **{k: run.result[k] for k in _KEPT if k in run.result}} for run in done]
    return {
        'setting': setting,
        'arms': summarise(rows, setting['metrics'], costs),
        'unfair': unfair_runs(runs),
        'runs': rows,
    }


def summarise(rows: Sequence[dict], metrics: Sequence[str], costs: dict[str, dict]) -> dict[str, dict]:
    """Means over seeds, and paired differences to plain.

    Args:
        rows: One dict a run: `arm`, `seed`, `metrics`, `train_seconds`, `peak_memory_mb`.
        metrics: Names of the scores.
        costs: Arm -> `parameters`, `gflops`, `ms`.

    Returns:
        Arm -> dict; the teacher first, the others in the order of the runs.
    """
    arms: dict[str, dict] = {}
    plain = [row for row in rows if row['arm'] == PLAIN]
    for arm in dict.fromkeys(row['arm'] for row in rows):
        mine = [row for row in rows if row['arm'] == arm]
        summary: dict = {'seeds': [row['seed'] for row in mine]}
        for name in metrics:
            scores = {row['seed']: row['metrics'][name] for row in mine}
            summary[name] = mean_with_interval(list(scores.values())).as_dict()
            if arm not in (PLAIN, TEACHER) and plain:
                base = {row['seed']: row['metrics'][name] for row in plain}
                summary[f'{name} - plain'] = paired_difference(scores, base).as_dict()
        summary['train_seconds'] = mean_with_interval([row['train_seconds'] for row in mine]).mean
        busy = [row['train_cpu_seconds'] for row in mine if 'train_cpu_seconds' in row]
        summary['train_cpu_seconds'] = mean_with_interval(busy).mean if busy else None
        summary['peak_memory_mb'] = max(row['peak_memory_mb'] for row in mine)
        arms[arm] = {**summary, **costs.get(arm, {})}
    return arms


def table_rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """The table of an experiment as text.

    Args:
        results: Of `collect_results`.

    Returns:
        Headings; one list of cells an arm.
    """
    metrics, percent = results['setting']['metrics'], results['setting']['percent']
    differences = len(results['arms']) > 2
    heads = ['arm', 'seeds', *metrics]
    if differences:
        heads += [f'{name} - plain' for name in metrics]
    heads += ['M params', 'GFLOPs', 'ms/image', 'train s', 'CPU s', 'MiB']
    body = []
    for arm, found in results['arms'].items():
        cells = [arm, str(len(found['seeds']))]
        cells += [_estimate(found[name], percent) for name in metrics]
        if differences:
            cells += [_estimate(found.get(f'{name} - plain'), percent, sign=True) for name in metrics]
        cells += [f'{found["parameters"] / 1e6:.2f}' if 'parameters' in found else '-']
        cells += [f'{found["gflops"]:.2f}' if 'gflops' in found else '-']
        cells += [f'{found["ms"]:.0f}' if 'ms' in found else '-']
        busy = found['train_cpu_seconds']
        cells += [f'{found["train_seconds"]:.0f}', '-' if busy is None else f'{busy:.0f}']
        cells += [str(found['peak_memory_mb'])]
        body.append(cells)
    return heads, body


def print_table(results: dict, console: Console | None = None) -> None:
    """Show the table in the terminal.

    Args:
        results: Of `collect_results`.
        console: Where to.
    """
    console = console or Console()
    heads, body = table_rows(results)
    table = Table(title=caption(results), title_justify='left')
    for head in heads:
        table.add_column(head, justify='left' if head == 'arm' else 'right')
    for cells in body:
        table.add_row(*cells)
    console.print(table)
    for complaint in results['unfair']:
        console.print(f'NOT COMPARABLE: {complaint}', style='bold red')


def caption(results: dict) -> str:
    """One sentence that says what the numbers are."""
    setting = results['setting']
    seeds = len(setting['seeds'])
    spread = 'mean and 95 % t-interval over seeds' if seeds > 1 else 'one seed: no interval, a single run proves little'
    return (
        f'{setting["data"]}: {setting["train_images"]} training and {setting["val_images"]} validation images in '
        f'{setting["scale"][0]}x{setting["scale"][1]}, {setting["epochs"]} epochs; {spread}'
    )


def markdown(results: dict) -> str:
    """The table for a page of the docs, with everything a reader needs to judge it."""
    heads, body = table_rows(results)
    setting = results['setting']
    lines = ['| ' + ' | '.join(heads) + ' |', '|' + '---|' * len(heads)]
    lines += ['| ' + ' | '.join(cells) + ' |' for cells in body]
    seeds = ', '.join(str(seed) for seed in setting['seeds'])
    notes = [
        f'{caption(results)}. Seeds {seeds}; the teacher was trained once. Score of the last epoch on the validation '
        'split, which nothing was chosen on by the tool; "- plain" is the mean of the differences seed by seed, where '
        'both arms start from the same student and see the same batches.',
        f'Batch {setting["batch"]}, AdamW, peak learning rate {setting["lr"]:g} (teacher: {setting["teacher_lr"]:g}, '
        f'{setting["teacher_epochs"]} epochs). {setting["hardware"]}, {setting["threads"]} thread(s) a run; '
        f'{setting["date"]}. "train s" and "ms/image" are clock time, rough on a shared machine; "CPU s" is not.',
    ]
    if results['unfair']:
        notes.append('**Not comparable:** ' + '; '.join(results['unfair']) + '.')
    else:
        notes.append('Checked in every pair: same initial student, same batches (digests in the JSON file).')
    if setting['command']:
        notes.append(f'Command: `{setting["command"]}`')
    return '\n'.join(lines) + '\n\n' + '\n\n'.join(notes) + '\n'


def write_section(page: Path, name: str, text: str) -> None:
    """Put text between the markers of a page, `<!-- name -->` and `<!-- /name -->`; append them where they are not.

    Args:
        page: Markdown file; made when absent.
        name: Of the section.
        text: Its new content.

    Raises:
        ValueError: Where only one of the two markers is there.
    """
    begin, end = f'<!-- {name} -->', f'<!-- /{name} -->'
    old = page.read_text() if page.exists() else ''
    if (begin in old) != (end in old):
        raise ValueError(f'{page} holds only one of {begin} and {end}')
    block = f'{begin}\n{text.strip()}\n{end}'
    if begin in old:
        before, rest = old.split(begin, 1)
        new = before + block + rest.split(end, 1)[1]
    else:
        new = old.rstrip('\n') + ('\n\n' if old else '') + block + '\n'
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(new)


def _estimate(value: dict | None, percent: float, sign: bool = False) -> str:
    if value is None:
        return '-'
    text = f'{percent * value["mean"]:{"+" if sign else ""}.1f}'
    if value['low'] is None:
        return text
    return f'{text} ± {percent * (value["high"] - value["low"]) / 2:.1f}'


def main(argv: Sequence[str] | None = None) -> None:
    """Command line.

    Args:
        argv: Arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder with results.json')
    parser.add_argument('--page', type=Path, help='Markdown page to write the table into')
    parser.add_argument('--name', help='of the section on that page; the data set by default')
    parser.add_argument('--json', type=Path, help='copy of the results, to be committed')
    options = parser.parse_args(argv)
    results = json.loads((options.work_dir / 'results.json').read_text())
    print_table(results)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, results)
    if options.page:
        write_section(options.page, options.name or results['setting']['data'], markdown(results))


if __name__ == '__main__':
    main()

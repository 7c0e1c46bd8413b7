"""The table of an experiment: in a terminal, and as Markdown, whole or in short."""

import sys

from rich.console import Console
from rich.table import Table

from mmkd.testing.diagnosis_table import diagnosis_rows
from mmkd.testing.fairness import are_paired
from mmkd.testing.hold_back import HELD_BACK
from mmkd.testing.methods import PLAIN, TEACHER
from mmkd.testing.remarks import final_note, has_mixed_seeds, plain_of_the_pairs
from mmkd.testing.store import commands


def table_rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """The table of an experiment as text.

    Args:
        results: Of `mmkd.testing.results.collect_results`.

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
        cells += [estimate(found.get(name), percent) for name in metrics]
        if differences:
            cells += [estimate(found.get(f'{name} - plain'), percent, sign=True) for name in metrics]
        cells += [f'{found["parameters"] / 1e6:.2f}' if 'parameters' in found else '-']
        cells += [f'{found["gflops"]:.2f}' if 'gflops' in found else '-']
        cells += [f'{found["ms"]:.0f}' if 'ms' in found else '-']
        busy = found['train_cpu_seconds']
        cells += [f'{found["train_seconds"]:.0f}', '-' if busy is None else f'{busy:.0f}']
        cells += [str(found['peak_memory_mb'])]
        body.append(cells)
    return heads, body


def short_rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """The table in short: the main score alone, and that of the final split, where there is one.

    Args:
        results: Of `mmkd.testing.results.collect_results`.

    Returns:
        Headings; one list of cells an arm, the teacher first, then plain, then the others by their gain.
    """
    name, percent = results['setting']['metrics'][0], results['setting']['percent']

    def place(item: tuple[str, dict]) -> tuple[int, float]:
        arm, found = item
        return (TEACHER, PLAIN, arm).index(arm), -(found.get(f'{name} - plain') or {'mean': 0.0})['mean']

    scores = _main_scores(results)
    body = []
    for arm, found in sorted(results['arms'].items(), key=place):
        cells = [arm, str(len(found['seeds']))]
        for score in scores:
            cells.append(estimate(found.get(score), percent))
            cells.append(estimate(found.get(f'{score} - plain'), percent, sign=True))
        body.append(cells)
    return ['arm', 'seeds', *(head for score in scores for head in (score, f'{score} - plain'))], body


def _main_scores(results: dict) -> list[str]:
    """Name of the main score, and of the same on the final split, where there is one."""
    name, final = results['setting']['metrics'][0], results['setting'].get('final')
    return [name, f'{name} {final["split"]}'] if final else [name]


def print_table(results: dict, console: Console | None = None) -> None:
    """Show the table in the terminal.

    Args:
        results: Of `mmkd.testing.results.collect_results`.
        console: Where to.
    """
    console = console or (Console() if sys.stdout.isatty() else Console(width=160))
    heads, body = table_rows(results)
    table = Table(title=caption(results), title_justify='left')
    for head in heads:
        table.add_column(head, justify='left' if head == 'arm' else 'right')
    for cells in body:
        table.add_row(*cells)
    console.print(table)
    for note in results.get('notes', []):
        console.print(note, markup=False, highlight=False)
    for complaint in results['unfair']:
        console.print(f'NOT COMPARABLE: {complaint}', style='bold red', markup=False)


def caption(results: dict) -> str:
    """One sentence that says what the numbers are."""
    setting = results['setting']
    seeds = len(setting['seeds'])
    spread = 'mean and 95 % t-interval over seeds' if seeds > 1 else 'one seed: no interval, a single run proves little'
    epochs = f'{setting["epochs"]} epoch{"s" * (setting["epochs"] > 1)}'
    return (
        f'{setting["data"]}: {setting["train_images"]} training and {setting["val_images"]} validation images in '
        f'{setting["scale"][0]}x{setting["scale"][1]}, {epochs}; {spread}'
    )


def notes(results: dict) -> list[str]:
    """What a reader needs to judge the table, one paragraph each.

    Args:
        results: Of `mmkd.testing.results.collect_results`.

    Returns:
        Plain text.
    """
    setting = results['setting']
    seeds = ', '.join(str(seed) for seed in setting['seeds'])
    scored = 'the validation split, which nothing was chosen on by the tool'
    if setting['data'].endswith(HELD_BACK):
        scored = 'images that were held back from the training split, on which settings were chosen'
    texts = [
        f'{caption(results)}. Seeds {seeds}; the teacher was trained once. Score of the last epoch on {scored}; '
        '"- plain" is the mean of the differences seed by seed, where '
        'both arms start from the same student and see the same batches.',
        f'Batch {setting["batch"]}, AdamW, peak learning rate {setting["lr"]:g} (teacher: {setting["teacher_lr"]:g}, '
        f'{setting["teacher_epochs"]} epochs). {setting["hardware"]}, {setting["threads"]} thread(s) a run; '
        f'{setting["date"]}. "train s" and "ms/image" are clock time, rough on a shared machine; "CPU s" is not.',
        *results.get('notes', []),
    ]
    texts += filter(None, [final_note(results)])
    if not results['unfair'] and are_paired(results['runs']):
        texts.append('Checked in every pair: same initial student, same batches (digests in the JSON file).')
    return texts


def curve_rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the main score over the epochs: the mean over the seeds that all arms have.

    Args:
        results: Of `mmkd.testing.results.collect_results`.

    Returns:
        Heads and rows; no row where nothing was scored before the last epoch. Arms that were trained for other
        epochs (the teacher, plain-time) are not among them. Of arms that share no seed all seeds count.
    """
    setting, scores = results['setting'], {}
    name, shared = setting['metrics'][0], curve_seeds(results)
    for row in _rows_with_curve(results):
        if row['seed'] in shared or not shared:
            for point in row['curve']:
                if name in point:
                    scores.setdefault(row['arm'], {}).setdefault(point['epoch'], []).append(point[name])
    epochs = sorted({epoch for found in scores.values() for epoch in found})
    if len(epochs) < 2:
        return [], []
    body = []
    for arm, found in scores.items():
        most = max(map(len, found.values()))  # a mean of fewer seeds would not be comparable
        means = {epoch: sum(values) / most for epoch, values in found.items() if len(values) == most}
        body.append([arm, *(f'{setting["percent"] * means[e]:.1f}' if e in means else '-' for e in epochs)])
    return [f'{name} after', *(f'epoch {epoch}' for epoch in epochs)], body


def curve_seeds(results: dict) -> list[int]:
    """The seeds that all arms of the curves have."""
    seeds: dict[str, set[int]] = {}
    for row in _rows_with_curve(results):
        seeds.setdefault(row['arm'], set()).add(row['seed'])
    return sorted(set.intersection(*seeds.values())) if seeds else []


def _rows_with_curve(results: dict) -> list[dict]:
    """Runs of students that were trained for the experiment's epochs and scored on the way."""
    name, epochs = results['setting']['metrics'][0], results['setting']['epochs']
    last = {id(row): [point['epoch'] for point in row['curve'] if name in point][-1:] for row in results['runs']}
    return [row for row in results['runs'] if row['arm'] != TEACHER and last[id(row)] == [epochs]]


def open_points(results: dict) -> list[str]:
    """What an experiment still lacks: runs, or seeds of some arms.

    Args:
        results: Of `mmkd.testing.results.collect_results`.

    Returns:
        Sentences; none where it is whole.
    """
    missing = '; '.join(results.get('missing', []))
    texts = [f'Not finished: {missing}.'] if missing else []
    if has_mixed_seeds(results):
        texts.append(
            'Not every arm has the same seeds; differences to plain use the seeds that both have, and are not those of '
            'the means in the table. ' + plain_of_the_pairs(results, results['setting']['metrics'])
        )
    return texts


def markdown(results: dict, docs: str = '') -> str:
    """The table for a page of the docs, with everything a reader needs to judge it.

    Args:
        results: Of `mmkd.testing.results.collect_results`.
        docs: Way from the page to the folder of `diagnosis.md`, such as `../`.

    Returns:
        Text in Markdown.
    """
    lines = markdown_table(*table_rows(results))
    heads, body = diagnosis_rows(results)
    texts = notes(results)
    if body:
        texts.append(f'What each distillation did ([columns]({docs}diagnosis.md#what-is-measured)):')
        texts.append('\n'.join(markdown_table(heads, body)))
    heads, body = curve_rows(results)
    if body:
        seeds = ', '.join(map(str, curve_seeds(results)))
        texts.append(f'Over the epochs, mean over the seeds{f" {seeds}, which all arms have" if seeds else ""}:')
        texts.append('\n'.join(markdown_table(heads, body)))
    texts += open_points(results)
    if results['unfair']:
        texts.append('**Not comparable:** ' + '; '.join(results['unfair']) + '.')
    texts += [f'Command: `{command}`' for command in commands(results)]
    return '\n'.join(lines) + '\n\n' + '\n\n'.join(texts) + '\n'


def short_markdown(results: dict) -> str:
    """The table for a front page: the main score, what it is, and what is not comparable."""
    setting = results['setting']
    text = f'{caption(results)}; "- plain" is paired by seed. {setting["hardware"]}; {setting["date"]}.'
    if has_mixed_seeds(results):
        text += f' Differences use the seeds that both arms have. {plain_of_the_pairs(results, _main_scores(results))}'
    text += f' {final_note(results)}'.rstrip()
    if results['unfair']:
        text += ' **Not comparable:** ' + '; '.join(results['unfair']) + '.'
    return '\n'.join(markdown_table(*short_rows(results))) + f'\n\n{text}\n'


def markdown_table(heads: list[str], body: list[list[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ['| ' + ' | '.join(heads) + ' |', '|' + '---|' * len(heads)]
    return lines + ['| ' + ' | '.join(cells) + ' |' for cells in body]


def estimate(value: dict | None, percent: float, sign: bool = False) -> str:
    """A mean with its interval as text.

    Args:
        value: `mean`, `low`, `high`; None for a dash.
        percent: Factor that makes it a percentage.
        sign: Show a plus.

    Returns:
        Such as `+1.2 ± 0.4`.
    """
    if value is None:
        return '-'
    text = f'{percent * value["mean"]:{"+" if sign else ""}.1f}'
    if value['low'] is None:
        return text
    return f'{text} ± {percent * (value["high"] - value["low"]) / 2:.1f}'

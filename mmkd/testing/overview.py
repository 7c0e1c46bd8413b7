"""One table over several experiments: what each arm gained over plain training, experiment by experiment.

python -m mmkd.testing.overview docs/results/A.json docs/results/B.json --arms ssim frskd=frskd-head,frskd
    --page docs/results.md
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmkd.near_names import nearest
from mmkd.testing.methods import PLAIN, TEACHER
from mmkd.testing.report import load_results, write_section
from mmkd.testing.tables import estimate, markdown_table


def overview_rows(
    experiments: Mapping[str, dict], arms: Mapping[str, Sequence[str]] | None = None
) -> tuple[list[str], list[list[str]]]:
    """The table as text.

    Args:
        experiments: Results of `mmkd.testing.results.collect_results` by name.
        arms: Name of a row -> names that the arm has; an experiment's first that fits is taken. All arms of all
            experiments, in their order, when None.

    Returns:
        Headings; the line of plain training's own scores, then a line an arm with its gain. An interval that lies
        wholly above or below 0 makes a gain bold; "(of 2)" behind it: fewer seeds than others. Final splits have a
        column of their own.

    Raises:
        ValueError: For an arm that no experiment has; the nearest is suggested.
    """
    known = dict.fromkeys(arm for results in experiments.values() for arm in results['arms'])
    if arms is None:
        arms = {arm: [arm] for arm in known if arm not in (TEACHER, PLAIN)}
    for name in (name for names in arms.values() for name in names):
        if name not in known:
            raise ValueError(f'no experiment has an arm {name!r}; {nearest(name, list(known))}.')
    columns = [(name, score) for name, results in experiments.items() for score in _scores(results)]
    heads = ['', *(f'{name}, {score}' for name, score in columns)]
    body = [[PLAIN, *(_cell(experiments[name], [PLAIN], score, '') for name, score in columns)]]
    for row, names in arms.items():
        body.append([row, *(_cell(experiments[name], names, score, f' - {PLAIN}') for name, score in columns)])
    seeds = [f'{len(experiments[name]["setting"]["seeds"])}' for name, _ in columns]
    return heads, [['seeds', *seeds], *body]


def _scores(results: dict) -> list[str]:
    """The main score; with it that of the final split and that of small objects, where they were taken."""
    setting = results['setting']
    main = setting['metrics'][0]
    final = [f'{main} {setting["final"]["split"]}'] if setting.get('final') else []
    return [main, *final, *(name for name in setting['metrics'] if name == f'{main}_small')]


def _cell(results: dict, names: Sequence[str], score: str, suffix: str) -> str:
    for name in names:
        value = results['arms'].get(name, {}).get(score + suffix)
        if value is not None:
            text = estimate(value, results['setting']['percent'], sign=bool(suffix))
            if value.get('count') not in (None, 1, len(results['setting']['seeds'])):  # a single one has no interval
                text += f' (of {value["count"]})'
            decided = suffix and value['low'] is not None and value['low'] * value['high'] > 0
            return f'**{text}**' if decided else text
    return '-'


def _rows_of(texts: Sequence[str] | None) -> dict[str, list[str]] | None:
    if texts is None:
        return None
    pairs = (text.partition('=') for text in texts)
    return {row: names.split(',') if names else [row] for row, _, names in pairs}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line.

    Args:
        argv: Arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', nargs='+', help='[TITLE=]FILE of results; a column (title: the name of the file)')
    parser.add_argument(
        '--arms', nargs='+', metavar='ARM', help='rows (default: every arm); ROW=ARM,ARM: the first that is there'
    )
    parser.add_argument('--page', type=Path, help='Markdown page to write the table into')
    parser.add_argument('--name', default='overview', help='of the section (overview)')
    options = parser.parse_args(argv)
    found = {}
    try:
        for source in options.source:
            title, _, file = source.rpartition('=')
            title = title or Path(file).stem
            if title in found:
                raise ValueError(f'two columns would be called {title!r}; write TITLE=FILE')
            found[title] = load_results(Path(file))
        table = '\n'.join(markdown_table(*overview_rows(found, _rows_of(options.arms))))
    except (OSError, ValueError) as error:
        sys.exit(f'overview: {error}')
    print(table)
    if options.page:
        write_section(options.page, options.name, table)


if __name__ == '__main__':
    main()

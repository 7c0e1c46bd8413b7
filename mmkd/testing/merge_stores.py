"""One store out of several, where the runs of an experiment were made on several machines at a time.

    python -m mmkd.testing.merge_stores machine_a.json machine_b.json --out docs/results/bccd.json

All must be stores of one experiment (`tools/compare_methods.py --store`); means, differences and warnings are found
again from all runs. Nothing is trained or measured.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmkd.testing.experiment import differences
from mmkd.testing.methods import TEACHER
from mmkd.testing.report import load_results
from mmkd.testing.results import merged_results
from mmkd.testing.runs import ExperimentError
from mmkd.testing.store import run_key, write_store
from mmkd.testing.tables import print_table

_MEANING = ('method', 'file', 'options', 'settings_sha256', 'epochs')


def merge(parts: dict[str, dict]) -> dict:
    """The results of all parts.

    Args:
        parts: Name -> content of a store.

    Returns:
        Content of a store.

    Raises:
        ExperimentError: Where they are of different experiments, an arm's name means two things, or a run was made
            twice and ended differently.
    """
    (first, start), *others = parts.items()
    for name, part in others:
        differing = differences(start['identity'], part['identity'], sides=(f'in {first}', f'in {name}'))
        if differing:
            raise ExperimentError(f'{first} and {name} hold different experiments: {", ".join(differing)}')
    _refuse_two_meanings(parts)
    _refuse_two_outcomes(parts)
    return merged_results(list(parts.values()))


def _refuse_two_meanings(parts: dict[str, dict]) -> None:
    seen: dict[str, tuple[str, dict]] = {}
    for name, part in parts.items():
        for row in part['runs']:
            there, other = seen.setdefault(row['arm'], (name, row))
            for key in _MEANING:  # rows of earlier releases have not all of them
                if key in row and key in other and row[key] != other[key]:
                    raise ExperimentError(
                        f'{row["arm"]!r} is not the same arm in {there} and {name}: {key} is {other[key]!r} there and '
                        f'{row[key]!r} here. Its runs cannot be averaged.'
                    )


def _refuse_two_outcomes(parts: dict[str, dict]) -> None:
    seen: dict[tuple, tuple[str, dict]] = {}
    for name, part in parts.items():
        for row in part['runs']:
            there, other = seen.setdefault(run_key(row), (name, row))
            if row['arm'] != TEACHER and _contradict(row, other):
                raise ExperimentError(
                    f'{row["arm"]}, seed {row["seed"]}, was run twice and ended differently: {other["metrics"]} in '
                    f'{there}, {row["metrics"]} in {name}. Leave one of them out: which is kept is not for the tool to '
                    'choose.'
                )


def _contradict(row: dict, other: dict) -> bool:
    """Whether two rows of a run give a score differently; one of them may have those of a further split besides."""
    return any(other['metrics'].get(key, value) != value for key, value in row['metrics'].items())


def read_part(path: Path) -> dict:
    """A store, or the work directory of an experiment.

    Args:
        path: File or folder.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: Where there are no results.
        ValueError: Where the file holds something else, or was written by an mmkd that did not name its experiment.
    """
    content = load_results(path)
    if 'identity' not in content:
        raise ValueError(f'{path} does not say of which experiment it is: an earlier mmkd wrote it')
    return content


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0, or 1 where nothing was written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'stores', type=Path, nargs='+', metavar='STORE.json', help='two or more, the first has priority'
    )
    parser.add_argument('--out', type=Path, required=True, help='file to write: a new one, or one of the stores')
    options = parser.parse_args(argv)
    files = list(dict.fromkeys(path.resolve() for path in options.stores))
    if len(files) < 2:
        parser.error('two different stores or more are merged')
    try:
        if options.out.exists() and options.out.resolve() not in files:
            raise ExperimentError(f'--out {options.out} exists and is none of the stores; nothing was changed')
        results = merge({str(path): read_part(path) for path in options.stores})
        write_store(options.out, results)
    except (OSError, ValueError, ExperimentError) as error:
        print(f'merge_stores: {error}', file=sys.stderr)
        return 1
    print_table(results)
    return 0


if __name__ == '__main__':
    sys.exit(main())

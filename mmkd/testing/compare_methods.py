"""All methods on one pair, with the same budget, several seeds and one report.

    python tools/compare_methods.py --data data/bccd --scale 320 240 --seeds 0 1 2 --store docs/results/bccd.json
    python tools/compare_methods.py --data data/kitti --format kitti --scale 1242 375 --methods plain ssim mssd
    python tools/compare_methods.py --data data/bccd --families retinanet yolox faster-rcnn --seeds 0 1 2

The teacher is trained once, then every arm once a seed: within a seed all begin with the same student and see the same
batches, which is checked. plain is also trained for as long as distillation takes (plain-time). Calling it again goes
on where it stopped, also inside a run. A run that fails does not end the others; the exit code is then 1.

What comes out: results.json, pictures, report.html (opens without a network), and with --store a small file to commit,
from which another machine goes on. Read docs/comparing.md before believing a difference.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from mmkd.testing.checks import check_experiment
from mmkd.testing.comparison import Place, build_experiment, checked_data, command_line, compare, load_data
from mmkd.testing.detection_data import DetectionData, detection_data
from mmkd.testing.experiment import Experiment
from mmkd.testing.final_score import FinalSplit
from mmkd.testing.html_report import html_page
from mmkd.testing.methods import PLAIN, PLAIN_TIME, is_plain
from mmkd.testing.options import add_options, check_options
from mmkd.testing.quickstart import run_command
from mmkd.testing.runs import ExperimentError, write_text
from mmkd.testing.tables import print_table
from mmkd.testing.toy_detectors import PAIRS

METHODS = [PLAIN, 'ssim', 'mssd', 'ikd', 'mkd', 'frskd', 'cwd', 'pkd', 'mgd']


@dataclass(frozen=True)
class Comparison:
    """One experiment of a call.

    Args:
        title: Empty, or the family's name.
        experiment: What is compared.
        place: Its files.
    """

    title: str
    experiment: Experiment
    place: Place


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(
        prog='compare_methods', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, methods=METHODS, seeds=[0, 1, 2], epochs=24, teacher='small')
    more = parser.add_argument_group('comparison')
    more.add_argument(
        '--families',
        nargs='+',
        choices=sorted(PAIRS),
        help='instead of --student and --teacher: a small pair of each family, the teacher 4 to 10 times as large; '
        'each is an experiment in a folder (and a store) of its own, all are on one page',
    )
    more.add_argument('--no-plain-time', action='store_true', help=f'leave out the arm {PLAIN_TIME}')
    more.add_argument(
        '--store',
        type=Path,
        metavar='FILE.json',
        help='small file of results: what is in it is done, what is finished is added (--families: FILE_FAMILY.json)',
    )
    more.add_argument(
        '--final-split',
        metavar='NAME',
        help='of --data, such as test: when all runs are finished, each is scored on it too, once',
    )
    more.add_argument(
        '--diagnose',
        action='store_true',
        help='measure gradients and similarities of every distillation in its first run (docs/diagnosis.md)',
    )
    more.add_argument('--report-only', action='store_true', help='train nothing; report on what is finished')
    options = check_options(parser, parser.parse_args(argv))
    if options.families and (options.student, options.teacher) != (
        parser.get_default('student'),
        parser.get_default('teacher'),
    ):
        parser.error('--families brings its own pairs: leave out --student and --teacher')
    if options.families and len(set(options.families)) < len(options.families):
        parser.error('--families must not name anything twice')
    if options.store and options.store.suffix != '.json':
        parser.error(f'--store is a .json file, got {options.store}')
    if options.final_split and (options.data is None or options.hold_back):
        parser.error('--final-split is a split of --data, and not for choosing (--hold-back)')
    names = [text.partition('=')[0] for text in options.methods]
    if not options.no_plain_time and PLAIN in names and PLAIN_TIME not in names and not all(map(is_plain, names)):
        options.methods = [*options.methods, PLAIN_TIME]
    return options


def comparisons(options: argparse.Namespace, data: DetectionData | None = None) -> list[Comparison]:
    """The experiments that the options ask for.

    Args:
        options: Of the command line.
        data: Data set; made or read where it is None.

    Returns:
        One, or one a family; nothing is trained yet.

    Raises:
        ValueError: For an unknown method or a config without a model.
        OSError: Where data is missing.
    """
    command = command_line('python tools/compare_methods.py')
    work_dir, data = options.work_dir.resolve(), data or load_data(options)
    final = _final_split(options) if options.final_split else None
    if not options.families:
        experiment = replace(build_experiment(options, data), diagnose=options.diagnose)
        return [Comparison('', experiment, Place(work_dir, options.store, command, final))]
    found = []
    for family in options.families:
        student, teacher = PAIRS[family]
        own = argparse.Namespace(**{**vars(options), 'student': student, 'teacher': teacher})
        store = options.store and options.store.with_stem(f'{options.store.stem}_{family}')
        experiment = replace(build_experiment(own, data), diagnose=options.diagnose)
        found.append(Comparison(family, experiment, Place(work_dir / family, store, command, final)))
    return found


def _final_split(options: argparse.Namespace) -> FinalSplit:
    splits = options.splits[0], options.final_split
    if options.final_split == options.splits[1]:
        raise ValueError(f'--final-split {options.final_split} is scored on anyway; name a split that was not seen')
    return FinalSplit(
        options.final_split, detection_data(options.data, options.format, splits, by_size=options.by_size)
    )


def compare_methods(options: argparse.Namespace, console: Console) -> list[dict]:
    """Run everything.

    Args:
        options: Of the command line.
        console: Where to write.

    Returns:
        The results of each experiment.

    Raises:
        ExperimentError: Behind all that could be done, where something failed.
    """

    def check(data: DetectionData) -> None:
        for one in comparisons(options, data):  # every mistake before any training
            place, train = one.place, not options.report_only
            check_experiment(one.experiment, place.work_dir, place.store, place.final, train=train)

    asked = comparisons(options, checked_data(options, check))
    results, failures, page = [], [], options.work_dir.resolve() / 'report.html'
    for one in asked:
        if one.title:
            console.rule(one.title)
        try:
            found = compare(one.experiment, one.place, console, jobs=options.jobs, train=not options.report_only)
        except ExperimentError as error:
            failures.append(f'{one.title}: {error}' if one.title else str(error))
            found = error.results
        except (OSError, ValueError) as error:
            if not one.title:
                raise
            failures.append(f'{one.title}: {error}')  # the other families can still be done
            found = None
        if found:
            results.append(found)
            write_text(page, html_page(results))
            print_table(found, console)
    if results:
        console.print(f'{page} shows it all; results.json, pictures, configs, checkpoints beside it')
    if failures:
        raise ExperimentError('\n'.join(failures))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0 where everything was done, 1 where something failed, 130 for an interruption.
    """
    options = parse_options(argv)
    return run_command('compare_methods', lambda console: compare_methods(options, console))

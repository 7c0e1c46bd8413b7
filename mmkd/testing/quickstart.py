"""Teacher, plain student and distilled student, from nothing to a table and pictures, in one command.

    python -m mmkd.testing.quickstart                                     # toy data, some six minutes on two idle cores
    python -m mmkd.testing.quickstart --data PATH --format coco --scale 320 240 --seeds 0 1 2 --methods plain ssim

Calling it again with the same folder goes on where it stopped: finished runs are kept. The short form of
tools/compare_methods.py, which compares all methods and writes a page.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from mmengine.logging import MMLogger
from rich.console import Console

from mmkd.testing.checks import check_experiment
from mmkd.testing.comparison import Place, build_experiment, checked_data, command_line, compare
from mmkd.testing.detection_data import DetectionData
from mmkd.testing.methods import PLAIN
from mmkd.testing.options import add_options, check_options
from mmkd.testing.runs import ExperimentError
from mmkd.testing.tables import print_table


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(
        prog='quickstart', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, methods=[PLAIN, 'ssim'], seeds=[0], epochs=12, teacher='large')
    return check_options(parser, parser.parse_args(argv))


def quickstart(options: argparse.Namespace, console: Console) -> dict:
    """Run everything.

    Args:
        options: Of the command line.
        console: Where to write.

    Returns:
        The results, as in `results.json`.
    """
    console.print(f'data: {options.data or "toy shapes on varied backgrounds"}')
    place = Place(options.work_dir.resolve(), command=command_line('python -m mmkd.testing.quickstart'))

    def check(data: DetectionData) -> None:
        check_experiment(build_experiment(options, data), place.work_dir, train=True)

    experiment = build_experiment(options, checked_data(options, check))
    results = compare(experiment, place, console, jobs=options.jobs)
    print_table(results, console)
    console.print(f'Pictures, results.json, configs, checkpoints: {place.work_dir}')
    return results


def run_command(name: str, work: Callable[[Console], object]) -> int:
    """Do the work of a command, with mistakes as a message of a few lines.

    Args:
        name: Of the command.
        work: Is given the console.

    Returns:
        Exit code: 0 where everything was done, 1 for a mistake or a failed run, 130 for an interruption.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ending this process ends its runs
    MMLogger.get_instance(name, log_level='ERROR')  # the steps speak for themselves
    console = Console() if sys.stdout.isatty() else Console(width=160)
    try:
        work(console)
    except (ExperimentError, OSError, ValueError) as error:
        console.print(f'{name}: {error}', style='bold red', markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print('Stopped. The same command goes on from here; runs under way from their last whole epoch.')
        return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    options = parse_options(argv)
    return run_command('quickstart', lambda console: quickstart(options, console))


if __name__ == '__main__':
    sys.exit(main())

"""What mmkd's commands share: arguments of a run, places that can be written, and an end without a traceback.

An error class that tells of a mistake, but is none of the built-in `MISTAKES`, says `user_mistake = True`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mmengine.config import DictAction

from mmkd.process_ranks import global_rank, local_rank

PLACES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
MISTAKES = (ValueError, TypeError, KeyError, ImportError, SyntaxError, *PLACES)
# Seconds for which the other processes of a machine leave the word to the first. It finds the same mistake, says it and
# ends, whereupon the launcher ends the others; only what they alone have met do they say themselves.
PATIENCE = 10.0


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `tools/train.py` and `tools/test.py` have in common with MMDetection's."""
    parser.add_argument('--work-dir', help='folder for checkpoints, logs and metrics (default: work_dirs/<config>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the configuration: key=value, nested a.b=value, lists key="[a,b]" or key=a,b',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by launchers')


def check_output(option: str, path: Path, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written, before any work; nothing is made.

    Args:
        option: of the command line, for the message.
        path: file that is to be written; it may exist, and its folder may not.
        folder: `path` is a folder of files to write.

    Raises:
        PermissionError: the file, or the nearest folder above it that exists, cannot be written to.
        ValueError: a folder in the place of the file, or a file in the place of a folder.
    """
    # functions of `os`: those of `Path` raise inside of a folder that may not be entered
    if not folder and os.path.isdir(path):
        raise ValueError(f'{option} {path} is a folder; name a file.')
    above = [path, *path.absolute().parents] if folder else path.absolute().parents
    nearest = next(place for place in above if os.path.exists(place))
    if not os.path.isdir(nearest):
        raise ValueError(f'{option} {path}: {nearest} is a file, not a folder.')
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f'{option} {path}: there is no permission to write in {nearest}.')
    if os.path.isfile(path) and not os.access(path, os.W_OK):
        raise PermissionError(f'{option} {path}: there is no permission to write over it.')


def set_local_rank(argument: int, launcher: str) -> None:
    """Set LOCAL_RANK, which MMEngine reads: from the argument of torch's old launcher, or from MPI's variable.

    MMEngine sets it under Slurm, but not under MPI, where every process would be given the first GPU or none.
    """
    if launcher == 'pytorch':
        os.environ.setdefault('LOCAL_RANK', str(argument))
    elif launcher == 'mpi':
        os.environ.setdefault('LOCAL_RANK', str(local_rank()))


def leave_the_word_to_the_first() -> None:
    """Wait in every process of a machine but the first, so that a mistake that all have met is said once."""
    if local_rank() > 0:
        time.sleep(PATIENCE)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command; on a mistake print it and leave with exit code 1, on Ctrl-C with 130.

    The environment variable `MMKD_TRACEBACK=1` shows the whole traceback instead. A number that `main` returns is the
    exit code.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        if global_rank() == 0:
            print('\nInterrupted. Checkpoints that are there are whole; --resume continues.', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = isinstance(error, MISTAKES) or getattr(error, 'user_mistake', False)
        wanted = getattr(error, 'show_traceback', False) or os.environ.get('MMKD_TRACEBACK') == '1'
        if not mistake or wanted:
            raise
        from mmkd.engine.explain import explain  # asks MMEngine, which an early mistake may have kept from loading

        leave_the_word_to_the_first()
        print(f'\nERROR ({type(error).__name__}): {explain(error)}', file=sys.stderr)
        print('MMKD_TRACEBACK=1 shows where it came from.', file=sys.stderr)
        sys.stderr.flush()
        sys.exit(1)
    if code:
        sys.exit(code)

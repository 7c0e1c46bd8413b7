"""What mmkd's commands share: arguments of a run, and an end that is a few lines and an exit code, not a traceback.

An error class that tells of a mistake, but is none of the built-in `MISTAKES`, says `user_mistake = True`.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

from mmengine.config import DictAction

from mmkd.process_ranks import global_rank, local_rank

MISTAKES = (ValueError, TypeError, KeyError, FileNotFoundError, FileExistsError, ImportError, SyntaxError)
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

"""How mmkd's commands end: a mistake of the user is a few lines and an exit code, not a traceback.

An error class that tells of a mistake, but is none of the built-in `MISTAKES`, says `user_mistake = True`.
"""

import os
import sys
from collections.abc import Callable

MISTAKES = (ValueError, TypeError, KeyError, FileNotFoundError, FileExistsError, ImportError, SyntaxError)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command; on a mistake print it and leave with exit code 1.

    The environment variable `MMKD_TRACEBACK=1` shows the whole traceback instead. A number that `main` returns is the
    exit code.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        mistake = isinstance(error, MISTAKES) or getattr(error, 'user_mistake', False)
        if not mistake or os.environ.get('MMKD_TRACEBACK') == '1':
            raise
        from mmkd.engine.explain import explain  # asks MMEngine, which an early mistake may have kept from loading

        print(f'\nERROR ({type(error).__name__}): {explain(error)}', file=sys.stderr)
        print('MMKD_TRACEBACK=1 shows where it came from.', file=sys.stderr)
        sys.stderr.flush()
        sys.exit(1)
    if code:
        sys.exit(code)

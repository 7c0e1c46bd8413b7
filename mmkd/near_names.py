"""What is nearest to a name that is not there: endings of error messages."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(name: str, options: Iterable[str]) -> str:
    """Ending of an error message: the options that look most like `name`, or all of a few."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=5, cutoff=0.5)
    tail = name.rsplit('.', 1)[-1]
    close += [option for option in options if tail and option.endswith(tail) and option not in close][: 5 - len(close)]
    if close:
        return f'nearest: {", ".join(close)}'
    return f'there are: {", ".join(options[:8]) or "none"}'


def absent(folder: str | Path) -> str:
    """Ending of an error message: the first part of a path that is not there, and the folders most like it.

    Args:
        folder: path of a folder that does not exist.

    Returns:
        `/data/bcd does not exist; nearest: bccd`, or with `is no folder` where a file has that name; for `~/data` that
        is there, what to write instead.
    """
    whole, note = _expanded(Path(folder))
    if note and whole.is_dir():
        return f'{note}; write {whole}'
    folder = whole.absolute()
    missing = next((parent for parent in reversed(folder.parents) if not parent.is_dir()), folder)
    fault = 'is no folder' if missing.exists() else 'does not exist'
    try:
        beside = [path.name for path in missing.parent.iterdir() if path.is_dir()]
    except OSError:
        beside = []
    return f'{missing} {fault}; {nearest(missing.name, beside)}{note and f" ({note})"}'


def absent_file(path: str | Path) -> str:
    """Ending of an error message: a path where no file is, and the files of its kind beside it.

    Args:
        path: where no file is.

    Returns:
        `data/tain.txt does not exist; nearest: train.txt`, that it is a folder, or which folder above it is not there.
    """
    path = Path(path)
    whole, note = _expanded(path)
    if note and whole.is_file():
        return f'{path} does not exist: {note}; write {whole}'
    if path.is_dir():
        return f'{path} is a folder; a file is wanted'
    if not note and not path.parent.is_dir():
        return f'{path} does not exist: {absent(path.parent)}'
    try:
        beside = [other.name for other in path.parent.iterdir() if path.suffix in ('', other.suffix)]
    except OSError:
        beside = []
    return f'{path} does not exist; {nearest(path.name, beside)}{note and f" ({note})"}'


def _expanded(path: Path) -> tuple[Path, str]:
    """A path as a shell takes it, and what to say where MMEngine, which takes it by its letters, does not."""
    try:
        whole = path.expanduser()
    except RuntimeError:  # no such user
        return path, ''
    return whole, '' if whole == path else '~ is not expanded in configs'

"""Where real data for tests and experiments lies; nothing of it is part of this repository."""

import os
from pathlib import Path

_PROJECT_ROOT = Path(__file__).resolve().parents[2]


def data_root() -> Path:
    """Folder of shared real data: the environment variable `MMKD_DATA`, else `../shared/data` beside the project."""
    chosen = os.environ.get('MMKD_DATA')
    return Path(chosen).expanduser() if chosen else _PROJECT_ROOT.parent / 'shared' / 'data'


def shared_data(name: str) -> Path:
    """Path of one shared data set.

    Args:
        name: Folder or file below the data root, such as `bccd`, `kitti_tiny` or `bccd/annotations/val.json`.

    Returns:
        The existing path. It is to be read only.

    Raises:
        FileNotFoundError: Where it is not there; the message says how to name another place.
    """
    path = data_root() / name
    if not path.exists():
        raise FileNotFoundError(f'no {name!r} in {data_root()}; set MMKD_DATA to the folder that holds it')
    return path

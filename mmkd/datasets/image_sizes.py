"""Sizes of the images in a folder, from their file headers, read once.

The sizes are kept in a cache of the user, never beside the data, which may be read-only: in `$MMKD_CACHE`, else in
`$XDG_CACHE_HOME/mmkd`, else in `~/.cache/mmkd`. An entry holds only as long as the file's length and time of change.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_THREADS = 16


def default_cache_dir() -> Path:
    """Folder of the user's cache, which need not exist."""
    chosen = os.environ.get('MMKD_CACHE')
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get('XDG_CACHE_HOME')
    try:
        return (Path(base) if base else Path.home() / '.cache') / 'mmkd'
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f'mmkd-{os.getuid()}'


def image_sizes(
    folder: str | Path, names: Sequence[str], *, cache_dir: str | Path | None = None
) -> list[tuple[int, int]]:
    """(width, height) in px of the named images of one folder, in their order.

    Args:
        folder: Folder of the images.
        names: File names in it.
        cache_dir: Folder of the cache; None = the user's. A cache that cannot be read or written is no error.

    Raises:
        OSError: If a file is missing or is no image; the message names it.
    """
    folder = Path(folder).absolute()
    cache = _cache_path(folder, Path(cache_dir) if cache_dir else default_cache_dir())
    known = _load(cache)
    stamps = _stamps(folder, names)
    stale = [name for name in names if known.get(name, [])[:2] != stamps[name]]
    if stale:
        with ThreadPoolExecutor(_THREADS) as pool:
            sizes = pool.map(_header_size, [folder / name for name in stale])
            known.update({name: [*stamps[name], *size] for name, size in zip(stale, sizes, strict=True)})
        _store(cache, known)
    return [(known[name][2], known[name][3]) for name in names]


def _stamps(folder: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """Length and time of change of each named file."""
    wanted = set(names)
    stamps = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in wanted:
                state = entry.stat()
                stamps[entry.name] = [state.st_size, state.st_mtime_ns]
    missing = wanted.difference(stamps)
    if missing:
        raise FileNotFoundError(f'{folder} has no image {min(missing)} ({len(missing)} missing)')
    return stamps


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise OSError(f'{path} is not an image that can be read') from error


def _cache_path(folder: Path, cache_dir: Path) -> Path:
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return cache_dir / f'image_sizes_{digest}.json'


def _load(cache: Path) -> dict[str, list[int]]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes = json.loads(cache.read_text(encoding='utf-8'))
        return {name: entry for name, entry in sizes.items() if isinstance(entry, list) and len(entry) == 4}
    return {}


def _store(cache: Path, sizes: dict[str, list[int]]) -> None:
    """Writes through a file of one's own and a rename: processes that index at the same time do not meet."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f'.{os.getpid()}.part')
        part.write_text(json.dumps(sizes), encoding='utf-8')
        part.replace(cache)

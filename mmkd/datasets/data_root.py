"""Another place for a config's data: makes `--cfg-options data_root=...` reach the data sets."""

from collections.abc import MutableMapping


def move_data_root(cfg: MutableMapping, new: str) -> int:
    """Puts `new` wherever a config says its top-level `data_root`, in place.

    MMEngine copies `data_root` into the data sets while it reads the file, so that a later change of the top-level name
    alone has no effect. Paths that begin with the old root (such as a metric's `ann_file`) move with it.

    Args:
        cfg: Config with a top-level `data_root`.
        new: Folder of the data.

    Returns:
        The number of values that were changed, the top-level one not counted.

    Raises:
        ValueError: If the config has no top-level `data_root`.
    """
    old = cfg.get('data_root')
    if not old:
        raise ValueError('the config has no top-level data_root: set the data_root of its data sets')
    changed = _move(cfg, old.rstrip('/'), str(new).rstrip('/'))
    cfg['data_root'] = new
    return changed - 1


def _move(node: MutableMapping | list, old: str, new: str) -> int:
    """Moves every string below a node; returns how many."""
    changed = 0
    for key in range(len(node)) if isinstance(node, list) else list(node):
        value = node[key]
        if isinstance(value, str) and (value == old or value.startswith(old + '/')):
            node[key] = new + value[len(old) :]
            changed += 1
        elif isinstance(value, MutableMapping | list):
            changed += _move(value, old, new)
    return changed

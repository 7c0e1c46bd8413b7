"""Another place for a config's data: makes `--cfg-options data_root=...` reach the data sets."""

from collections.abc import Collection, Iterator, Mapping, MutableMapping

from mmengine.logging import print_log

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


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
        keys = ', '.join(_keys(_data_sets(cfg)))
        own = f' ({keys})' if keys else ''
        raise ValueError(f'the config has no top-level data_root: set the data_root of its data sets{own}')
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


def check_reached(cfg: Mapping, new: str, *, chosen: Collection[str] = ()) -> None:
    """See that `move_data_root` has reached the data sets, which may say another root than the top-level one.

    Args:
        cfg: Config after the move.
        new: Folder of the data.
        chosen: Keys that were set beside it, which may leave a data set elsewhere on purpose.

    Raises:
        ValueError: If no data set of the training is in the folder (without training: none at all); it names their own
            roots and what to set. Single ones that are elsewhere are a warning.
    """
    sets = _data_sets(cfg)
    training = [name for name in sets if name.startswith('train_dataloader')] or list(sets)
    missed = {name: one for name, one in sets.items() if f'{name}.data_root' not in chosen and not _is_in(one, new)}
    roots = [f'{key} is {sets[name].get("data_root")!r}' for name, key in zip(missed, _keys(missed), strict=True)]
    if training and all(name in missed for name in training):
        raise ValueError(
            f'--cfg-options data_root={new} reaches no data set of the training: it replaces the top-level data_root, '
            f'and these sets say their own: {"; ".join(roots)}. Set these keys, and the ann_file of the evaluators, or '
            'let the top-level data_root in the configuration be the one that the data sets begin with.'
        )
    if missed:
        print_log(
            f'--cfg-options data_root={new} leaves data sets where they were: {"; ".join(roots)}.',
            logger='current',
            level=30,
        )


def _data_sets(cfg: Mapping) -> dict[str, Mapping]:
    """Data sets that read files, inside of their wrappers, by their place in the config."""
    loaders = [(f'{name}.dataset', (cfg.get(name) or {}).get('dataset')) for name in LOADERS]
    found = [pair for name, dataset in loaders if dataset for pair in _inside(dataset, name)]
    return {name: one for name, one in found if one.get('data_root') or one.get('ann_file')}


def _inside(dataset: Mapping, name: str) -> Iterator[tuple[str, Mapping]]:
    if 'dataset' in dataset:
        yield from _inside(dataset['dataset'], f'{name}.dataset')
    elif 'datasets' in dataset:
        for number, one in enumerate(dataset['datasets']):
            yield from _inside(one, f'{name}.datasets.{number}')
    else:
        yield name, dataset


def _is_in(node: Mapping | list, folder: str) -> bool:
    """Whether any path below a node is in a folder."""
    start = folder.rstrip('/')
    for value in node.values() if isinstance(node, Mapping) else node:
        if isinstance(value, str) and (value.rstrip('/') == start or value.startswith(start + '/')):
            return True
        if isinstance(value, Mapping | list | tuple) and _is_in(value, folder):
            return True
    return False


def _keys(names: Collection[str]) -> list[str]:
    return [f'{name}.data_root' for name in names]

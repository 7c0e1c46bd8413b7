"""Numbers in a configuration that no machine can serve, or that mean nothing: a slip of the hand, or an attack.

Such a run would take all memory, or all time, before any message.
"""

import math
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

# Largest value by name of the setting, in `model` and in the data loaders.
LIMITS = {
    'num_classes': 100_000,
    'channels': 65_536,
    'embed_dims': 65_536,
    'stacked_convs': 1_000,
    'num_outs': 64,
    'num_stages': 64,
    'num_layers': 10_000,
    'num_queries': 1_000_000,
    'batch_size': 65_536,
    'num_workers': 1_024,
    'prefetch_factor': 1_024,
    'times': 1_000_000,
    'scale': 65_536,
    'scales': 65_536,
    'img_scale': 65_536,
    'crop_size': 65_536,
    'size': 65_536,
    'kernel_size': 4_096,
    'pad_size_divisor': 65_536,
}
# Whatever its name: more than anything that is counted in a network or a data set.
LARGEST = 2**40
# Smallest and largest value of settings that are whole numbers.
WHOLE = {
    'train_cfg.max_epochs': (1, 1_000_000),
    'train_cfg.max_iters': (1, 10**10),
    'train_cfg.val_interval': (1, 10**10),
    'train_dataloader.batch_size': (1, 65_536),
    'train_dataloader.num_workers': (0, 1_024),
    'val_dataloader.batch_size': (1, 65_536),
    'val_dataloader.num_workers': (0, 1_024),
    'optim_wrapper.accumulative_counts': (1, 1_000_000),
    'default_hooks.checkpoint.max_keep_ckpts': (-1, 1_000_000),
}


def _numbers(node: Any, path: str) -> Iterator[tuple[str, str, float]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        here = f'{path}.{key}' if isinstance(node, dict) else f'{path}[{key}]'
        if isinstance(value, dict | list | tuple):
            yield from _numbers(value, here)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            name = here.rpartition('.')[2].split('[')[0]
            yield here, name, value


def _limit(name: str, value: float) -> float:
    if name in LIMITS:
        return LIMITS[name]
    if name.endswith('channels'):
        return LIMITS['channels']
    return LARGEST if isinstance(value, int) else math.inf


def _whole_numbers(cfg: Config) -> Iterator[str]:
    for path, (low, high) in WHOLE.items():
        value: Any = cfg
        for key in path.split('.'):
            value = value.get(key) if isinstance(value, dict | Config) else None
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
            yield f'{path} must be a whole number, got {value!r}.'
        elif not low <= value <= high:
            yield f'{path} must be between {low} and {high}, got {value}.'


def _rates(cfg: Config) -> Iterator[str]:
    for name in ('lr', 'weight_decay', 'momentum'):
        value = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get(name)
        if isinstance(value, int | float) and not math.isfinite(value):
            yield f'optim_wrapper.optimizer.{name} is {value}: the first step would destroy the weights.'


def check_sizes(cfg: Config) -> Iterator[str]:
    """Numbers that no machine could serve, and counts that are none."""
    whole = list(_whole_numbers(cfg))
    yield from whole
    for part in ('model', 'train_dataloader', 'val_dataloader'):
        for path, name, value in _numbers(cfg.get(part) or {}, part):
            limit = _limit(name, value)
            if value > limit and not any(text.startswith(f'{path} ') for text in whole):
                yield f'{path} is {value}, more than {limit}: no machine can run that.'
    yield from _rates(cfg)

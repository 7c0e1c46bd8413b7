"""Whether the data pipeline keeps up with training: `python -m mmkd.testing.benchmark_data CONFIG`.

CONFIG is any configuration of a training, such as `work_dirs/quickstart/plain/seed0/config.py`, which the quick start
writes. Loading and training take turns, batch by batch, both on one thread of the CPU, also where there is a GPU;
processor seconds of this process an image are reported, so that other work on the machine matters little. For training
on a GPU, divide loading by its own seconds an image. Loading by worker processes runs beside training: the loader
starves it only where the ratio of loading to training is above the number of workers (without workers the two add up).
"""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmkd.engine.launch import load_config
from mmkd.models.algorithms.model_config import plain_model
from mmkd.testing.report import write_section
from mmkd.testing.runs import write_json
from mmkd.testing.worker import hardware_class


def batches(cfg: Config) -> Iterator[Any]:
    """Batches of the training set without end, loaded in this process."""
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)
    built = Runner.build_dataloader(loader, seed=0)
    while True:
        yield from built


def measure(cfg: Config, count: int) -> dict[str, float]:
    """Seconds an image to load, and to train the plain student, both on the CPU.

    Args:
        cfg: of a training; of a distillation the student is trained alone, which is the hardest case for the loader.
        count: batches that count, behind one that does not.

    Returns:
        `load_seconds`, `train_seconds` (medians, an image) and `share`, loading divided by training.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    torch.manual_seed(0)
    model = MODELS.build(plain_model(cfg.model))
    model.train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    source = batches(cfg)
    loads, steps = [], []
    for number in range(count + 1):
        start = time.process_time()
        batch = next(source)
        loaded = time.process_time()
        model.train_step(batch, optimizer)
        if number:
            images = len(batch['inputs'])
            loads.append((loaded - start) / images)
            steps.append((time.process_time() - loaded) / images)
    load, train = median(loads), median(steps)
    return dict(load_seconds=load, train_seconds=train, share=load / train)


def markdown(found: dict[str, dict]) -> str:
    """Table of the figures for a page of the docs."""
    lines = [
        '| configuration | loading, ms an image | training, ms an image | loading / training |',
        '|' + ' --- |' * 4,
    ]
    for name, one in found.items():
        load, train = 1000 * one['load_seconds'], 1000 * one['train_seconds']
        lines.append(f'| `{Path(name).name}` | {load:.2f} | {train:.2f} | {one["share"]:.3f} |')
    return '\n'.join([*lines, '', f'{_measured()}; {time.strftime("%Y-%m-%d")}.'])


def _measured() -> str:
    return f'Processor time, loading and training on one thread of the CPU; {hardware_class("cpu")}'


def main() -> None:
    """Measure one or more configurations; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='+', help='configuration of a training')
    parser.add_argument('--batches', type=int, default=20, help='batches to measure (20)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--page', type=Path, help='Markdown page whose section `data` is written')
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    found = {}
    print(_measured())
    print(f'{"load, ms an image":>20}{"train, ms an image":>20}{"load / train":>14}  configuration')
    for name in args.config:
        found[name] = one = measure(load_config(name), args.batches)
        load, train = 1000 * one['load_seconds'], 1000 * one['train_seconds']
        print(f'{load:20.2f}{train:20.2f}{one["share"]:14.3f}  {name}', flush=True)
    if args.json:
        write_json(args.json, found)
    if args.page:
        write_section(args.page, 'data', markdown(found))


if __name__ == '__main__':
    main()

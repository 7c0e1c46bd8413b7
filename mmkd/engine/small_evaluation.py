"""A detector's scores on the first validation images, beside a run and without a trace in it."""

import copy
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmkd.engine.random_state import preserved_random_state


def first_images(runner: Runner, num_images: int) -> DataLoader[Any]:
    """Loader of the first `num_images` validation images, in the run's own pipeline."""
    cfg = copy.deepcopy(runner.cfg.val_dataloader)
    cfg.update(num_workers=0, persistent_workers=False)
    cfg.pop('prefetch_factor', None)
    dataset = DATASETS.build(cfg.dataset)
    dataset.full_init()
    if num_images < len(dataset):
        dataset.get_subset_(num_images)
    cfg.dataset = dataset
    return Runner.build_dataloader(cfg, seed=runner.seed)


def evaluate_on(runner: Runner, detector: nn.Module, loader: DataLoader[Any]) -> dict[str, float]:
    """Scores of a detector by the run's own validation metric; every process must take part.

    Args:
        runner: the run.
        detector: any detector; its mode is that of before afterwards.
        loader: of `first_images`.

    Returns:
        Metrics by name.
    """
    evaluator = runner.build_evaluator(copy.deepcopy(runner.cfg.val_evaluator))
    _restrict(evaluator, loader)
    detector = detector.to(get_device())
    training = [module for module in detector.modules() if module.training]
    detector.eval()
    try:
        with preserved_random_state(), torch.no_grad():
            for data in loader:
                evaluator.process(data_samples=detector.val_step(data), data_batch=data)
            metrics = evaluator.evaluate(len(loader.dataset))
    finally:
        for module in training:
            module.training = True
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def _restrict(evaluator: Evaluator, loader: DataLoader[Any]) -> None:
    evaluator.dataset_meta = loader.dataset.metainfo
    ids = [loader.dataset.get_data_info(i).get('img_id') for i in range(len(loader.dataset))]
    for metric in evaluator.metrics:
        if hasattr(metric, 'img_ids'):
            metric.img_ids = ids

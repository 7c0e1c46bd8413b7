"""A detector's scores on the first validation images, beside a run and without a trace in it."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Subset

from mmkd.engine.detector_classes import classes_by_set
from mmkd.engine.full_precision import full_precision
from mmkd.engine.random_state import preserved_random_state
from mmkd.models.algorithms.model_config import ModelSource

_BOXES = 'mmkd/boxes'


class NotScorableError(RuntimeError):
    """An evaluator that takes the whole validation set or nothing."""


@dataclass(frozen=True)
class SmallScores:
    """What some images say about a detector.

    Args:
        metrics: numbers of the run's own metric, by name; below 0 where it knows none.
        boxes: how many it detected; None where its results are no boxes.
        objects: how many are annotated; None where the data set does not say.
    """

    metrics: dict[str, float]
    boxes: int | None
    objects: int | None

    @property
    def known(self) -> dict[str, float]:
        """The metrics that mean something."""
        return {name: value for name, value in self.metrics.items() if value >= 0}


class FirstImages(Subset):
    """The beginning of any data set, wrappers such as `ConcatDataset` included, which refuse `get_subset_`.

    Args:
        dataset: fully initialised.
        count: images; more than there are means all.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        super().__init__(dataset, range(min(count, len(dataset))))

    @property
    def metainfo(self) -> Any:
        """The data set's own; a list where several sets have their own each."""
        return self.dataset.metainfo

    def knows(self, predicted: int | None) -> bool:
        """Whether a detector of so many classes can be scored: each joined data set has as many (or names none)."""
        return predicted is None or all(len(classes) == predicted for _, classes in classes_by_set(self.dataset))

    def numbers_as(self, source: ModelSource) -> bool:
        """Whether a network's configuration numbers the classes as the data sets do, as far as both say."""
        return not any(source.numbers_otherwise(classes) for _, classes in classes_by_set(self.dataset))

    def get_data_info(self, index: int) -> dict:
        """Annotation of an image."""
        return self.dataset.get_data_info(index)


class _BoxCount(BaseMetric):
    """The number of detections, collected as any metric is."""

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            scores = (sample.get('pred_instances') or {}).get('scores')
            self.results.append(None if scores is None else len(scores))

    def compute_metrics(self, results: list[int | None]) -> dict[str, int]:
        return {} if None in results else {'boxes': sum(results)}


def first_images(runner: Runner, num_images: int) -> DataLoader[Any]:
    """Loader of the first `num_images` validation images (a `FirstImages`), in the run's own pipeline.

    Raises:
        NotScorableError: the evaluator tells several data sets apart by their sizes, and would not see all of them.
    """
    cfg = copy.deepcopy(runner.cfg.val_dataloader)
    cfg.update(num_workers=0, persistent_workers=False)
    cfg.pop('prefetch_factor', None)
    dataset = DATASETS.build(cfg.dataset)
    dataset.full_init()
    evaluator = runner.cfg.val_evaluator
    if isinstance(evaluator, Mapping) and 'dataset_prefixes' in evaluator and num_images < len(dataset):
        raise NotScorableError(f'{evaluator["type"]} scores several data sets, each of them whole')
    cfg.dataset = FirstImages(dataset, num_images)
    return Runner.build_dataloader(cfg, seed=runner.seed)


def evaluate_on(runner: Runner, detector: nn.Module, loader: DataLoader[Any]) -> SmallScores:
    """Scores of a detector by the run's own validation metric; every process must take part, an error is raised in all.

    Files of predictions that the metric writes are the run's own: here they go to a folder that is removed.

    Args:
        runner: the run.
        detector: any detector; its mode and its weights are those of before afterwards.
        loader: of `first_images`.
    """
    evaluator = runner.build_evaluator(copy.deepcopy(runner.cfg.val_evaluator))
    infos = [loader.dataset.get_data_info(i) for i in range(len(loader.dataset))]
    _restrict(evaluator, loader.dataset.metainfo, [info.get('img_id') for info in infos])
    evaluator.metrics.append(_BoxCount(prefix='mmkd'))
    detector = detector.to(get_device())
    training = [module for module in detector.modules() if module.training]
    detector.eval()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            preserved_random_state(),
            torch.no_grad(),
            full_precision(detector),
        ):
            _write_into(evaluator, Path(folder))
            _all_reach(lambda: _predict(detector, loader, evaluator))
            metrics = _metrics_or_error(evaluator, len(loader.dataset))
    finally:
        for module in training:
            module.training = True
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    boxes = numbers.pop(_BOXES, None)
    return SmallScores(numbers, None if boxes is None else int(boxes), _objects(infos))


def _predict(detector: nn.Module, loader: DataLoader[Any], evaluator: Evaluator) -> None:
    for data in loader:
        evaluator.process(data_samples=detector.val_step(data), data_batch=data)


def _all_reach(work: Callable[[], None]) -> None:
    """Do a process's own work, and raise in all processes where one failed.

    The others would wait in the next collective for one that has left: under NCCL for ten minutes, and then all are
    ended.
    """
    error: Exception | None = None
    try:
        work()
    except Exception as caught:
        error = caught
    said = all_gather_object(None if error is None else f'{type(error).__name__}: {error}')
    if error is not None:
        raise error
    for rank, text in enumerate(said):
        if text is not None:
            raise RuntimeError(f'process {rank} failed ({text})')


def _metrics_or_error(evaluator: Evaluator, size: int) -> dict[str, Any]:
    """The evaluator's metrics; what a metric raises in the first process, which alone computes it, is raised in all."""
    errors: list[Exception] = []

    def guarded(compute: Callable[[list], dict]) -> Callable[[list], dict]:
        def run(results: list) -> dict:
            try:
                found = compute(results)
                nothing = getattr(compute.__self__, 'without_objects', ())  # a score of 0 that says nothing
                return {name: value for name, value in found.items() if name not in nothing}
            except Exception as error:
                errors.append(error)
                return {f'error {len(errors)}': str(error)}

        return run

    for metric in evaluator.metrics:
        metric.compute_metrics = guarded(metric.compute_metrics)
    metrics = evaluator.evaluate(size)

    def raise_it() -> None:
        if errors:
            raise errors[0]

    _all_reach(raise_it)
    return metrics


def _restrict(evaluator: Evaluator, metainfo: Any, ids: list) -> None:
    evaluator.dataset_meta = metainfo
    for metric in evaluator.metrics:
        if hasattr(metric, 'img_ids'):
            metric.img_ids = ids


def _write_into(evaluator: Evaluator, folder: Path) -> None:
    for metric in evaluator.metrics:
        for name in ('outfile_prefix', 'out_file_path'):
            if getattr(metric, name, None) is not None:
                setattr(metric, name, str(folder / Path(getattr(metric, name)).name))


def _objects(infos: list[dict]) -> int | None:
    if any('instances' not in info for info in infos):
        return None
    return sum(not one.get('ignore_flag') for info in infos for one in info['instances'])

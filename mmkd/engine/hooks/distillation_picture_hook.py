"""Pictures of fixed images while a distillation trains."""

import gc
from collections.abc import Sequence
from itertools import chain
from typing import Any

from mmengine.dataset import Compose
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmkd.engine.detector_classes import classes_by_set, differing_sets
from mmkd.engine.distillation_pictures import KINDS, PictureOptions, as_pixels, draw_subject, refuse_unknown_levels
from mmkd.engine.hooks.schedule_hook import epoch_length
from mmkd.engine.subjects import Subject, image_pipeline, refuse_same_names, subjects_of
from mmkd.registry import HOOKS


@HOOKS.register_module()
class DistillationPictureHook(Hook):
    """Draws what the losses compare, where the networks look and what they detect, every few epochs or iterations.

    The pictures go to MMEngine's visualiser, hence to every backend that the configuration names: local files without
    one, TensorBoard, WandB. Nothing in the training changes: the same weights come out, bit by bit. The networks run
    in eval mode, so that what training alone does (dropped cells, batch statistics) is not in the pictures. With
    several processes the first one draws, and the others wait for it.

    Args:
        interval: epochs or iterations between pictures.
        by_epoch: count epochs, else iterations. In a loop of iterations an epoch is one pass over the data set.
        images: indices of validation images, from 0.
        kinds: some of `losses`, `attention`, `detections`.
        levels: names of levels such as `p3`; None for all.
        threshold: lowest score of a detection that is drawn.

    Raises:
        ValueError: interval below 1, no image, an unknown kind or a threshold outside [0, 1].
    """

    priority = 'VERY_LOW'

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        images: Sequence[int] = (0,),
        kinds: Sequence[str] = KINDS,
        levels: Sequence[str] | None = None,
        threshold: float = 0.3,
    ) -> None:
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}.')
        if not images:
            raise ValueError('images must name at least one validation image, got none.')
        self.interval, self.by_epoch, self.images = interval, by_epoch, tuple(images)
        self.options = PictureOptions(kinds, levels, threshold)
        self._subjects: list[Subject] = []
        self._iterations = None if by_epoch else interval

    def before_train(self, runner: Runner) -> None:
        """Read the images once.

        Raises:
            ValueError: the model distils nothing, there is no such level, no validation set or no such image, or two
                images have the same name.
        """
        distiller = getattr(_algorithm(runner), 'distiller', None)
        if not hasattr(distiller, 'mappings'):
            raise ValueError('DistillationPictureHook shows a distillation of mmkd; this model has no such distiller.')
        recorded = [tap.names for tap in distiller.taps.values() if tap is not None]
        refuse_unknown_levels(self.options.levels, list(chain(*recorded, *distiller.level_names.values())))
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._iterations = self.interval * (epoch_length(runner.train_dataloader) or 1)
        if runner.val_loop is None:
            raise ValueError('DistillationPictureHook takes its images from the validation set; there is none.')
        if is_main_process():
            dataset = runner.val_loop.dataloader.dataset
            self._subjects = subjects_of(dataset, self.images, Compose(image_pipeline(runner.cfg)))
            refuse_same_names(self._subjects)
            self.options = PictureOptions(
                self.options.kinds, self.options.levels, self.options.threshold, legend_classes(dataset)
            )

    def after_train_epoch(self, runner: Runner) -> None:
        """Draw, if it is time."""
        if self.by_epoch and self._iterations is None and self.every_n_epochs(runner, self.interval):
            self._draw(runner, runner.epoch + 1)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Draw, if it is time."""
        if self._iterations is not None and self.every_n_train_iters(runner, self._iterations):
            self._draw(runner, runner.iter + 1)

    def _draw(self, runner: Runner, step: int) -> None:
        for subject in self._subjects:
            figures = draw_subject(_algorithm(runner), subject, self.options)
            for name, figure in figures.items():
                runner.visualizer.add_image(f'{subject.name}_{name}', as_pixels(figure), step)
        if self._subjects:
            figures = figure = None
            gc.collect()  # figures are rings of references


def legend_classes(dataset: Any) -> tuple[str, ...]:
    """Names of a validation set's classes; none, with a warning, where it joins data sets of different classes."""
    sets = classes_by_set(dataset)
    different = next(differing_sets(sets), None)
    if different is not None:
        text = f'The pictures have no names of classes, as the joined validation sets differ: {different}.'
        print_log(text, logger='current', level=30)
        return ()
    return sets[0][1] if sets else ()


def _algorithm(runner: Runner) -> Any:
    return getattr(runner.model, 'module', runner.model)

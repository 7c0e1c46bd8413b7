"""The classes of student, teacher and data set, compared before training."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mmkd.engine.detector_classes import (
    classes_by_set,
    differing_sets,
    finds_objects_only,
    num_classes,
    reads_text,
    recorded_class_outputs,
)
from mmkd.registry import HOOKS


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compares class counts and the teacher's order before the first step; algorithms bring this hook by themselves.

    The student's count is not compared where it does not mean the data set's classes: region proposal networks, and
    open-vocabulary detectors, which read the classes as text. A teacher may have other classes as long as no recorded
    layer gives class outputs (`gives_classes`). Where several data sets are joined, each of them is compared.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare student and teacher with the training set.

        Raises:
            ValueError: the student's head does not fit a data set, a teacher's does not, or its configuration numbers
                the classes otherwise, although a loss reads class outputs, or two joined data sets have the same
                classes in another order.
        """
        sets = classes_by_set(runner.train_dataloader.dataset)
        if not sets:
            return
        self._compare_sets(sets)
        model = getattr(runner.model, 'module', runner.model)
        self._compare_student(model.architecture, sets)
        if hasattr(model, '_teacher'):
            self._compare_teacher(model, sets)

    def _compare_sets(self, sets: list[tuple[str, tuple[str, ...]]]) -> None:
        for _, classes in sets:
            if sorted(classes) == sorted(sets[0][1]) and classes != sets[0][1]:
                raise ValueError(
                    f'The joined training sets number their classes differently: {next(differing_sets(sets))}.'
                )
        for text in differing_sets(sets):
            _warn(f'The joined training sets call their classes differently: {text}. Equal labels must mean the same.')

    def _compare_student(self, student: nn.Module, sets: list[tuple[str, tuple[str, ...]]]) -> None:
        predicted = num_classes(student)
        wrong = _unfit(predicted, sets)
        if wrong is None:
            return
        if finds_objects_only(student, getattr(student, 'bbox_head', None)) or reads_text(student):
            print_log(
                f'num_classes={predicted} of the student is not compared with the {len(wrong[1])} classes of the '
                f'training set: {type(student).__name__} predicts objects only, or reads the classes as text.',
                logger='current',
            )
            return
        raise ValueError(
            f'The student predicts {predicted} classes, but {wrong[0]} has {len(wrong[1])}: {wrong[1]}. Set '
            'num_classes of its head, or metainfo.classes of the data set.'
        )

    def _compare_teacher(self, model: nn.Module, sets: list[tuple[str, tuple[str, ...]]]) -> None:
        if reads_text(model.teacher) and reads_text(model.architecture):
            return
        predicted, source = num_classes(model.teacher), model._teacher.source
        wrong = _unfit(predicted, sets)
        other = next((classes for _, classes in sets if source.numbers_otherwise(classes)), None)
        if wrong is not None:
            text = f'The teacher predicts {predicted} classes, {wrong[0]} has {len(wrong[1])}'
        elif other is not None:
            text = f'The teacher numbers the classes otherwise: {source.classes}, the training set has {other}'
        else:
            return
        heads = recorded_class_outputs(model)
        if heads:
            raise ValueError(f'{text}, and a loss reads {heads}.')
        _warn(f'{text}; no class outputs are distilled.')


def _unfit(predicted: int | None, sets: list[tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]] | None:
    """The first data set with another number of classes than a detector predicts."""
    name, classes = next((one for one in sets if predicted not in (None, len(one[1]))), ('', ()))
    if not name:
        return None
    return ('the training set' if len(sets) == 1 else f'{name} of the training set'), classes


def _warn(text: str) -> None:
    print_log(text, logger='current', level=30)

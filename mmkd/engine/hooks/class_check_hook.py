"""The number of classes of student, teacher and data set, compared before training."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mmkd.registry import HOOKS


def num_classes(model: nn.Module) -> int | None:
    """Foreground classes that a detector's (last) classification head predicts; None if it has no such head."""
    head = getattr(model, 'bbox_head', None)
    roi_head = getattr(model, 'roi_head', None)
    if head is None and roi_head is not None:
        head = roi_head.bbox_head
    if isinstance(head, nn.ModuleList):
        head = head[-1]
    return getattr(head, 'num_classes', None)


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Compares class counts before the first step; algorithms bring this hook by themselves."""

    def before_train(self, runner: Runner) -> None:
        """Compare student and teacher with the training set.

        Raises:
            ValueError: the student's head does not fit the data set, or a teacher's does not although a loss reads
                class outputs.
        """
        classes = runner.train_dataloader.dataset.metainfo.get('classes')
        model = getattr(runner.model, 'module', runner.model)
        if not classes:
            return
        student = num_classes(model.architecture)
        if student is not None and student != len(classes):
            raise ValueError(
                f'The student predicts {student} classes, but the training set has {len(classes)}: {classes}. Set '
                'num_classes of its head, or metainfo.classes of the data set.'
            )
        teacher = num_classes(model.teacher) if hasattr(model, '_teacher') else None
        if teacher is None or teacher == len(classes):
            return
        heads = [name for name in model.distiller.module_sources(from_student=False) if 'head' in name]
        if heads:
            raise ValueError(
                f'The teacher predicts {teacher} classes, the data set has {len(classes)}, and a loss reads {heads}.'
            )
        print_log(
            f'The teacher predicts {teacher} classes, the data set has {len(classes)}; only features are distilled.',
            logger='current',
            level=30,
        )

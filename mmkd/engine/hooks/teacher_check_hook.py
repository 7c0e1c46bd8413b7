"""The teacher's accuracy, measured once before training."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmkd.engine.hooks.class_check_hook import num_classes
from mmkd.engine.random_state import preserved_random_state
from mmkd.engine.small_evaluation import evaluate_on, first_images
from mmkd.registry import HOOKS


class UselessTeacherError(RuntimeError):
    """A teacher that detects nothing."""

    user_mistake = True


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Evaluates the teacher on some validation images and stops a run whose teacher detects nothing.

    Args:
        num_images: how many of the first validation images; 0 leaves the check out.

    Raises:
        ValueError: `num_images` is negative.
    """

    priority = 'LOW'

    def __init__(self, num_images: int = 16) -> None:
        if num_images < 0:
            raise ValueError(f'num_images must be >= 0, got {num_images}.')
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        """Measure and print.

        Raises:
            UselessTeacherError: every metric of the teacher is 0.
        """
        cfg = runner.cfg
        if self.num_images == 0 or runner._resume or not cfg.get('val_dataloader') or not cfg.get('val_evaluator'):
            return
        with preserved_random_state():
            metrics = self._evaluate(runner)
        if metrics is None:
            return
        text = ', '.join(f'{name} {value:.3f}' for name, value in metrics.items() if value >= 0)
        print_log(f'Teacher on {self.num_images} validation images: {text}.', logger='current')
        if all(value <= 0 for value in metrics.values()):
            raise UselessTeacherError(
                f'The teacher detects nothing on the first {self.num_images} validation images ({text}). Its '
                'checkpoint, classes or normalisation do not fit. default_hooks.teacher_check='
                "dict(type='mmkd.TeacherCheckHook', num_images=0) leaves this check out."
            )

    def _evaluate(self, runner: Runner) -> dict[str, float] | None:
        model = getattr(runner.model, 'module', runner.model)
        loader = first_images(runner, self.num_images)
        classes = loader.dataset.metainfo.get('classes', ())
        if num_classes(model.teacher) not in (None, len(classes)):
            print_log('The teacher has other classes than the data set; its accuracy is not measured.', 'current')
            return None
        return evaluate_on(runner, model.teacher, loader)

"""The teacher's accuracy, measured once before training."""

import sys
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmkd.engine.detector_classes import num_classes
from mmkd.engine.random_state import preserved_random_state
from mmkd.engine.small_evaluation import NotScorableError, SmallScores, evaluate_on, first_images
from mmkd.registry import HOOKS


class UselessTeacherError(RuntimeError):
    """A teacher that detects nothing."""

    user_mistake = True


TEACHER_SCORES = 'mmkd_teacher_scores'


def compared(student: Mapping[str, Any], teacher: Mapping[str, float]) -> str:
    """One line: every metric that both have, the student's value first, and the difference."""
    shared = [name for name, value in teacher.items() if name in student and value >= 0]
    parts = [
        f'{n} {float(student[n]):.3f} and {teacher[n]:.3f} ({float(student[n]) - teacher[n]:+.3f})' for n in shared
    ]
    return 'Student and teacher: ' + (', '.join(parts) or 'no score of the student yet') + '.'


@HOOKS.register_module()
class TeacherCheckHook(Hook):
    """Evaluates the teacher on some validation images and stops a run whose teacher detects nothing.

    With `num_images='all'` the teacher's score is that of the whole validation set, measured once a run; then every
    validation of the student is followed by a line that compares the two. A resumed run still knows the score.

    Args:
        num_images: how many of the first validation images, or `'all'`; 0 leaves the check out.

    Raises:
        ValueError: `num_images` is negative, or another word than `'all'`.
    """

    priority = 'LOW'

    def __init__(self, num_images: int | str = 16) -> None:
        if num_images != 'all' and (isinstance(num_images, str) or num_images < 0):
            raise ValueError(f"num_images must be >= 0 or 'all', got {num_images!r}.")
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        """Measure and print.

        Raises:
            UselessTeacherError: there are objects, and every metric of the teacher is 0 or it gives no box at all.
        """
        cfg = runner.cfg
        if self.num_images == 0 or not cfg.get('val_dataloader') or not cfg.get('val_evaluator'):
            return
        # `--resume` of a run that has not begun is its start
        if runner.iter > 0 and (self.num_images != 'all' or runner.message_hub.get_info(TEACHER_SCORES)):
            return
        with preserved_random_state():
            try:
                scores = self._evaluate(runner)
            except NotScorableError as error:
                print_log(f'The teacher is not checked: {error}.', logger='current')
                return
        if scores is None:
            return
        empty = 'no detections' if scores.boxes == 0 else 'no score'
        text = ', '.join(f'{name} {value:.3f}' for name, value in scores.known.items()) or empty
        print_log(f'Teacher on {self.num_images} validation images: {text}.', logger='current')
        if self.num_images == 'all':
            runner.message_hub.update_info(TEACHER_SCORES, scores.metrics)  # checkpoints carry it
        self._judge(scores, text)

    def _judge(self, scores: SmallScores, text: str) -> None:
        known = scores.known.values()
        if scores.objects == 0 or (not known and scores.boxes != 0):
            why = 'no object is annotated in them' if scores.objects == 0 else 'the metric gives no number'
            print_log(f'The teacher could not be judged on these images: {why}.', logger='current', level=30)
        elif not any(known):
            raise UselessTeacherError(
                f'The teacher detects nothing on {self._which()} validation images ({text}). Its '
                'checkpoint, classes or normalisation do not fit. default_hooks.teacher_check='
                "dict(type='mmkd.TeacherCheckHook', num_images=0) leaves this check out."
            )

    def _which(self) -> str:
        return 'all' if self.num_images == 'all' else f'the first {self.num_images}'

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the student's scores beside the teacher's, where those are of the same images."""
        teacher = runner.message_hub.get_info(TEACHER_SCORES) if self.num_images == 'all' else None
        if teacher and metrics:
            print_log(compared(metrics, teacher), logger='current')

    def _evaluate(self, runner: Runner) -> SmallScores | None:
        model = getattr(runner.model, 'module', runner.model)
        loader = first_images(runner, sys.maxsize if self.num_images == 'all' else self.num_images)
        data = loader.dataset
        if not (data.knows(num_classes(model.teacher)) and data.numbers_as(model._teacher.source)):
            print_log('The teacher has other classes than the data set; its accuracy is not measured.', 'current')
            return None
        return evaluate_on(runner, model.teacher, loader)

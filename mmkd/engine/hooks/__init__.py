"""Hooks. Importing this package registers them."""

from . import (  # noqa: F401
    class_check_hook,
    cost_hook,
    diagnosis_hook,
    distill_checkpoint_hook,
    distillation_picture_hook,
    guard_hook,
    schedule_hook,
    teacher_check_hook,
)

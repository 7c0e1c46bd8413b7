"""Hooks. Importing this package registers them."""

from . import class_check_hook, distill_checkpoint_hook, guard_hook, teacher_check_hook  # noqa: F401

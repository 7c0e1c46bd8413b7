"""Algorithms: one training step. Importing this package registers them."""

from . import multi_scale_self_distill, self_teacher_distill, teacher_student  # noqa: F401

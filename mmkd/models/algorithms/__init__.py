"""Algorithms: one training step. Importing this package registers them."""

from . import teacher_student  # noqa: F401

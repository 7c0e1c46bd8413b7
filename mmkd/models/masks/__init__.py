"""Masks: data samples -> weight on a feature grid. Importing this package registers them."""

from . import gaussian_mask  # noqa: F401

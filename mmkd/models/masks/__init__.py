"""Masks: data samples -> weight on a feature grid. Importing this package registers them."""

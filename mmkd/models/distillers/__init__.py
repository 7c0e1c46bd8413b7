"""Distillers: which records meet in which loss. Importing this package registers them."""

from . import detection_distiller  # noqa: F401

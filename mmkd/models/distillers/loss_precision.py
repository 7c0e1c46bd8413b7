"""Losses of other projects, such as MMRazor's, are computed in float32 under mixed precision, as this project's are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.models.losses.checks import at_least_float32
from mmkd.models.losses.pyramid_loss import PyramidLoss


def compute_loss(loss: nn.Module, arguments: Mapping[str, Any], device: torch.device) -> Any:
    """A loss in at least float32.

    Args:
        loss: this project's, which sees to it by itself, or another's.
        arguments: arguments of its `forward`.
        device: where it runs.

    Returns:
        What the loss gives.
    """
    inner = loss.loss if isinstance(loss, PyramidLoss) else loss
    if type(inner).__module__.startswith('mmkd.'):
        return loss(**arguments)
    with torch.autocast(device.type, enabled=False):
        return loss(**{name: _exact(value) for name, value in arguments.items()})


def _exact(value: Any) -> Any:
    if isinstance(value, Tensor):
        return at_least_float32(value) if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(_exact(item) for item in value)
    return value

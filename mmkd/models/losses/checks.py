"""Refusals that losses without an element-wise value share."""

from typing import Any

import torch
from torch import Tensor


def check_weight(loss_weight: float) -> float:
    """Return the weight, or refuse a negative one.

    Raises:
        ValueError: `loss_weight` is negative.
    """
    if loss_weight < 0:
        raise ValueError(f'loss_weight must be >= 0, got {loss_weight}.')
    return loss_weight


def refuse_unused(loss: object, **arguments: Any) -> None:
    """Refuse arguments of `forward` that the loss would silently ignore.

    Raises:
        ValueError: one of `arguments` is not None.
    """
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ValueError(f'{type(loss).__name__} cannot use {", ".join(given)}; leave it out of the mapping.')


def at_least_float32(value: Tensor) -> Tensor:
    """The tensor in float32, or in its own precision if that is higher."""
    return value.to(torch.promote_types(value.dtype, torch.float32))

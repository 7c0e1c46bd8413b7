"""Distances that do not depend on the magnitude of features.

Shapes: `N` images; the other axes are those of a feature or of what is computed from it.
"""

import torch
from torch import Tensor


def larger_energy(x: Tensor, y: Tensor) -> Tensor:
    """Mean square of each image in that of the two which has more, without gradient: the divisor of a relative value.

    A mean squared difference divided by it lies in [0, 4], also for a teacher whose feature is nearly zero.

    Args:
        x: (N, ...).
        y: (N, ...), of any shape.

    Returns:
        (N,), at least 1e-12.
    """
    energies = [value.detach().flatten(1).square().mean(1) for value in (x, y)]
    return torch.maximum(*energies).clamp(min=1e-12)


def relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the images of the mean squared difference divided by `larger_energy`.

    Args:
        prediction: (N, ...).
        target: (N, ...) of the same shape.

    Returns:
        Scalar in [0, 4]; 1 for a prediction of zeros.
    """
    error = (prediction - target).flatten(1).square().mean(1)
    return (error / larger_energy(prediction, target)).mean()

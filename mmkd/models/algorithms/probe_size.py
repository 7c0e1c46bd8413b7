"""The input of the dry forward by which an algorithm learns channels and strides of its networks."""

import torch
from torch import Tensor, nn

from mmkd.models.algorithms.missing_operator import MissingOperatorError

# (H, W) px: a whole cell at stride 128, not square, and small, since every build of an algorithm runs it. Necks whose
# last layers do not pad (SSD's) need more.
PROBE_SIZE = (256, 384)
LARGEST = 4


def probe_input(**networks: nn.Module) -> Tensor:
    """An image that every network takes, (1, 3, H, W): of `PROBE_SIZE`, or twice or four times that.

    Args:
        networks: detectors by what to call them (`student`, `teacher`), on one device; their modes and statistics stay.

    Raises:
        ValueError: a network's features fail at every size; names it and the largest size.
    """
    factor = 1
    for name, network in networks.items():
        while (error := _failure(network, factor)) is not None:
            if factor == LARGEST:
                height, width = (factor * side for side in PROBE_SIZE)
                raise ValueError(
                    f'The features of the {name} {type(network).__name__} cannot be computed on an image of '
                    f'{height}x{width} px: {error}'
                ) from error
            factor *= 2
    return _blank(network, factor)


def _blank(network: nn.Module, factor: int) -> Tensor:
    device = next(network.parameters()).device
    return torch.zeros(1, 3, *(factor * side for side in PROBE_SIZE), device=device)


def _failure(network: nn.Module, factor: int) -> RuntimeError | None:
    """What the network's features raise on an image of `factor` times the usual size."""
    if getattr(network, 'neck', None) is None or not hasattr(network, 'extract_feat'):
        return None
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network.extract_feat(_blank(network, factor))
    except MissingOperatorError:
        raise
    except RuntimeError as error:
        return error
    finally:
        network.train(training)
    return None

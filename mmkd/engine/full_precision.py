"""A network that keeps its weights in half precision, run as a whole detector."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import nn

HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def full_precision(network: nn.Module) -> Iterator[None]:
    """Inside, the network computes in float32; afterwards its weights are the same tensors as before.

    A teacher with `precision` runs only as far as its features are read: the rest of a detector (RoIAlign, NMS) has no
    kernels in bf16. A network without half-precision weights is left alone, autocast included.
    """
    halves = [t for t in chain(network.parameters(), network.buffers()) if t.dtype in HALVES]
    kept = [tensor.data for tensor in halves]
    with ExitStack() as stack:
        for device in {tensor.device.type for tensor in halves}:
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for tensor in halves:
                tensor.data = tensor.data.float()
            yield
        finally:
            for tensor, data in zip(halves, kept, strict=True):
                tensor.data = data

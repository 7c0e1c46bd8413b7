"""Where a tensor's values may be asked for."""

from torch import Tensor


def read_is_free(value: Tensor) -> bool:
    """Whether a value may be read without waiting: on the CPU.

    Elsewhere `item()`, a boolean index or `nonzero` waits until the device has done all it was given, and leaves it
    idle until the next work comes. What depends on values (a check, dropping rows that do not count) is done there in
    another way, or not at all.
    """
    return value.device.type == 'cpu'
